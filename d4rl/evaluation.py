"""Playing episodes of a task, the way every script and baseline is evaluated."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np

from d4rl.data import DatasetError, task


@cache
def _environments(env_id: str, count: int) -> list[gymnasium.Env]:
    """Kept from one evaluation to the next: compiling twenty MuJoCo models takes seconds."""
    return [gymnasium.make(env_id) for _ in range(count)]


def _recorded(env_id: str, folder: Path) -> gymnasium.Env:
    """An environment that records its episodes. Without OpenGL, each of MuJoCo's back ends fails in its own way."""
    try:
        env = gymnasium.make(env_id, render_mode="rgb_array")
        env.reset()
        env.render()
    except Exception as error:
        advice = "on a machine without a screen, install libegl1 or libosmesa6 and set MUJOCO_GL to egl or osmesa."
        raise DatasetError(f"A video needs OpenGL, and MuJoCo cannot use it here ({error}): {advice}") from error
    return gymnasium.wrappers.RecordVideo(env, str(folder), name_prefix=env_id.replace("/", "-"))


def evaluate(
    env_id: str, act: Callable[[np.ndarray], np.ndarray], episodes: int, seed: int, video_folder: Path | None = None
) -> list[float]:
    """Undiscounted returns of `episodes` episodes, played in lock step.

    Args:
        act: maps observations (B, observation_size) to actions (B, action_size). One call serves all episodes that
            still run, so B shrinks as they end. Actions are clipped to the action space.
        seed: episode i is reset with seed 1000 * seed + i, and always in the same environment: the same policy gets the
            same returns again.
        video_folder: record the first episode as an mp4 in its folder videos/. Needs OpenGL.

    Raises:
        DatasetError: unknown task, or no OpenGL to record with.
    """
    envs = list(_environments(task(env_id).env_id, episodes))
    if video_folder:
        envs[0] = _recorded(env_id, Path(video_folder, "videos"))
    low, high = envs[0].action_space.low, envs[0].action_space.high
    obs = np.stack([env.reset(seed=1000 * seed + i)[0] for i, env in enumerate(envs)])
    returns, running = np.zeros(episodes), np.arange(episodes)
    while len(running):
        over = np.zeros(len(running), dtype=bool)
        for j, action in enumerate(np.clip(act(obs[running]), low, high)):
            i = running[j]
            obs[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += reward
            over[j] = terminated or truncated
        running = running[~over]
    if video_folder:
        envs[0].close()
    return returns.tolist()
