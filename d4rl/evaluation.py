"""Playing episodes of a task, the way every script and baseline is evaluated."""

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from d4rl import minari_datasets, robomimic_tasks
from d4rl.tasks import DatasetError, Task, UsageError, task

SPREAD = ("antmaze", "kitchen", "robomimic/")  # tasks whose episodes are spread over processes: slow, or much memory
COMPARED_STEPS = 20
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make(env_id: str, h5path: str | Path | None = None, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that a task is evaluated in: `gymnasium.make`, and Minari's ids.

    `h5path`: the dataset, if it is not the task's own; robomimic's files say how their environment is built.

    Raises:
        DatasetError: unknown task, the simulator is missing or cannot build the environment, other sizes than the task.
    """
    spec = task(env_id)
    kwargs = {"dataset_path": h5path} if spec.is_robomimic else {}
    try:
        if spec.is_minari:
            env = minari_datasets.make(spec.env_id, render_mode=render_mode)
        else:
            env = gymnasium.make(spec.env_id, render_mode=render_mode, **kwargs)
    except Exception as error:  # of a foreign constructor, or of an import: any
        _check_opengl()
        if isinstance(error, UsageError):
            raise
        raise _broken(spec, "built", error) from error
    sizes = env.observation_space.shape, env.action_space.shape
    if sizes != ((spec.observation_size,), (spec.action_size,)):
        wanted = f"({spec.observation_size},) and ({spec.action_size},)"
        problem = f"the environment of {env_id} has observations and actions of shapes {sizes[0]} and {sizes[1]}"
        raise DatasetError(f"{problem}, its task {wanted}: correct d4rl/tasks.tsv or the environment.")
    return env


def _broken(spec: Task, what: str, error: Exception) -> DatasetError:
    advice = "look at env_kwargs in the file's env_args" if spec.is_robomimic else "look at its packages' versions"
    reason = minari_datasets.reason(error).partition(" was raised from the environment creator")[0]  # gymnasium's
    return DatasetError(
        f"the environment of {spec.env_id} cannot be {what} here ({type(error).__name__}: {reason}); {advice}."
    )


def _check_opengl():
    """DatasetError if $MUJOCO_GL keeps MuJoCo from being imported: each back end fails in its own way."""
    try:
        import mujoco  # noqa: F401
    except Exception as error:
        if wanted := os.environ.get("MUJOCO_GL"):
            problem = f"MuJoCo cannot start with MUJOCO_GL={wanted} ({minari_datasets.reason(error)})"
            raise DatasetError(f"{problem}: unset it, or install what it names (libegl1, libosmesa6).") from error


def playable_task(env_id: str, h5path: str | Path | None = None, video: bool = False) -> Task:
    """The facts of a task whose environment works here: a script asks before it trains for hours.

    The environment is built, reset and kept for the first evaluation, in the process that will play it. With `video`,
    another one renders a frame (not on Windows, which has no workers). `h5path`: as in `make`.

    Raises:
        UsageError: as `evaluate`.
    """
    spec = task(env_id)
    if spec.is_robomimic:
        robomimic_tasks.check_robosuite()  # before its file is downloaded
    try:
        _first(spec, h5path)([0])
        if video and os.name != "nt":
            _Worker(spec.env_id, h5path, video=True).end([0])
    except UsageError:
        raise
    except Exception as error:  # of a foreign environment: any
        raise _broken(spec, "reset", error) from error
    return spec


def compare(
    env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None, starts: np.ndarray | None = None
) -> list[str]:
    """What the environment shows in its first steps and the data does not know, in sentences.

    Named are entries of an observation that never change in the data and have another value in the environment, and
    those that leave the data's range by ten times its width. The actions are the first of `dataset`, which is what
    `d4rl.get_dataset` returns. No random numbers but the environment's own are drawn.

    With `starts`, the first observations of ten episodes or more (episodes, observation size), the environment's first
    one has to be near them: walker2d's and halfcheetah's files, and those of all mazes, have the same sizes.

    Raises:
        UsageError: as `playable_task`, whose environment is used.
    """
    spec = task(env_id)
    respond = _first(spec, h5path)
    played, over = [respond([0])[0]], False
    for action in dataset["actions"][:COMPARED_STEPS]:
        if not over:
            obs, _, over = respond(action[None])
            played.append(obs)
    played = np.float32(np.concatenate(played))  # (steps, observation size)

    low, high = dataset["observations"].min(0), dataset["observations"].max(0)
    width, size = high - low, np.maximum(np.abs(low), np.abs(high))
    outside = np.maximum(low - played, played - high)
    row, distance = outside.argmax(0), outside.max(0)
    sentences = []
    for column in np.flatnonzero(distance > np.maximum(10 * width, 1e-3 * np.maximum(size, 1))):
        there = f"between {low[column]:.6g} and {high[column]:.6g}" if width[column] else f"always {low[column]:.6g}"
        here = f"{played[row[column], column]:.6g} in the environment"
        sentences.append(f"entry {column} of an observation is {there} in the data, but {here}.")
    if len(sentences) > 5:
        sentences[5:] = [f"{len(sentences) - 5} more entries of an observation differ likewise."]
    if not sentences and starts is not None and len(starts) >= 10:
        low, high, spread = starts.min(0), starts.max(0), dataset["observations"].std(0)
        away = np.maximum(low - played[0], played[0] - high) / np.where(width > 0, spread, np.inf)
        if away.max() > 2:
            column = away.argmax()
            there = f"entry {column} of an observation between {low[column]:.6g} and {high[column]:.6g}"
            here = f"{played[0, column]:.6g} in the environment"
            sentences = [f"episodes begin with {there}, but with {here}: is it the data of another task?"]
    return sentences


def evaluate(
    env_id: str,
    act: Act,
    episodes: int,
    seed: int,
    video_folder: str | Path | None = None,
    h5path: str | Path | None = None,
) -> list[float]:
    """Undiscounted returns of `episodes` episodes.

    Episode i has its own random numbers, seeded 1000 * seed + i, for its reset and for the policy: the same policy gets
    the same returns again, also on another number of processes. Those of slow tasks (`SPREAD`) are spread over
    processes, one more than this one may use cores; $D4RL_PROCESSES sets another number.

    Args:
        act: maps observations (B, observation_size) and one random number from [0, 1) for each of them (B,) to actions
            (B, action_size), which are clipped to the action space. B varies from call to call.
        video_folder: record the first episode as an mp4 in its folder videos/. Needs OpenGL.
        h5path: as in `make`.

    Raises:
        DatasetError: as `make`; no OpenGL or moviepy to record with.
        UsageError: actions of another shape, or not finite; observations or rewards that are not finite.
    """
    spec, seed = task(env_id), int(seed)
    todo = list(range(episodes))
    returns = {}
    if video_folder:
        returns |= _play_recorded(spec, h5path, act, Path(video_folder, "videos"), seed)
        todo = todo[1:]
    if todo and spec.env_id.startswith(SPREAD):
        returns |= _play_spread(_workers(spec.env_id, h5path, _processes(episodes)), act, todo, seed)
    elif todo:
        returns |= _play_here(spec, _environments(spec.env_id, episodes)[: len(todo)], act, todo, seed)
    return [returns[i] for i in range(episodes)]


def _first(spec: Task, h5path: str | Path | None) -> Callable:
    """`_respond` of the first environment that plays a task, here or in a worker."""
    if spec.env_id.startswith(SPREAD):
        return _workers(spec.env_id, h5path, _processes(1))[0].ask
    return partial(_respond, _environments(spec.env_id, 1))


def _respond(envs: list[gymnasium.Env], messages: list[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations (B, size), rewards (B,) and ends (B,) after resets with B seeds, or steps with actions (B, size)."""
    if isinstance(messages, list):
        obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, messages, strict=True)]
        rewards, over = np.zeros(len(envs)), np.zeros(len(envs), bool)
    else:
        space = envs[0].action_space
        actions = np.clip(messages, space.low, space.high)
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        obs, rewards, terminated, truncated, _ = zip(*steps, strict=True)
        rewards, over = np.array(rewards, float).ravel(), np.logical_or(terminated, truncated).ravel()
    obs = np.array(obs)
    if not (np.isfinite(obs).all() and np.isfinite(rewards).all()):
        problem = "an observation or a reward that is NaN or infinite"
        raise UsageError(f"{envs[0]} gave {problem}: its episodes have no score.")
    return obs, rewards, over


