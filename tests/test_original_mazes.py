"""AntMaze and maze2d against D4RL's own code and models, fetched and run on today's MuJoCo.

For the import, gym is replaced by gymnasium and gym's MujocoEnv by the class below. What this cannot show is
the difference between MuJoCo 2 and the installed version. `pytest -m slow -s` prints the figures.
"""

import collections
import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
import types
import zipfile
from functools import partial
from pathlib import Path
from unittest import mock

import gymnasium
import mujoco
import numpy as np
import pytest
from scipy.stats import ks_2samp

import d4rl
from d4rl import antmaze, environments

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*precision lowered")]
ANTMAZE = [name for name in d4rl.tasks.TASKS if name.startswith("antmaze")]
ANT = {"umaze": "antmaze-umaze-v2", "medium": "antmaze-medium-play-v2", "large": "antmaze-large-play-v2"}
MAZE2D = {"umaze": "maze2d-umaze-v1", "medium": "maze2d-medium-v1", "large": "maze2d-large-v1"}
STEPS = 500


class Model:
    """A MuJoCo model with the one method of mujoco-py's that is called."""

    def __init__(self, path):
        self.ptr = mujoco.MjModel.from_xml_path(path)

    def __getattr__(self, name):
        return getattr(self.ptr, name)

    def site_name2id(self, name):
        return self.ptr.site(name).id


class MujocoEnv(gymnasium.Env):
    """What the original uses of gym's class of this name."""

    def __init__(self, model_path, frame_skip):
        self.model, self.frame_skip = Model(model_path), frame_skip
        self.data = mujoco.MjData(self.model.ptr)
        self.sim = types.SimpleNamespace(data=self.data)
        self.init_qpos, self.init_qvel = self.data.qpos.copy(), self.data.qvel.copy()
        self.np_random = np.random.RandomState(0)
        self.action_space = gymnasium.spaces.Box(*self.model.actuator_ctrlrange.T.astype(np.float32))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, self._get_obs().shape, np.float64)

    @property
    def dt(self):
        return self.model.opt.timestep * self.frame_skip

    def reset(self):
        mujoco.mj_resetData(self.model.ptr, self.data)
        return self.reset_model()

    def set_state(self, positions, velocities):
        self.data.qpos[:], self.data.qvel[:] = positions, velocities
        mujoco.mj_normalizeQuat(self.model.ptr, self.data.qpos)  # mj_forward did it in the original's day
        mujoco.mj_forward(self.model.ptr, self.data)

    def do_simulation(self, control, steps):
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model.ptr, self.data, steps)

    def get_body_com(self, name):
        return self.data.body(name).xpos.copy()

    def state_vector(self):
        return np.concatenate([self.data.qpos, self.data.qvel])


@contextlib.contextmanager
def original_package(folder: Path, modules: dict, *names: str):
    """The original's modules of these names, from PyPI, and by task id how they register it.

    `modules` stand for what the original needs and the installed packages do not have.
    """
    command = [sys.executable, "-m", "pip", "download", "d4rl==1.1", "--no-deps", "--dest", str(folder)]
    download = subprocess.run(command, capture_output=True, text=True)
    if download.returncode:
        pytest.skip(f"pip download d4rl==1.1 failed: {download.stderr.strip()[-200:]}")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    # Today's MuJoCo refuses to rename its main default class: nest the class "kettle" below it. All that came
    # to depend on it in the original is the floor's colour group.
    kettle = folder / "d4rl/kitchen/adept_models/kitchen/assets/kettle_asset.xml"
    text = kettle.read_text().replace('<default class="kettle">', '<default><default class="kettle">')
    kettle.write_text(text.replace("</mujocoinclude>", "</default></mujocoinclude>"))

    package, registration = types.ModuleType("d4rl"), mock.MagicMock()
    package.__path__ = [str(folder / "d4rl")]
    names_of_gym = ("", ".spaces", ".utils", ".utils.seeding")
    own = {"gym" + name: sys.modules["gymnasium" + name] for name in names_of_gym}
    own |= {"gym.envs": mock.MagicMock(), "gym.envs.registration": registration, "d4rl": package}
    python_3_9 = mock.patch.object(collections, "Mapping", collections.abc.Mapping, create=True)
    folders = mock.patch.dict(os.environ, D4RL_DATASET_DIR=str(folder))  # else it makes one at home
    with folders, python_3_9, mock.patch.dict(sys.modules):  # the last puts this package back at the end
        for name in [name for name in sys.modules if name.startswith("d4rl.")]:
            del sys.modules[name]
        sys.modules.update(own | modules)
        loaded = {name: importlib.import_module(name) for name in names}
        calls = [call.kwargs for call in registration.register.call_args_list]
        yield loaded, {found["id"]: found for found in calls}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """By task id: what the original registers it with, and a function that makes the environment."""
    folder = tmp_path_factory.mktemp("original")
    modules = {"gym.envs.mujoco": mock.MagicMock(mujoco_env=mock.MagicMock(MujocoEnv=MujocoEnv))}
    modules |= {"mujoco_py": mock.MagicMock(get_version=lambda: "2.1")}
    with original_package(folder, modules, "d4rl.locomotion.ant", "d4rl.pointmaze") as (loaded, registered):
        pass

    def make(found):
        module, name = found["entry_point"].split(":")
        with mock.patch.object(tempfile, "tempdir", str(folder)):  # it leaves its models there
            return getattr(loaded[module], name)(**found["kwargs"])

    return {env_id: (found, partial(make, found)) for env_id, found in registered.items()}


