"""Playing episodes of a task, the way every script and baseline is evaluated."""

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
from d4rl.tasks import DatasetError, Task, task

COMPARED_STEPS = 20
SPREAD = ("antmaze", "kitchen", "robomimic/")  # tasks whose episodes are spread over processes: slow, or much memory
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make(env_id: str, h5path: str | Path | None = None, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that a task is evaluated in: `gymnasium.make`, and Minari's ids.

    `h5path`: the dataset, if it is not the task's own; robomimic's files say how their environment is built.
    """
    spec = task(env_id)
    if spec.is_minari:
        return minari_datasets.make(env_id, render_mode=render_mode)
    kwargs = {"dataset_path": h5path} if spec.is_robomimic else {}
    return gymnasium.make(spec.env_id, render_mode=render_mode, **kwargs)


def playable_task(env_id: str, h5path: str | Path | None = None, video: bool = False) -> Task:
    """The facts of a task whose environment works here: a script asks before it trains for hours.

    The environment is built, reset and kept for the first evaluation, in the process that will play it. With `video`,
    another one renders a frame. `h5path`: as in `make`.

    Raises:
        DatasetError: as `evaluate`.
    """
    spec = task(env_id)
    if spec.is_robomimic:
        robomimic_tasks.check_robosuite()  # before its file is downloaded
    if spec.env_id.startswith(SPREAD):
        (worker,) = _workers(spec.env_id, h5path, _processes(1))
        worker.ask(0)
    else:
        _environments(spec.env_id, 1)[0].reset(seed=0)
    if video:
        _rendering(spec.env_id, h5path).close()
    return spec


def compare(env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None) -> list[str]:
    """Sentences on observations that the environment makes and the data does not know, from a few steps of play.

    `dataset` is what `d4rl.get_dataset` returns; its first actions are played. Said is what never changes in the data
    and has another value in the environment, and what is far outside the data's range there.

    Raises:
        DatasetError: as `playable_task`, whose environment is used.
    """
    spec, actions = task(env_id), dataset["actions"][:COMPARED_STEPS]
    if spec.env_id.startswith(SPREAD):
        (worker,) = _workers(spec.env_id, h5path, _processes(1))
        ask = worker.ask
    else:
        ask = partial(_respond, _environments(spec.env_id, 1)[0])
    obs, _, over = ask(0)
    played = [obs]
    for action in actions:
        if over:
            break
        obs, _, over = ask(action)
        played.append(obs)
    played = np.float32(played)

    low, high = dataset["observations"].min(0), dataset["observations"].max(0)
    spread, size = high - low, np.maximum(1, np.maximum(np.abs(low), np.abs(high)))
    outside = np.maximum(low - played, played - high)  # (steps, observation size): positive outside the data's range
    row, far = outside.argmax(0), outside.max(0)
    sentences = []
    for column in np.flatnonzero(far > np.maximum(10 * spread, 1e-3 * size)):
        here = f"in the environment it is {played[row[column], column]:.6g}"
        there = f"is always {low[column]:.6g} in the data"
        if spread[column]:
            there = f"is between {low[column]:.6g} and {high[column]:.6g} in the data"
        sentences.append(f"entry {column} of an observation {there}, and {here}: nothing was learned about that.")
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
        DatasetError: unknown task, robosuite missing, or no OpenGL to record with.
    """
    spec = task(env_id)
    todo = list(range(episodes))
    returns = {}
    if video_folder:
        env, folder = _rendering(spec.env_id, h5path), str(Path(video_folder, "videos"))
        env = gymnasium.wrappers.RecordVideo(env, folder, name_prefix=spec.env_id.replace("/", "-"))
        returns |= _play_here([env], act, todo[:1], seed)
        env.close()
        todo = todo[1:]
    if todo and spec.env_id.startswith(SPREAD):
        returns |= _play_spread(_workers(spec.env_id, h5path, _processes(episodes)), act, todo, seed)
    elif todo:
        returns |= _play_here(_environments(spec.env_id, episodes)[: len(todo)], act, todo, seed)
    return [returns[i] for i in range(episodes)]


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


def _rendering(env_id: str, h5path: str | Path | None) -> gymnasium.Env:
    """An environment that has rendered a frame. Without OpenGL, each of MuJoCo's back ends fails in its own way."""
    try:
        env = make(env_id, h5path, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except DatasetError:
        raise
    except Exception as error:
        advice = "on a machine without a screen, install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
        raise DatasetError(f"A video needs OpenGL, and MuJoCo cannot use it here ({error}): {advice}") from error
    return env


def _play_here(envs: list[gymnasium.Env], act: Act, todo: list[int], seed: int) -> dict[int, float]:
    """Returns by episode. All run in lock step: one call of `act` serves those that still run."""
    low, high = envs[0].action_space.low, envs[0].action_space.high
    generators = [np.random.default_rng(1000 * seed + i) for i in todo]
    obs = np.stack([env.reset(seed=1000 * seed + i)[0] for env, i in zip(envs, todo, strict=True)])
    returns, running = np.zeros(len(todo)), np.arange(len(todo))
    while len(running):
        over = np.zeros(len(running), dtype=bool)
        uniform = np.array([generators[j].random() for j in running])
        for n, action in enumerate(np.clip(act(obs[running], uniform), low, high)):
            j = running[n]
            obs[j], reward, terminated, truncated, _ = envs[j].step(action)
            returns[j] += reward
            over[n] = terminated or truncated
        running = running[~over]
    return dict(zip(todo, returns.tolist(), strict=True))


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

    def __init__(self, env_id: str, h5path: str | Path | None):
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        code = f"from d4rl.evaluation import _work; _work({theirs.fileno()})"
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self.connection.send((env_id, h5path))

    def ask(self, message):
        self.connection.send(message)
        return self.receive()

    def receive(self):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            _kept_workers.cache_clear()
            code = self.process.wait()
            raise RuntimeError(f"A process that plays episodes has died (exit code {code}).") from None
        if isinstance(answer, Exception):
            _kept_workers.cache_clear()
            raise answer
        return answer


def _workers(env_id: str, h5path: str | Path | None, count: int) -> list[_Worker]:
    """Kept from one evaluation to the next; they end with this process."""
    return _filled(_kept_workers(env_id, h5path), count, partial(_Worker, env_id, h5path))


@cache
def _kept_workers(env_id: str, h5path: str | Path | None) -> list[_Worker]:
    return []


def _work(descriptor: int):
    """A worker's life: it answers what it is sent."""
    connection = Connection(descriptor)
    try:
        env = make(*connection.recv())
        while True:
            connection.send(_respond(env, connection.recv()))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone
    except Exception as error:
        connection.send(error)


def _respond(env: gymnasium.Env, message: int | np.ndarray) -> tuple[np.ndarray, float, bool]:
    """(observation, reward, over) after a reset with the seed `message`, or a step with the action `message`."""
    if isinstance(message, int):
        return env.reset(seed=message)[0], 0.0, False
    space = env.action_space
    obs, reward, terminated, truncated, _ = env.step(np.clip(message, space.low, space.high))
    return obs, reward, terminated or truncated


def _play_spread(workers: list[_Worker], act: Act, todo: list[int], seed: int) -> dict[int, float]:
    """Returns by episode. A worker that has finished one gets the next."""
    returns, todo, playing = dict.fromkeys(todo, 0.0), list(todo), {}

    def start(worker: _Worker):
        if todo:
            i = todo.pop(0)
            worker.connection.send(1000 * seed + i)
            playing[worker.connection] = worker, i, np.random.default_rng(1000 * seed + i)

    try:
        with tqdm(total=len(todo), desc="episodes", leave=False, mininterval=1) as progress:
            for worker in workers:
                start(worker)
            while playing:
                for connection in wait(list(playing)):
                    worker, i, generator = playing[connection]
                    obs, reward, over = worker.receive()
                    returns[i] += reward
                    if over:
                        del playing[connection]
                        progress.update()
                        start(worker)
                    else:  # always alone: a batch of another size would round differently
                        connection.send(act(obs[None], generator.random(1))[0])
    except BaseException:  # the policy's, or Ctrl-C: answers are left unread, so these workers must not play again
        _kept_workers.cache_clear()
        for worker in workers:
            worker.process.kill()
        raise
    return returns