def _actions(act: Act, obs: np.ndarray, uniform: np.ndarray, size: int) -> np.ndarray:
    """What the policy answers: (B, size). Clipped and played, a NaN would be a score without a sign."""
    actions = np.asarray(act(obs, uniform))
    if actions.shape != (len(obs), size):
        raise UsageError(f"the policy's actions have shape {actions.shape}; they have to be {(len(obs), size)}.")
    if not np.isfinite(actions).all():
        raise UsageError("the policy's actions are NaN or infinite: its training has gone wrong, and it has no score.")
    return actions


# --- in this process ---
def _environments(env_id: str, count: int) -> list[gymnasium.Env]:
    """Kept from one evaluation to the next: compiling twenty MuJoCo models takes seconds."""
    return _filled(_kept_environments(env_id), count, partial(make, env_id))


@cache
def _kept_environments(env_id: str) -> list[gymnasium.Env]:
    return []


def _filled(kept: list, count: int, make_one: Callable) -> list:
    """The first `count` of a list that grows if it has to."""
    kept += [make_one() for _ in range(count - len(kept))]
    return kept[:count]


def _play_here(
    spec: Task, envs: list[gymnasium.Env], act: Act, todo: list[int], seed: int, bar: str = "episodes"
) -> dict[int, float]:
    """Returns by episode. All run in lock step: one call of `act` serves those that still run.

    What takes more than a second has a bar. Its time left is the longest that it can be: the environment's limit.
    """
    generators = [np.random.default_rng(1000 * seed + i) for i in todo]
    obs, _, _ = _respond(envs, [1000 * seed + i for i in todo])
    returns, running = np.zeros(len(todo)), np.arange(len(todo))
    with tqdm(total=spec.max_episode_steps, desc=bar, leave=False, mininterval=1, delay=1) as progress:
        while len(running):
            uniform = np.array([generators[j].random() for j in running])
            actions = _actions(act, obs, uniform, spec.action_size)
            obs, rewards, over = _respond([envs[j] for j in running], actions)
            returns[running] += rewards
            obs, running = obs[~over], running[~over]
            progress.update()
    return dict(zip(todo, returns.tolist(), strict=True))