def pair(original, env_id):
    """Our environment and the original's, unwrapped but for the original's scaling of the ant's actions."""
    return gymnasium.make(env_id).unwrapped, original[env_id][1]()


# --- ids and mazes ---
def test_registration(original):
    """Horizons, scores, files, and the mazes cell by cell."""
    for env_id in (*ANTMAZE, *MAZE2D.values()):
        found, spec = original[env_id][0], d4rl.task(env_id)
        kwargs = found["kwargs"]
        assert spec.max_episode_steps == found["max_episode_steps"]
        assert (spec.ref_min, spec.ref_max) == (kwargs["ref_min_score"], kwargs["ref_max_score"])
        assert spec.url == kwargs["dataset_url"]
        assert kwargs["reward_type"] == "sparse"
        if env_id in ANTMAZE:
            assert (kwargs["eval"], kwargs["v2_resets"], kwargs["non_zero_reset"]) == (True, True, False)
            assert kwargs["maze_size_scaling"] == antmaze.CELL
            walls, goal = antmaze.MAZES[env_id.split("-")[1]]
            theirs, special = kwargs["maze_map"], {(1, 1): "r", goal: "g"}
            other = original.get(env_id.replace("-diverse", "-play"), original[env_id])[0]["kwargs"]
            assert kwargs | {"dataset_url": ""} == other | {"dataset_url": ""}  # play and diverse are one
        else:
            assert kwargs["reset_target"] is False
            walls, goal = environments.MAZES[env_id.split("-")[1]]
            theirs, special = kwargs["maze_spec"].strip("\\").split("\\"), {goal: "G"}
            theirs = [[{"#": 1, "O": 0}.get(cell, cell) for cell in row] for row in theirs]
        assert np.shape(walls) == np.shape(theirs)
        for (row, column), wall in np.ndenumerate(walls):
            assert theirs[row][column] == special.get((row, column), wall), (env_id, row, column)


@pytest.mark.parametrize("env_id", [*ANT.values(), *MAZE2D.values()])
def test_resets(original, env_id):
    """Starts and goals are drawn alike."""
    ours, theirs = pair(original, env_id)
    np.random.seed(0)  # noqa: NPY002, the original's goals come from numpy's global generator
    drawn = []
    for seed in range(1000):
        mine, other = ours.reset(seed=seed)[0], theirs.reset()
        goal = theirs.target_goal if env_id in ANTMAZE else theirs.get_target()
        drawn.append([np.append(mine, ours.goal), np.append(other, goal)])
    mine, other = np.array(drawn).swapaxes(0, 1)
    assert ks_2samp(mine, other).pvalue.min() > 1e-3
    np.testing.assert_array_equal(*[np.unique(np.round(rows[:, :2]), axis=0) for rows in (mine, other)])
    assert ks_2samp(*[rows[:, :2] - np.round(rows[:, :2]) for rows in (mine, other)]).pvalue.min() > 1e-3


# --- the ant ---
LOOKS = ("cam_", "site_", "mat_", "tex_", "geom_rgba", "name", "bvh_")  # bvh: the order of the geoms
SCALE = ("actuator_gear", "actuator_ctrlrange", "actuator_acc0")  # 30 times [-1, 1], 1 times [-30, 30]


@pytest.mark.parametrize("maze", ANT)
def test_ant_model(original, maze):
    """Every number of the compiled models, but for looks, units and the order of the walls."""
    ours, theirs = pair(original, ANT[maze])
    ours, theirs = ours.ant.model, theirs.model.ptr
    orders = [np.lexsort((*model.geom_pos.T, model.geom_bodyid)) for model in (ours, theirs)]
    compared = 0
    for name in dir(ours):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if isinstance(mine, np.ndarray) and not name.startswith(("_", *LOOKS, *SCALE)):
            if name.startswith("geom_"):
                mine, other = mine[orders[0]], other[orders[1]]
            np.testing.assert_array_equal(mine, other, name)
            compared += 1
    assert compared > 100
    for name in dir(ours.opt):
        if not name.startswith("_") and not callable(getattr(ours.opt, name)):
            np.testing.assert_array_equal(getattr(ours.opt, name), getattr(theirs.opt, name), name)
    torques = [model.actuator_gear[:, :1] * model.actuator_ctrlrange for model in (ours, theirs)]
    np.testing.assert_array_equal(*torques)


