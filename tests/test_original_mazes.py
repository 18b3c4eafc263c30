"""AntMaze and maze2d against D4RL's own code and models, fetched and run on today's MuJoCo.

For the import, gym is replaced by gymnasium and gym's MujocoEnv by the class below. What this cannot show is the
difference between MuJoCo 2 and the installed version. `pytest -m slow -s` prints the figures.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import types
import zipfile
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
        mujoco.mj_normalizeQuat(self.model.ptr, self.data.qpos)  # done by mj_forward itself in the original's day
        mujoco.mj_forward(self.model.ptr, self.data)

    def do_simulation(self, control, steps):
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model.ptr, self.data, steps)

    def get_body_com(self, name):
        return self.data.body(name).xpos.copy()

    def state_vector(self):
        return np.concatenate([self.data.qpos, self.data.qvel])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """By task id: what the original registers it with, and a function that makes the environment."""
    folder = tmp_path_factory.mktemp("original")
    command = [sys.executable, "-m", "pip", "download", "d4rl==1.1", "--no-deps", "--dest", str(folder)]
    download = subprocess.run(command, capture_output=True, text=True)
    if download.returncode:
        pytest.skip(f"pip download d4rl==1.1 failed: {download.stderr.strip()[-200:]}")
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)

    package, registration = types.ModuleType("d4rl"), mock.MagicMock()
    package.__path__ = [str(folder / "d4rl")]
    modules = {"gym" + name: sys.modules["gymnasium" + name] for name in ("", ".spaces", ".utils", ".utils.seeding")}
    modules |= {"gym.envs": mock.MagicMock(), "gym.envs.registration": registration, "d4rl": package}
    modules |= {"gym.envs.mujoco": mock.MagicMock(mujoco_env=mock.MagicMock(MujocoEnv=MujocoEnv))}
    modules |= {"mujoco_py": mock.MagicMock(get_version=lambda: "2.1")}
    own_folder = mock.patch.dict(os.environ, D4RL_DATASET_DIR=str(folder))  # else it makes one in the home folder
    with own_folder, mock.patch.dict(sys.modules):  # the latter puts this package back at the end
        for name in [name for name in sys.modules if name.startswith("d4rl.")]:
            del sys.modules[name]
        sys.modules.update(modules)
        loaded = {name: importlib.import_module(name) for name in ("d4rl.locomotion.ant", "d4rl.pointmaze")}

    def make(found):
        module, name = found["entry_point"].split(":")
        with mock.patch.object(tempfile, "tempdir", str(folder)):  # it leaves its models there
            return getattr(loaded[module], name)(**found["kwargs"])

    calls = [call.kwargs for call in registration.register.call_args_list]
    return {found["id"]: (found, lambda found=found: make(found)) for found in calls}


def pair(original, env_id):
    """Our environment and the original's, unwrapped but for the original's scaling of the ant's actions."""
    return gymnasium.make(env_id).unwrapped, original[env_id][1]()


# --- ids and mazes ---
def test_registration(original):
    """Horizons, scores, files, and the mazes cell by cell."""
    for env_id in (*ANTMAZE, *MAZE2D.values()):
        found, spec = original[env_id][0], d4rl.task(env_id)
        kwargs = found["kwargs"]
        assert spec.max_episode_steps == found["max_episode_steps"] == gymnasium.spec(env_id).max_episode_steps
        assert (spec.ref_min, spec.ref_max) == (kwargs["ref_min_score"], kwargs["ref_max_score"])
        assert spec.url == kwargs["dataset_url"]
        assert kwargs["reward_type"] == "sparse"
        if env_id in ANTMAZE:
            assert (kwargs["eval"], kwargs["v2_resets"], kwargs["non_zero_reset"]) == (True, True, False)
            assert kwargs["maze_size_scaling"] == antmaze.CELL
            walls, goal = antmaze.MAZES[env_id.split("-")[1]]
            theirs, special = kwargs["maze_map"], {(1, 1): "r", goal: "g"}
        else:
            assert kwargs["reset_target"] is False
            walls, goal = environments.MAZES[env_id.split("-")[1]]
            theirs, special = kwargs["maze_spec"].strip("\\").split("\\"), {goal: "G"}
            theirs = [[{"#": 1, "O": 0}.get(cell, cell) for cell in row] for row in theirs]
        assert np.shape(walls) == np.shape(theirs)
        for (row, column), wall in np.ndenumerate(walls):
            assert theirs[row][column] == special.get((row, column), wall), (env_id, row, column)


def test_play_and_diverse_are_one_environment(original):
    for maze in ANT:
        names = [name for name in ANTMAZE if f"-{maze}-" in name]
        kwargs = [original[name][0]["kwargs"] | {"dataset_url": ""} for name in names]
        assert len(names) == 2 and kwargs[0] == kwargs[1]


# --- the ant ---
LOOKS = (
    "cam_",
    "site_",
    "mat_",
    "tex_",
    "geom_rgba",
    "name",
    "bvh_",
)  # bvh: the order of the geoms, not where they are
SCALE = ("actuator_gear", "actuator_ctrlrange", "actuator_acc0")  # 30 times [-1, 1] here, 1 times [-30, 30] there


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
    np.testing.assert_array_equal(*[model.actuator_gear[:, :1] * model.actuator_ctrlrange for model in (ours, theirs)])


