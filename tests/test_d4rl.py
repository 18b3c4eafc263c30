"""The d4rl package: files, transitions, scores and environments against hand-made data and formulas."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import gymnasium_robotics
import h5py
import numpy as np
import pytest

import d4rl
from d4rl import DatasetError

gymnasium.register_envs(gymnasium_robotics)
pytestmark = pytest.mark.filterwarnings("ignore:.*out of date")  # pytest takes away the filter that d4rl sets

ROOT = Path(d4rl.__file__).parents[1]
HOPPER = "hopper-medium-v2"  # observations 11, actions 3, horizon 1000
PEN = "pen-human-v1"  # observations 45, actions 24, horizon 100
DEMOS = "maze2d-large-demos-v0"
ONE_PER_ENVIRONMENT = [
    HOPPER,
    "halfcheetah-expert-v2",
    "walker2d-random-v2",
    PEN,
    "door-cloned-v0",
    "hammer-expert-v1",
    "relocate-human-v0",
    "maze2d-large-v1",
    DEMOS,
]


def arrays(rows: int, env_id: str = HOPPER, seed: int = 0) -> dict[str, np.ndarray]:
    """Random data in D4RL's format; about one row in ten is terminal, one in ten a time-out."""
    rng, spec = np.random.default_rng(seed), d4rl.task(env_id)
    return {
        "observations": rng.standard_normal((rows, spec.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, spec.action_size)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": rng.random(rows) < 0.1,
        "timeouts": rng.random(rows) < 0.1,
    }


def write(path: Path, data: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            file[key] = values
    return path


# --- tasks and scores ---
def test_tasks():
    assert len(d4rl.TASKS) == 64
    door = d4rl.task("door-human-v0")
    assert (door.observation_size, door.action_size, door.max_episode_steps) == (39, 28, 200)
    assert (door.bytes, door.path) == (3118318, "hand_dapg/door-v0_demos_clipped.hdf5")
    assert door.url == "http://rail.eecs.berkeley.edu/datasets/offline_rl/hand_dapg/door-v0_demos_clipped.hdf5"
    assert d4rl.task("relocate-human-v1").bytes is None
    with pytest.raises(DatasetError, match="hoper-medium-v2.*did you mean hopper-medium-v2"):
        d4rl.task("hoper-medium-v2")
    with pytest.raises(DatasetError, match="python -m d4rl list"):
        d4rl.task("zzz")


def test_normalized_score_is_a_fraction():
    assert d4rl.get_normalized_score(HOPPER, 3234.3) == 1.0
    assert d4rl.get_normalized_score(HOPPER, -20.272305) == 0.0
    assert d4rl.get_normalized_score("halfcheetah-medium-v2", 5000.0) == pytest.approx(5280.178953 / 12415.178953)
    np.testing.assert_allclose(d4rl.get_normalized_score("pen-human-v1", [96.262799, 3076.8331017826877]), [0, 1])


# --- datasets ---
def test_get_dataset_types_and_shapes(tmp_path):
    data = arrays(7)
    stored = {**data, "observations": data["observations"].astype(np.float64), "infos/goal": np.zeros((7, 2))}
    stored |= {"rewards": data["rewards"][:, None], "terminals": data["terminals"][:, None].astype(np.uint8)}
    loaded = d4rl.get_dataset(HOPPER, write(tmp_path / "data.hdf5", stored))
    assert set(loaded) == set(data)
    for key, values in loaded.items():
        assert values.dtype == data[key].dtype
        np.testing.assert_array_equal(values, data[key])
    del stored["timeouts"]
    assert "timeouts" not in d4rl.get_dataset(HOPPER, str(write(tmp_path / "data.hdf5", stored)))


def test_default_path(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert d4rl.task(HOPPER).default_path == tmp_path / "hopper_medium-v2.hdf5"
    write(tmp_path / "hopper_medium-v2.hdf5", arrays(5))
    with pytest.raises(DatasetError, match="not 5bdf1bc4.* as published: delete it"):  # more in test_downloads.py
        d4rl.get_dataset(HOPPER)
    monkeypatch.delenv("D4RL_DATASET_DIR")
    assert d4rl.task(HOPPER).default_path == Path.home() / ".d4rl" / "datasets" / "hopper_medium-v2.hdf5"


BAD_ARRAYS = {
    "foreign": (
        {"observations": None, "terminals": None, "data/x": np.zeros(2)},
        "lacks observations, terminals .*data",
    ),
    "text": ({"actions": np.array([[b"x"] * 3] * 9)}, "actions.*not numbers"),
    "nan": ({"rewards": np.r_[np.nan, np.zeros(6), np.inf, 0]}, "rewards.*2 of 9 rows"),
    "nan in a row": ({"actions": np.r_[[[np.nan] * 3], np.zeros((8, 3))]}, "actions.*1 of 9 rows"),
    "too large for float32": ({"rewards": np.full(9, 1e300)}, "rewards.*9 of 9 rows"),
    "row counts": ({"rewards": np.zeros(8)}, r"observations 9, actions 9, rewards 8"),
    "other task": (
        {"observations": np.zeros((9, 17))},
        r"\(9, 17\).*hopper-medium-v2.*did you mean another --env-id\?",
    ),
    "other actions": ({"actions": np.zeros((9, 6))}, r"actions.*\(9, 6\).*did you mean another --env-id\?"),
    "rewards (N, 2)": ({"rewards": np.zeros((9, 2))}, r"rewards has shape \(9, 2\)"),
    "no rows": ({key: values[:0] for key, values in arrays(1).items()}, "no rows"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(tmp_path, changes, message):
    data = {key: values for key, values in (arrays(9) | changes).items() if values is not None}
    path = write(tmp_path / "data.hdf5", data)
    with pytest.raises(DatasetError, match=message) as error:
        d4rl.get_dataset(HOPPER, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    if "data/x" not in data:  # the same for arrays that were not read from a file
        with pytest.raises(DatasetError, match=message):
            d4rl.qlearning_dataset(HOPPER, dataset=data)


def test_bad_files(tmp_path):
    path = write(tmp_path / "data.hdf5", arrays(500))
    contents = path.read_bytes()
    cases = {
        b"": "empty",
        b"some text\n": "not an HDF5 file",
        contents[:2000]: "incomplete",
        contents[:-500]: "incomplete",
    }
    for stored, message in cases.items():
        path.write_bytes(stored)
        with pytest.raises(DatasetError, match=message) as error:
            d4rl.get_dataset(HOPPER, path)
        assert "\n" not in str(error.value)
        assert error.value.__cause__ is None  # no h5py traceback
        assert error.value.__suppress_context__ or error.value.__context__ is None
    for missing in (tmp_path / "nowhere.hdf5", tmp_path):
        with pytest.raises(DatasetError, match="no readable file.*check the path"):
            d4rl.get_dataset(HOPPER, missing)


# --- transitions and episodes ---
def transitions_by_loop(data, horizon, terminate_on_end):
    """Row by row, as D4RL defines them: (rows kept, their terminal flags)."""
    rows, flags, step = [], [], 0
    for i in range(len(data["rewards"]) - 1):
        step += 1
        timeout = data["timeouts"][i] if "timeouts" in data else step == horizon
        if timeout or data["terminals"][i]:
            step = 0
        if timeout and not terminate_on_end:
            continue
        rows.append(i)
        flags.append(data["terminals"][i] or timeout)
    return np.array(rows), np.array(flags)


@pytest.mark.parametrize("terminate_on_end", [False, True])
@pytest.mark.parametrize("has_timeouts", [False, True])
@pytest.mark.parametrize("terminals", ["some", "none"])
def test_qlearning_dataset_equals_a_loop(has_timeouts, terminate_on_end, terminals):
    data = arrays(1500, PEN)
    data["terminals"] &= np.random.default_rng(1).random(1500) < 0.1  # some episodes reach pen's horizon of 100
    if terminals == "none":
        data["terminals"][:] = False
    if not has_timeouts:
        del data["timeouts"]
    rows, flags = transitions_by_loop(data, 100, terminate_on_end)
    result = d4rl.qlearning_dataset(PEN, dataset=data, terminate_on_end=terminate_on_end)
    assert len(rows) < 1499 or terminate_on_end  # something was dropped
    np.testing.assert_array_equal(result["observations"], data["observations"][rows])
    np.testing.assert_array_equal(result["actions"], data["actions"][rows])
    np.testing.assert_array_equal(result["rewards"], data["rewards"][rows])
    np.testing.assert_array_equal(result["next_observations"], data["observations"][rows + 1])
    np.testing.assert_array_equal(result["terminals"], flags)
    assert result["terminals"].dtype == bool and result["next_observations"].dtype == np.float32


def test_qlearning_dataset_by_hand(tmp_path):
    data = arrays(6)
    data["terminals"] = np.array([0, 1, 0, 0, 0, 1])
    data["timeouts"] = np.array([0, 0, 0, 1, 0, 0])
    result = d4rl.qlearning_dataset(HOPPER, write(tmp_path / "data.hdf5", data))
    np.testing.assert_array_equal(result["rewards"], data["rewards"][[0, 1, 2, 4]])  # no time-out, no last row
    np.testing.assert_array_equal(result["terminals"], [False, True, False, False])
    np.testing.assert_array_equal(result["next_observations"], data["observations"][[1, 2, 3, 5]])
    with pytest.raises(DatasetError, match="0 of the at least 2 transitions"):
        d4rl.qlearning_dataset(HOPPER, dataset=arrays(1))


def test_episode_returns():
    data = arrays(7) | {"rewards": np.array([1, 2, 4, 8, 16, 32, 64.0])}
    data["terminals"] = np.array([0, 1, 0, 0, 0, 0, 0], bool)
    data["timeouts"] = np.array([0, 0, 0, 0, 1, 0, 0], bool)
    np.testing.assert_array_equal(d4rl.episode_returns(HOPPER, data), [3, 28])  # the tail has not finished
    data["terminals"][:] = data["timeouts"][:] = False
    np.testing.assert_array_equal(d4rl.episode_returns(HOPPER, data), [127])
    counted = {key: values for key, values in arrays(250, PEN).items() if key != "timeouts"}
    counted |= {"terminals": np.arange(250) == 29, "rewards": np.ones(250)}
    np.testing.assert_array_equal(d4rl.episode_returns(PEN, counted), [30, 100, 100])


# --- environments ---
@pytest.mark.parametrize("env_id", ONE_PER_ENVIRONMENT)
def test_sizes_horizon_and_reproducible_reset(env_id):
    spec, runs = d4rl.task(env_id), []
    env = gymnasium.make(env_id)
    assert env.observation_space.shape == (spec.observation_size,)
    assert env.action_space.shape == (spec.action_size,)
    assert env.spec.max_episode_steps == spec.max_episode_steps
    np.testing.assert_array_equal(
        [env.action_space.low, env.action_space.high], [[-1] * spec.action_size, [1] * spec.action_size]
    )
    for seed in (3, 3, 4):
        env.action_space.seed(0)
        observations = [env.reset(seed=seed)[0]]
        observations += [env.step(env.action_space.sample())[0] for _ in range(5)]
        assert env.observation_space.contains(observations[-1])
        runs.append(np.array(observations))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("env_id", "v4"),
    [(HOPPER, "Hopper-v4"), ("halfcheetah-expert-v2", "HalfCheetah-v4"), ("walker2d-random-v2", "Walker2d-v4")],
)
def test_locomotion_is_v4(env_id, v4):
    ours, theirs = gymnasium.make(env_id), gymnasium.make(v4)
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1, 1, ours.action_space.shape)
        mine, other = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(mine[0], other[0])
        assert mine[1:4] == other[1:4]
        if mine[2]:
            break
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == 1000


@pytest.mark.parametrize("name", ["Door", "Hammer", "Relocate"])
def test_adroit_reward_charges_the_distance_to_the_object(name):
    ours = gymnasium.make(f"{name.lower()}-human-v1")
    theirs = gymnasium.make(f"AdroitHand{name}-v1", reward_type="dense")
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    data = ours.unwrapped.data
    palm = data.site("S_grasp").xpos
    thing = data.site("S_handle").xpos if name == "Door" else data.body("Object").xpos
    rng = np.random.default_rng(0)
    for step in range(200):
        action = rng.uniform(-1.2, 1.2, ours.action_space.shape)  # actions beyond 1 are clipped by both
        observation, reward, terminated, truncated, info = ours.step(action)
        other_observation, other_reward, *_, other_info = theirs.step(action)
        np.testing.assert_array_equal(observation, other_observation)
        distance = np.linalg.norm(palm - thing)
        assert distance > 0.01
        # The other's 0.1 * distance becomes -0.1 * distance: fails, too, once the library turns the sign itself.
        assert reward == pytest.approx(other_reward - 0.1 * distance - 0.1 * distance, abs=1e-9)
        assert other_info == info and "success" in info
        assert not terminated and truncated == (step == 199)
        if name == "Door":  # D4RL's whole formula
            hinge = observation[28]
            expected = -0.1 * distance - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.sum(data.qvel**2)
            assert reward == pytest.approx(
                expected + 2 * (hinge > 0.2) + 8 * (hinge > 1) + 10 * (hinge > 1.35), abs=1e-9
            )


def test_pen_ends_when_it_drops():
    ours, theirs = gymnasium.make(PEN), gymnasium.make("AdroitHandPen-v1", reward_type="dense")
    rng, ends = np.random.default_rng(0), []
    for seed, size in enumerate([1.0, 1.0, 1.0, 0.0]):  # random actions drop the pen, an open hand holds it
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        for step in range(1, 101):
            action = size * rng.uniform(-1, 1, 24)
            observation, reward, terminated, truncated, info = ours.step(action)
            other_observation, other_reward, *_ = theirs.step(action)
            np.testing.assert_array_equal(observation, other_observation)
            assert reward == other_reward and "success" in info
            assert terminated == (ours.unwrapped.data.body("Object").xpos[2] < 0.075)
            if terminated or truncated:
                ends.append((step, terminated, truncated))
                break
    assert [end[1:] for end in ends] == [(True, False)] * 3 + [(False, True)]
    assert all(end[0] < 100 for end in ends[:3]) and ends[3][0] == 100


def test_maze2d_coordinates_and_dynamics():
    ours, theirs = gymnasium.make("maze2d-large-v1"), gymnasium.make("PointMaze_Large-v3")
    theirs.reset(seed=0)
    ball = theirs.unwrapped.point_env
    rng, contacts = np.random.default_rng(0), 0
    for seed in range(5):
        row, column, row_velocity, column_velocity = ours.reset(seed=seed)[0]
        ball.reset()
        ball.set_state(np.array([column - 5.3, 3.8 - row]), np.array([column_velocity, -row_velocity]))
        action = rng.uniform(-1, 1, 2)
        for step in range(200):
            if step % 10 == 0:  # pushed long enough in one direction to hit walls
                action = rng.uniform(-1, 1, 2)
            observation = ours.step(action)[0]
            state = theirs.step(np.array([action[1], -action[0]]))[0]["observation"]
            expected = [3.8 - state[1], state[0] + 5.3, -state[3], state[2]]
            np.testing.assert_allclose(observation, expected, atol=1e-6)
            contacts += ours.unwrapped.ball.data.ncon > 1  # the floor is one
    assert contacts > 20


def test_maze2d_walls_are_where_the_cells_are():
    env = gymnasium.make(DEMOS)  # starts in cell (1, 1): wall above and on the left, free below and on the right
    for action, axis, wall in [((-1, 0), 0, 0.4), ((0, -1), 1, 0.4)]:  # half a cell less the radius from the centre 0.8
        env.reset(seed=0)
        for _ in range(100):
            observation = env.step(np.array(action, np.float32))[0]
        assert observation[axis] == pytest.approx(wall, abs=0.02)
    for action, axis in [((1, 0), 0), ((0, 1), 1)]:
        env.reset(seed=0)
        for _ in range(100):
            observation = env.step(np.array(action, np.float32))[0]
        assert observation[axis] > 2.5


def test_maze2d_goal():
    env = gymnasium.make("maze2d-large-v1")
    env.reset(seed=0)
    for row, column, expected in [(7, 9, 1), (7, 8.52, 1), (7, 8.48, 0), (6.88, 9.08, 1), (1, 1, 0), (7, 9.38, 1)]:
        env.unwrapped.ball.set_state(np.array([column - 5.3, 3.8 - row]), np.zeros(2))
        observation, reward, terminated, truncated, info = env.step(np.zeros(2))
        np.testing.assert_allclose(observation[:2], [row, column], atol=1e-2)
        assert (reward, terminated, truncated, info["success"]) == (expected, False, False, bool(expected))


def test_maze2d_start():
    env = gymnasium.make("maze2d-large-v1")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(1000)])
    maze = np.array(env.unwrapped.start_cells)
    offsets = starts[:, :2] - np.round(starts[:, :2])
    assert {tuple(cell) for cell in np.round(starts[:, :2]).astype(int)} == {tuple(cell) for cell in maze}
    assert len(maze) == 46 and (7, 9) in {tuple(cell) for cell in maze}
    assert 0.095 < np.abs(offsets).max() <= 0.1 and np.abs(offsets.mean()) < 0.01
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, atol=0.01)
    np.testing.assert_allclose(starts[:, 2:].mean(axis=0), 0, atol=0.015)
    demos = gymnasium.make(DEMOS)
    starts = np.array([demos.reset(seed=seed)[0] for seed in range(200)])
    assert 0.09 < np.abs(starts[:, :2] - [1, 1]).max() <= 0.1
    np.testing.assert_allclose(starts[:, 2:].std(axis=0), 0.1, atol=0.02)


def test_v0_ids_print_no_deprecation():
    code = "import gymnasium, d4rl; gymnasium.make('pen-human-v0'); gymnasium.make('hopper-medium-v2')"
    run = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "out of date" not in run.stderr


# --- the bundled dataset ---
def test_bundled_file_and_references():
    spec = d4rl.task(DEMOS)
    contents = spec.default_path.read_bytes()
    assert len(contents) == spec.bytes < 200_000
    assert hashlib.sha256(contents).hexdigest() == spec.sha256
    data = d4rl.get_dataset(DEMOS)
    returns = d4rl.episode_returns(DEMOS, data)
    assert len(returns) == 3 and returns.mean() == spec.ref_max
    assert np.flatnonzero(data["timeouts"]).tolist() == [799, 1599, 2399] and not data["terminals"].any()
    assert np.abs(data["actions"]).max() <= 1
    near_goal = np.linalg.norm(data["observations"][:, :2] - [7, 9], axis=1) < 0.2
    assert near_goal.reshape(3, 800)[:, -300:].all()  # they stay
    assert len(d4rl.qlearning_dataset(DEMOS)["rewards"]) == 2397


def test_demonstrations_can_be_regenerated():
    from d4rl.maze2d_large_demos import demonstrations, shortest_way

    way = shortest_way()
    assert tuple(way[0]) == (1, 1) and tuple(way[-1]) == (7, 9) and len(way) == 15
    stored = d4rl.get_dataset(DEMOS)
    for key, values in demonstrations().items():  # not to the bit: another processor may round differently
        np.testing.assert_allclose(values, stored[key], atol=1e-4, err_msg=key)


# --- stand-in datasets ---
STANDINS = {  # task, rows, episodes, their mean return
    "hopper-medium-expert": ("hopper-medium-expert-v2", 199_415, 339, 2149),
    "door-human": ("door-human-v0", 6_729, 25, 796),
    "pen-expert": ("pen-expert-v1", 24_972, 251, 3029),
}


@pytest.mark.skipif(
    "SAQ_STANDIN_DIR" not in os.environ, reason="SAQ_STANDIN_DIR names no folder with stand-in datasets"
)
@pytest.mark.parametrize("name", STANDINS)
def test_standin_dataset(name):
    env_id, rows, episodes, mean_return = STANDINS[name]
    path = Path(os.environ["SAQ_STANDIN_DIR"]) / f"{name}.hdf5"
    data = d4rl.get_dataset(env_id, path)
    assert len(data["rewards"]) == rows
    returns = d4rl.episode_returns(env_id, data)
    assert len(returns) == episodes and returns.mean() == pytest.approx(mean_return, abs=1)
    transitions = d4rl.qlearning_dataset(env_id, path)
    dropped = int(data["timeouts"][:-1].sum()) + 1
    assert len(transitions["rewards"]) == rows - dropped
    with pytest.raises(DatasetError, match="another --env-id"):
        d4rl.get_dataset("walker2d-medium-v2", path)


def test_environment_for_id():
    env = gymnasium.make("maze2d-large-demos-v0")
    assert d4rl.task(env) == d4rl.task("maze2d-large-demos-v0")
    ours, theirs = d4rl.qlearning_dataset(env), d4rl.qlearning_dataset("maze2d-large-demos-v0")
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert d4rl.get_normalized_score(env, 440.0) == 1.0