def place(ours, theirs, rng, maze):
    """Put both ants into one state: in any free cell, turned, moving, often at a wall or near the goal."""
    ours.reset()
    theirs.reset()
    cell = rng.choice(np.argwhere(np.array(antmaze.MAZES[maze][0]) == 0))
    position = antmaze.CELL * (cell[::-1] - 1) + rng.uniform(-1.6, 1.6, 2)
    half = rng.uniform(0, np.pi)  # of the angle that the ant is turned by
    qpos = [*position, rng.uniform(0.5, 0.8), np.cos(half), 0, 0, np.sin(half), *rng.uniform(-0.5, 0.5, 8)]
    qvel = rng.standard_normal(14)
    ours.ant.set_state(np.array(qpos), qvel)
    theirs.set_state(qpos, qvel)
    ours.goal = rng.choice([position + rng.uniform(-0.7, 0.7, 2), ours.goal])
    theirs.set_target(ours.goal)


@pytest.mark.parametrize("maze", ANT)
@pytest.mark.parametrize("alone", [False, True], ids=["put right", "left alone"])
def test_ant_steps(original, maze, alone):
    """Random actions; every 20 steps from a new state, or never put right: rounding grows as chaos does."""
    ours, theirs = pair(original, ANT[maze])
    rng, differences = np.random.default_rng(0), np.zeros((5 if alone else 1, STEPS))
    at_walls = successes = 0
    for start, step in np.ndindex(differences.shape):
        if step % (STEPS if alone else 20) == 0:
            place(ours, theirs, rng, maze)
        action = rng.uniform(-1, 1, 8) * (1 if alone else 1.2)  # beyond 1: clipped by both
        observation, reward, terminated, truncated, info = ours.step(action)
        other, other_reward, done, _ = theirs.step(action)
        differences[start, step] = np.abs(observation - other).max()
        at_walls += (ours.ant.model.geom_type[ours.ant.data.contact.geom] == mujoco.mjtGeom.mjGEOM_BOX).any()
        successes += reward
        if not alone:
            assert (reward, terminated, truncated, info["success"]) == (other_reward, done, False, done)
    after = {steps: f"{differences[:, :steps].max():.1e}" for steps in (20, 100, 200, STEPS)}
    how = "left alone" if alone else "put right"
    print(f"antmaze {maze}, {how}: {at_walls} steps at walls, {successes:.0f} at the goal;", end=" ")
    print(f"largest difference within n steps {after}")
    assert differences[:, : 20 if alone else STEPS].max() < 1e-9
    assert alone or (at_walls > 20 and 20 < successes < STEPS - 20)


# --- the ball ---
@pytest.mark.parametrize("maze", MAZE2D)
@pytest.mark.parametrize("alone", [False, True], ids=["put right", "left alone"])
def test_ball_steps(original, maze, alone):
    """Random pushes, each held for ten steps; the original's ball is put at ours every step, or never."""
    ours, theirs = pair(original, MAZE2D[maze])
    rng, differences, at_walls, rewards, mismatches = np.random.default_rng(0), np.zeros((20, STEPS)), 0, 0, 0
    for start in range(20):
        observation, _ = ours.reset(seed=start)
        theirs.reset()
        theirs.set_state(observation[:2], observation[2:])
        for step in range(STEPS):
            if step % 10 == 0:
                action = rng.uniform(-1.2, 1.2, 2)  # beyond 1: clipped by both
            if not alone:
                theirs.set_state(observation[:2], observation[2:])
            observation, reward, terminated, truncated, info = ours.step(action)
            other, other_reward, done, _ = theirs.step(action)
            differences[start, step] = np.abs(observation - other).max()
            mismatches += reward != other_reward
            assert (terminated, truncated, info["success"]) == (done, False, bool(reward))
            at_walls += ours.ball.data.ncon > 1  # one is the floor
            rewards += reward
    after = {steps: f"{differences[:, :steps].max():.1e}" for steps in (100, STEPS)}
    how = "left alone" if alone else "put right"
    print(f"maze2d {maze}, {how}: {at_walls} steps at walls, {rewards:.0f} at the goal;", end=" ")
    print(f"largest difference within n steps {after}, {mismatches} rewards differ")
    assert at_walls > 1000 and rewards > 100
    # Left alone, every impact multiplies rounding errors by ten or so.
    assert differences[:, : 100 if alone else STEPS].max() < 1e-9 and (alone or mismatches == 0)
