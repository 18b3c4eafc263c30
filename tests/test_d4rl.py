"""The d4rl package: tasks, files, transitions and scores against hand-made data; locomotion and Adroit."""

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
from common import HOPPER, ROOT, dataset

import d4rl
from d4rl import DatasetError
from d4rl.maze2d_large_demos import demonstrations

gymnasium.register_envs(gymnasium_robotics)
pytestmark = pytest.mark.filterwarnings("ignore:.*out of date")  # pytest takes away the filter that d4rl sets

PEN = "pen-human-v1"  # observations 45, actions 24, horizon 100
DEMOS = "maze2d-large-demos-v0"


def arrays(rows: int, env_id: str = HOPPER, **changes) -> dict[str, np.ndarray]:
    """Random data in D4RL's format; about one row in ten is terminal, one in ten a time-out."""
    rng, spec = np.random.default_rng(0), d4rl.task(env_id)
    return {
        "observations": rng.standard_normal((rows, spec.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, spec.action_size)).astype(np.float32),
        "rewards": rng.standard_normal(rows).astype(np.float32),
        "terminals": rng.random(rows) < 0.1,
        "timeouts": rng.random(rows) < 0.1,
    } | changes


def write(path: Path, data: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            file[key] = values
    return path


# --- tasks and scores ---
def test_tasks(tmp_path, monkeypatch):
    assert len(d4rl.TASKS) == 64
    for env_id, spec in d4rl.TASKS.items():
        assert gymnasium.spec(env_id).max_episode_steps == spec.max_episode_steps
    door = d4rl.task("door-human-v0")
    assert (door.observation_size, door.action_size, door.max_episode_steps) == (39, 28, 200)
    assert (door.bytes, door.path) == (3118318, "hand_dapg/door-v0_demos_clipped.hdf5")
    assert door.url == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{door.path}"
    assert door.default_path == Path.home() / ".d4rl/datasets/door-v0_demos_clipped.hdf5"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    assert door.default_path == tmp_path / "door-v0_demos_clipped.hdf5"
    relocate = d4rl.task("relocate-human-v1")
    assert relocate.bytes is None and relocate.sha256 is None
    assert d4rl.task(gymnasium.make(DEMOS)) == d4rl.task(DEMOS)  # an environment stands for its id
    wrong_ids = {"hoper-medium-v2": "did you mean hopper-medium-v2", "zzz": "python -m d4rl list"}
    wrong_ids["robomimic/lyft-ph"] = "did you mean robomimic/lift-ph"  # not one of Minari's
    for wrong, message in wrong_ids.items():
        with pytest.raises(DatasetError, match=f"{wrong}.*{message}"):
            d4rl.task(wrong)


def test_normalized_score_is_a_fraction():
    np.testing.assert_allclose(d4rl.get_normalized_score(HOPPER, [-20.272305, 3234.3]), [0, 1])
    np.testing.assert_allclose(d4rl.get_normalized_score(PEN, [96.262799, 3076.8331017826877]), [0, 1])
    score = d4rl.get_normalized_score("halfcheetah-medium-v2", 5000)
    assert score == pytest.approx(5280.178953 / 12415.178953)


def test_import_loads_no_simulator_and_v0_ids_print_no_deprecation():
    code = "import sys, d4rl, gymnasium;"
    code += "print({'mujoco', 'robosuite', 'minari', 'torch'} & sys.modules.keys());"
    code += "gymnasium.make('pen-human-v0')"
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n" and "out of date" not in done.stderr


# --- datasets ---
def test_get_dataset_types_and_shapes(tmp_path):
    data = arrays(7)
    stored = data | {"observations": data["observations"].astype(np.float64), "infos/goal": np.zeros((7, 2))}
    stored |= {"rewards": data["rewards"][:, None], "terminals": data["terminals"][:, None].astype(np.uint8)}
    stored["next_observations"] = np.zeros((7, 2))  # not used, as in the original
    loaded = d4rl.get_dataset(HOPPER, write(tmp_path / "data.hdf5", stored))
    assert loaded.keys() == data.keys()
    for key, values in loaded.items():
        assert values.dtype == data[key].dtype
        np.testing.assert_array_equal(values, data[key])
    del stored["timeouts"]
    assert "timeouts" not in d4rl.get_dataset(HOPPER, str(write(tmp_path / "data.hdf5", stored)))


BAD_ARRAYS = {
    "text": ({"actions": np.array([[b"x"] * 3] * 9)}, "actions.*not numbers"),
    "nan": ({"rewards": np.r_[np.nan, np.zeros(6), np.inf, 0]}, "rewards.*2 of 9 rows"),
    "nan in a row": ({"actions": np.r_[[[np.nan] * 3], np.zeros((8, 3))]}, "actions.*1 of 9 rows"),
    "too large for float32": ({"rewards": np.full(9, 1e300)}, "rewards.*9 of 9 rows"),
    "row counts": ({"rewards": np.zeros(8)}, r"observations 9, actions 9, rewards 8"),
    "other task": ({"observations": np.zeros((9, 17))}, r"\(9, 17\).*hopper.*another --env-id\?"),
    "other actions": ({"actions": np.zeros((9, 6))}, r"actions.*\(9, 6\).*did you mean another --env-id\?"),
    "rewards (N, 2)": ({"rewards": np.zeros((9, 2))}, r"rewards has shape \(9, 2\)"),
    "a number": ({"rewards": np.float32(1)}, r"rewards has shape \(\)"),
    "no rows": (arrays(0), "no rows"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(changes, message):
    for use in (d4rl.episode_returns, lambda env_id, data: d4rl.qlearning_dataset(env_id, dataset=data)):
        with pytest.raises(DatasetError, match=message) as error:
            use(HOPPER, arrays(9, **changes))
        assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    path = write(tmp_path / "data.hdf5", arrays(500))
    contents = path.read_bytes()
    foreign = write(tmp_path / "foreign.hdf5", {"rewards": np.zeros(2), "data/x": np.zeros(2)}).read_bytes()
    nan = dataset(tmp_path / "nan.hdf5", rewards=np.full(300, np.nan)).read_bytes()
    cases = {b"": "empty", b"some text\n": "not an HDF5 file", contents[:2000]: "incomplete"}
    cases |= {contents[:-500]: "incomplete", nan: "NaN"}
    cases |= {foreign: r"lacks observations, actions, terminals \(found: data, rewards\)"}
    for stored, message in cases.items():
        path.write_bytes(stored)
        with pytest.raises(DatasetError, match=f"{path}.*{message}") as error:
            d4rl.get_dataset(HOPPER, path)
        assert "\n" not in str(error.value) and error.value.__cause__ is None  # no traceback of h5py's
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
        if terminate_on_end or not timeout:
            rows.append(i)
            flags.append(data["terminals"][i] or timeout)
    return np.array(rows), np.array(flags)


@pytest.mark.parametrize("terminate_on_end", [False, True])
@pytest.mark.parametrize("has_timeouts", [False, True])
def test_qlearning_dataset_equals_a_loop(has_timeouts, terminate_on_end, tmp_path):
    data = arrays(1500, PEN)
    data["terminals"] &= np.random.default_rng(1).random(1500) < 0.1  # some episodes reach 100 steps
    if not has_timeouts:
        del data["timeouts"]
    rows, flags = transitions_by_loop(data, 100, terminate_on_end)
    path = write(tmp_path / "data.hdf5", data)
    result = d4rl.qlearning_dataset(PEN, path, terminate_on_end=terminate_on_end)
    assert len(rows) < 1499 or terminate_on_end  # something was dropped
    for key in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(result[key], data[key][rows])
    np.testing.assert_array_equal(result["next_observations"], data["observations"][rows + 1])
    np.testing.assert_array_equal(result["terminals"], flags)
    assert result["terminals"].dtype == bool and result["next_observations"].dtype == np.float32


def test_two_transitions_are_needed():
    with pytest.raises(DatasetError, match="0 of the at least 2 transitions"):
        d4rl.qlearning_dataset(HOPPER, dataset=arrays(1))


def test_episode_returns():
    data = arrays(7, rewards=2.0 ** np.arange(7), terminals=np.arange(7) == 1, timeouts=np.arange(7) == 4)
    np.testing.assert_array_equal(d4rl.episode_returns(HOPPER, data), [3, 28])  # the tail has not finished
    assert d4rl.return_range(HOPPER, data) == 25
    said = d4rl.describe(HOPPER, data)
    assert said == "7 steps, 2 episodes with returns 3.0 to 28.0 (mean 15.5), 11 observations, 3 actions"
    data |= {"terminals": np.zeros(7, bool), "timeouts": np.zeros(7, bool)}
    np.testing.assert_array_equal(d4rl.episode_returns(HOPPER, data), [127])
    with pytest.raises(DatasetError, match="All episodes have the same return"):
        d4rl.return_range(HOPPER, data)
    counted = arrays(250, PEN, rewards=np.ones(250), terminals=np.arange(250) == 29)
    del counted["timeouts"]
    np.testing.assert_array_equal(d4rl.episode_returns(PEN, counted), [30, 100, 100])


# --- environments ---
@pytest.mark.parametrize(
    ("env_id", "v4"),
    [
        (HOPPER, "Hopper-v4"),
        ("halfcheetah-expert-v2", "HalfCheetah-v4"),
        ("walker2d-random-v2", "Walker2d-v4"),
    ],
)
def test_locomotion_is_v4(env_id, v4):
    ours, theirs, spec = gymnasium.make(env_id), gymnasium.make(v4), d4rl.task(env_id)
    assert ours.observation_space.shape == (spec.observation_size,)
    assert spec.max_episode_steps == theirs.spec.max_episode_steps
    np.testing.assert_array_equal([ours.action_space.low, ours.action_space.high], d4rl.action_bounds(env_id))
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.uniform(-1, 1, spec.action_size)
        mine, other = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(mine[0], other[0])
        assert mine[1:4] == other[1:4]
        if mine[2]:
            break


@pytest.mark.parametrize("name", ["Door", "Hammer", "Relocate"])
def test_adroit_reward_charges_the_distance_to_the_object(name):
    env_id = f"{name.lower()}-human-v1"
    ours, theirs = gymnasium.make(env_id), gymnasium.make(f"AdroitHand{name}-v1", reward_type="dense")
    assert ours.observation_space.shape == (d4rl.task(env_id).observation_size,)
    np.testing.assert_array_equal([ours.action_space.low, ours.action_space.high], d4rl.action_bounds(env_id))
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset(seed=7)[0])
    data = ours.unwrapped.data
    palm = data.site("S_grasp").xpos
    thing = data.site("S_handle").xpos if name == "Door" else data.body("Object").xpos
    rng = np.random.default_rng(0)
    for _ in range(50):
        action = rng.uniform(-1.2, 1.2, ours.action_space.shape)  # actions beyond 1 are clipped by both
        observation, reward, terminated, _, info = ours.step(action)
        other_observation, other_reward, *_, other_info = theirs.step(action)
        np.testing.assert_array_equal(observation, other_observation)
        distance = np.linalg.norm(palm - thing)
        # The other's + 0.1 * distance becomes - 0.1 * distance: fails once the library turns the sign itself.
        assert reward == pytest.approx(other_reward - 0.1 * distance - 0.1 * distance, abs=1e-9)
        assert distance > 0.01 and not terminated and other_info == info and "success" in info
        if name == "Door":  # D4RL's whole formula
            hinge = observation[28]
            expected = -0.1 * distance - 0.1 * (hinge - 1.57) ** 2 - 1e-5 * np.sum(data.qvel**2)
            expected += 2 * (hinge > 0.2) + 8 * (hinge > 1) + 10 * (hinge > 1.35)
            assert reward == pytest.approx(expected, abs=1e-9)


def test_pen_ends_when_it_drops():
    ours, theirs = gymnasium.make(PEN), gymnasium.make("AdroitHandPen-v1", reward_type="dense")
    rng, ends = np.random.default_rng(0), []
    for seed, size in enumerate([1.0, 0.0]):  # random actions drop the pen, an open hand holds it
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        terminated = truncated = False
        while not (terminated or truncated):
            action = size * rng.uniform(-1, 1, 24)
            observation, reward, terminated, truncated, info = ours.step(action)
            other_observation, other_reward, *_ = theirs.step(action)
            np.testing.assert_array_equal(observation, other_observation)
            assert reward == other_reward and "success" in info
            assert terminated == (ours.unwrapped.data.body("Object").xpos[2] < 0.075)
        ends.append((terminated, truncated))
    assert ends == [(True, False), (False, True)]


# --- the bundled dataset, stand-in datasets ---
def test_bundled_file():
    spec = d4rl.task(DEMOS)
    contents = spec.default_path.read_bytes()
    assert len(contents) == spec.bytes < 200_000 and hashlib.sha256(contents).hexdigest() == spec.sha256
    data = d4rl.get_dataset(DEMOS)
    returns = d4rl.episode_returns(DEMOS, data)
    assert len(returns) == 3 and returns.mean() == spec.ref_max
    assert np.flatnonzero(data["timeouts"]).tolist() == [799, 1599, 2399] and not data["terminals"].any()
    near_goal = np.linalg.norm(data["observations"][:, :2] - [7, 9], axis=1) < 0.2
    assert near_goal.reshape(3, 800)[:, -300:].all()  # they stay
    for key, values in demonstrations().items():  # not to the bit: another processor may round differently
        np.testing.assert_allclose(values, data[key], atol=1e-4, err_msg=key)


@pytest.mark.skipif("SAQ_STANDIN_DIR" not in os.environ, reason="SAQ_STANDIN_DIR names no stand-in datasets")
@pytest.mark.parametrize(
    ("name", "env_id", "rows", "episodes", "mean_return"),
    [
        ("hopper-medium-expert", "hopper-medium-expert-v2", 199_415, 339, 2149),
        ("door-human", "door-human-v0", 6_729, 25, 796),
        ("pen-expert", "pen-expert-v1", 24_972, 251, 3029),
    ],
)
def test_standin_dataset(name, env_id, rows, episodes, mean_return):
    data = d4rl.get_dataset(env_id, Path(os.environ["SAQ_STANDIN_DIR"]) / f"{name}.hdf5")
    returns = d4rl.episode_returns(env_id, data)
    assert (len(data["rewards"]), len(returns)) == (rows, episodes)
    assert returns.mean() == pytest.approx(mean_return, abs=1)
    dropped = int(data["timeouts"][:-1].sum()) + 1
    assert len(d4rl.qlearning_dataset(env_id, dataset=data)["rewards"]) == rows - dropped