# --- video ---
def _rendering(env_id: str, h5path: str | Path | None) -> gymnasium.Env:
    """An environment that has rendered a frame."""
    if importlib.util.find_spec("moviepy") is None:
        advice = 'pip install -e "./d4rl[video]" in the clone.'
        raise DatasetError(f"A video needs moviepy, which is missing: {advice}")
    try:
        env = make(env_id, h5path, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except DatasetError:
        raise
    except Exception as error:  # without OpenGL, each of MuJoCo's back ends fails in its own way
        reason = minari_datasets.reason(error)
        advice = "on a machine without a screen, install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
        raise DatasetError(f"A video needs OpenGL, and MuJoCo cannot use it here ({reason}): {advice}") from error
    return env


def _play_recorded(spec: Task, h5path: str | Path | None, act: Act, folder: Path, seed: int) -> dict[int, float]:
    """Episode 0, of which every step is drawn; says where its mp4 is."""
    name = spec.env_id.replace("/", "-")
    env = gymnasium.wrappers.RecordVideo(_rendering(spec.env_id, h5path), str(folder), name_prefix=name)
    returns = _play_here(spec, [env], act, [0], seed, bar="video")
    env.close()
    print(folder / f"{name}-episode-0.mp4")
    return returns


# --- spread over processes ---
def _processes(episodes: int) -> int:
    """One more than there are cores: each waits for the policy at every step, and no core is idle meanwhile."""
    wanted = os.environ.get("D4RL_PROCESSES") or str(_cores() + 1)
    if not wanted.isdigit() or int(wanted) == 0:
        raise DatasetError(f"D4RL_PROCESSES is {wanted!r}; it has to be a number of processes, 1 or more.")
    return min(episodes, int(wanted))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A process with one environment. It does not import the training script, as `multiprocessing` would have it."""

    def __init__(self, env_id: str, h5path: str | Path | None, video: bool = False):
        self.env_id, self.video = env_id, video
        if os.name == "nt":
            raise DatasetError(f"{env_id} is played in further processes, for which Windows lacks the means: use WSL.")
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        # Ctrl-C goes to all processes of a terminal, also while they import; these end when the connection closes.
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        code += f"from d4rl.evaluation import _work; _work({theirs.fileno()})"
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        settings = dict(pass_fds=[theirs.fileno()], env=environment)
        if video:  # OpenGL's back ends print when they fail
            settings["stderr"] = subprocess.DEVNULL
        self.process = subprocess.Popen([sys.executable, "-P", "-c", code], **settings)
        theirs.close()
        self.send((env_id, h5path, video))

    def ask(self, message: list[int] | np.ndarray):
        """`_respond`, there."""
        self.send(message)
        return self.receive()

    def end(self, message: list[int] | np.ndarray):
        """The last thing it is asked."""
        try:
            self.ask(message)
        finally:
            self.connection.close()
            self.process.wait()

    def send(self, message):
        try:
            self.connection.send(message)
        except ConnectionError:
            pass  # `receive` says why

    def receive(self):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            _kept_workers.cache_clear()
            problem = f"a process that plays {self.env_id} has died (exit code {self.process.wait()})"
            advice = "if memory was short, set D4RL_PROCESSES to a smaller number"
            if self.video:
                advice = "OpenGL may be at fault, so leave --capture-video out or set MUJOCO_GL"
            raise UsageError(f"{problem}; {advice}.") from None
        if isinstance(answer, Exception):
            _kept_workers.cache_clear()
            raise answer
        return answer


def _workers(env_id: str, h5path: str | Path | None, count: int) -> list[_Worker]:
    """Kept from one evaluation to the next; they end with this process."""
    h5path = h5path and str(h5path)
    return _filled(_kept_workers(env_id, h5path), count, partial(_Worker, env_id, h5path))


@cache
def _kept_workers(env_id: str, h5path: str | None) -> list[_Worker]:
    return []


def _work(descriptor: int):
    """A worker's life: it responds until its parent is gone."""
    connection = Connection(descriptor)
    try:
        env_id, h5path, video = connection.recv()
        env = _rendering(env_id, h5path) if video else make(env_id, h5path)
        while True:
            connection.send(_respond([env], connection.recv()))
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        connection.send(error)


def _play_spread(workers: list[_Worker], act: Act, todo: list[int], seed: int) -> dict[int, float]:
    """Returns by episode. A worker that has finished one gets the next."""
    returns, todo, playing = dict.fromkeys(todo, 0.0), list(todo), {}
    size = task(workers[0].env_id).action_size

    def start(worker: _Worker):
        if todo:
            i = todo.pop(0)
            worker.send([1000 * seed + i])
            playing[worker.connection] = worker, i, np.random.default_rng(1000 * seed + i)

    try:
        with tqdm(total=len(todo), desc="episodes", leave=False, mininterval=1) as progress:
            for worker in workers:
                start(worker)
            while playing:
                for connection in wait(list(playing)):
                    worker, i, generator = playing[connection]
                    obs, rewards, over = worker.receive()
                    returns[i] += float(rewards[0])
                    if over[0]:
                        del playing[connection]
                        progress.update()
                        start(worker)
                    else:  # always alone: a batch of another size would round differently
                        worker.send(_actions(act, obs, generator.random(1), size))
    except BaseException:  # the policy's, or Ctrl-C: answers are left unread, so these workers must not play again
        _kept_workers.cache_clear()
        for worker in workers:
            worker.process.kill()
        raise
    return returns
