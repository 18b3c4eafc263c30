"""Playing episodes of a task, the way every script and baseline is evaluated."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path

import gymnasium
import numpy as np
from tqdm import tqdm

from d4rl import minari_datasets, robomimic_tasks
from d4rl.tasks import DatasetError, Task, task

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


def playable_task(env_id: str) -> Task:
    """The facts of a task, once its simulator is known to be here: a script asks before it trains for hours."""
    spec = task(env_id)
    if spec.is_minari:
        minari_datasets.make(env_id).close()
    elif spec.is_robomimic:
        robomimic_tasks.check_robosuite()
    return spec


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
        env = _recorded(spec.env_id, h5path, Path(video_folder, "videos"))
        returns |= _play_here([env], act, todo[:1], seed)
        env.close()
        todo = todo[1:]
    if todo and spec.env_id.startswith(SPREAD):
        returns |= _play_spread(_workers(spec.env_id, h5path, _processes(episodes)), act, todo, seed)
    elif todo:
        returns |= _play_here(_environments(spec.env_id, episodes)[: len(todo)], act, todo, seed)
    return [returns[i] for i in range(episodes)]


# --- in this process ---
@cache
def _environments(env_id: str, count: int) -> list[gymnasium.Env]:
    """Kept from one evaluation to the next: compiling twenty MuJoCo models takes seconds."""
    return [make(env_id) for _ in range(count)]


def _recorded(env_id: str, h5path: str | Path | None, folder: Path) -> gymnasium.Env:
    """An environment that records its episodes. Without OpenGL, each of MuJoCo's back ends fails in its own way."""
    try:
        env = make(env_id, h5path, render_mode="rgb_array")
        env.reset()
        env.render()
    except DatasetError:
        raise
    except Exception as error:
        advice = "on a machine without a screen, install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
        raise DatasetError(f"A video needs OpenGL, and MuJoCo cannot use it here ({error}): {advice}") from error
    return gymnasium.wrappers.RecordVideo(env, str(folder), name_prefix=env_id.replace("/", "-"))


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

    def receive(self):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            _workers.cache_clear()
            code = self.process.wait()
            raise RuntimeError(f"A process that plays episodes has died (exit code {code}).") from None
        if isinstance(answer, Exception):
            _workers.cache_clear()
            raise answer
        return answer


@cache
def _workers(env_id: str, h5path: str | Path | None, count: int) -> list[_Worker]:
    """Kept from one evaluation to the next; they end with this process."""
    return [_Worker(env_id, h5path) for _ in range(count)]


def _work(descriptor: int):
    """A worker's life. It is sent seeds and actions, and answers with (observation, reward, over)."""
    connection = Connection(descriptor)
    try:
        env = make(*connection.recv())
        low, high = env.action_space.low, env.action_space.high
        while True:
            message = connection.recv()
            if isinstance(message, int):
                obs, _ = env.reset(seed=message)
                connection.send((obs, 0.0, False))
            else:
                obs, reward, terminated, truncated, _ = env.step(np.clip(message, low, high))
                connection.send((obs, reward, terminated or truncated))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone
    except Exception as error:
        connection.send(error)


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
        _workers.cache_clear()
        for worker in workers:
            worker.process.kill()
        raise
    return returns
