import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripts are not a package
from common import HOPPER, dataset, run

import d4rl

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_gpu(request, monkeypatch):
    """The tests are the same on every machine; what needs a GPU is in test_gpu.py."""
    if request.module.__name__ != "test_gpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # in other processes


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """`finished(script)`: the folder of a tiny run, made when first asked for, and the flags of its data."""
    made = {}

    def get(script):
        if script not in made:
            folder = tmp_path_factory.mktemp(script.replace("/", "_"))
            flags = ["--env-id", HOPPER, "--dataset-path", str(dataset(folder / "data.hdf5"))]
            made[script] = run(script, folder, *flags), flags
        return made[script]

    return get


@pytest.fixture
def pendulum(tmp_path, monkeypatch):
    """Flags of a task with actions in [-2, 2], in the data all 1.8; its third entry never changes."""
    env_id, entry = "pendulum-mine-v0", "gymnasium.envs.classic_control:PendulumEnv"
    task = d4rl.Task(env_id, 3, 1, 200, -1600.0, -150.0, None, None, "pendulum-mine-v0.hdf5")
    monkeypatch.setitem(d4rl.tasks.TASKS, env_id, task)
    gymnasium.register(env_id, entry, max_episode_steps=200, disable_env_checker=True)
    rows = np.random.default_rng(0).uniform(-1, 1, (400, 3)).astype(np.float32)
    rows[:, 2] = 5.3
    arrays = {"observations": rows, "actions": np.full((400, 1), 1.8, np.float32)}
    yield [
        "--env-id",
        env_id,
        "--dataset-path",
        str(dataset(tmp_path / "pendulum.hdf5", env_id, 400, **arrays)),
    ]
    del gymnasium.registry[env_id]