@pytest.mark.parametrize("maze", ANT)
def test_ant_resets(original, maze):
    ours, theirs = pair(original, ANT[maze])
    np.random.seed(0)  # noqa: NPY002, the original's goals come from numpy's global generator
    starts, goals = [[], []], [[], []]
    for seed in range(1000):
        starts[0].append(ours.reset(seed=seed)[0])
        goals[0].append(ours.goal)
        starts[1].append(theirs.reset())
        goals[1].append(theirs.target_goal)
    for mine, other in (np.array(starts), np.array(goals)):
        assert mine.shape == other.shape
        probabilities = ks_2samp(mine, other).pvalue
        assert probabilities.min() > 1e-3, probabilities
    norms = np.linalg.norm(np.array(starts)[:, :, 3:7], axis=2)
    np.testing.assert_allclose(norms, 1, atol=1e-12)
    for name, drawn in zip(("ours", "original"), np.round(goals, 2), strict=True):
        print(
            f"antmaze {maze}: goals from {drawn.min(axis=0)} to {drawn.max(axis=0)}, mean {drawn.mean(axis=0)}, {name}"
        )


def place(ours, theirs, rng, maze):
    """Put both ants into one state: in any free cell, turned, moving, often at a wall; the goal often near."""
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


def ant_at_wall(ours):
    return (ours.ant.model.geom_type[ours.ant.data.contact.geom] == mujoco.mjtGeom.mjGEOM_BOX).any()


@pytest.mark.parametrize("maze", ANT)
def test_ant_steps(original, maze):
    """Random actions, every 20 steps from a new state."""
    ours, theirs = pair(original, ANT[maze])
    rng, differences, at_walls, successes = np.random.default_rng(0), [], 0, 0
    for step in range(STEPS):
        if step % 20 == 0:
            place(ours, theirs, rng, maze)
        action = rng.uniform(-1.2, 1.2, 8)  # beyond 1: clipped by both
        observation, reward, terminated, truncated, info = ours.step(action)
        other, other_reward, done, _ = theirs.step(action)
        differences.append(np.abs(observation - other).max())
        assert (reward, terminated, truncated, info["success"]) == (other_reward, done, False, done)
        successes += reward
        at_walls += ant_at_wall(ours)
    print(
        f"antmaze {maze}: {max(differences):.1e} over {STEPS} steps, {at_walls} at walls, {successes:.0f} at the goal"
    )
    assert max(differences) < 1e-9
    assert at_walls > 20 and 20 < successes < STEPS - 20


@pytest.mark.parametrize("maze", ANT)
def test_ant_left_alone(original, maze):
    """From five states, never put right: rounding, which the order of the walls changes, grows as chaos does."""
    ours, theirs = pair(original, ANT[maze])
    rng, differences, at_walls = np.random.default_rng(0), np.zeros((5, STEPS)), 0
    for start in range(5):
        place(ours, theirs, rng, maze)
        for step in range(STEPS):
            action = rng.uniform(-1, 1, 8)
            differences[start, step] = np.abs(ours.step(action)[0] - theirs.step(action)[0]).max()
            at_walls += ant_at_wall(ours)
    after = {steps: f"{differences[:, :steps].max():.1e}" for steps in (20, 100, 200, STEPS)}
    print(f"antmaze {maze}, left alone: largest difference within n steps {after}, {at_walls} steps at walls")
    assert differences[:, :20].max() < 1e-9


# --- the ball ---
@pytest.mark.parametrize("maze", MAZE2D)
def test_ball_resets(original, maze):
    ours, theirs = pair(original, MAZE2D[maze])
    mine = np.array([ours.reset(seed=seed)[0] for seed in range(2000)])
    other = np.array([theirs.reset() for _ in range(2000)])
    cells = [np.unique(np.round(starts[:, :2]), axis=0) for starts in (mine, other)]
    np.testing.assert_array_equal(*cells)
    assert ks_2samp(mine, other).pvalue.min() > 1e-3
    assert ks_2samp(*[(starts - np.round(starts))[:, :2] for starts in (mine, other)]).pvalue.min() > 1e-3
    np.testing.assert_array_equal(ours.goal, theirs.get_target())


@pytest.mark.parametrize("maze", MAZE2D)
@pytest.mark.parametrize("alone", [False, True], ids=["put right", "left alone"])
def test_ball_steps(original, maze, alone):
    """Random pushes, each held for ten steps, from 20 starts; the original's ball put at ours every step, or never."""
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
    how = "left alone" if alone else "put right"
    print(
        f"maze2d {maze}, {how}: largest difference {differences.max():.1e}, within 100 steps "
        f"{differences[:, :100].max():.1e}; {at_walls} of {differences.size} steps at walls, "
        f"{rewards:.0f} at the goal, {mismatches} rewards differ"
    )
    assert at_walls > 1000 and rewards > 100
    if alone:  # every impact multiplies rounding errors by ten or so
        assert differences[:, :100].max() < 1e-9
    else:
        assert differences.max() < 1e-9 and mismatches == 0
