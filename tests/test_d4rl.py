"""The d4rl package: tasks, files, transitions and scores against hand-made data; locomotion and Adroit."""

import dataclasses
import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gymnasium
import gymnasium_robotics
import h5py
import numpy as np
import pytest
from common import HOPPER, ROOT, dataset
from gymnasium.envs.classic_control import PendulumEnv

import d4rl
from d4rl import DatasetError, evaluation
from d4rl import data as d4rl_data
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


def test_ids_of_what_is_no_task(tmp_path, monkeypatch):
    """An environment of Gymnasium's; a dataset of Minari's without a namespace, which has to move."""
    for env_id in ("Pendulum-v1", "HalfCheetah-v4"):
        with pytest.raises(
            DatasetError, match=f'{env_id} is an environment.*with Minari.*"Add a task" in docs'
        ):
            d4rl.task(env_id)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(
        DatasetError, match="no task 'odd-v0'.*an id of Minari's has a namespace, as my/own-v0"
    ):
        d4rl.task("odd-v0")
    (tmp_path / "odd-v0" / "data").mkdir(parents=True)
    moved = f"needs a namespace here: move {tmp_path}/odd-v0 to {tmp_path}/my/odd-v0, and give my/odd-v0"
    with pytest.raises(DatasetError, match=moved):
        d4rl.task("odd-v0")


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
    stored["next_observations"] = np.roll(
        data["observations"], -1, axis=0
    )  # not needed: they are the next rows
    loaded = d4rl_data.get_dataset(HOPPER, write(tmp_path / "data.hdf5", stored))
    assert loaded.keys() == data.keys()
    for key, values in loaded.items():
        assert values.dtype == data[key].dtype
        np.testing.assert_array_equal(values, data[key])
    del stored["timeouts"]
    assert "timeouts" not in d4rl_data.get_dataset(HOPPER, str(write(tmp_path / "data.hdf5", stored)))


BAD_ARRAYS = {
    "text": ({"actions": np.array([[b"x"] * 3] * 9)}, "actions.*not numbers"),
    "nan": ({"rewards": np.r_[np.nan, np.zeros(6), np.inf, 0]}, "rewards.*2 of 9 rows"),
    "nan in a row": ({"actions": np.r_[[[np.nan] * 3], np.zeros((8, 3))]}, "actions.*1 of 9 rows"),
    "too large to be squared": ({"observations": np.full((9, 11), -2e15)}, "beyond 1e15 in 9 of 9 rows"),
    "too large for float32": ({"rewards": np.full(9, 1e300)}, "rewards.*9 of 9 rows"),
    "row counts": ({"rewards": np.zeros(8)}, r"observations 9, actions 9, rewards 8"),
    "other task": ({"observations": np.zeros((9, 17))}, r"\(9, 17\).*hopper.*another --env-id\?"),
    "other actions": ({"actions": np.zeros((9, 6))}, r"actions.*\(9, 6\).*did you mean another --env-id\?"),
    "rewards (N, 2)": ({"rewards": np.zeros((9, 2))}, r"rewards has shape \(9, 2\)"),
    "a number": (
        {"rewards": np.float32(1)},
        r"rewards has shape \(\), so it is one value instead of one a step",
    ),
    "episodes apart": (
        {"actions": np.zeros((3, 3, 3))},
        r"actions has shape \(3, 3, 3\).*\(N, 3\), one row a step",
    ),
    "complex": ({"actions": np.zeros((9, 3), complex)}, "actions holds complex128, not numbers"),
    "objects": ({"rewards": np.array([{}] * 9)}, "rewards holds object, not numbers"),
    "records": (
        {"actions": np.zeros(9, [(f"entry {i}", "f4") for i in range(99)])},
        "actions holds .*not numbers",
    ),
    "next observations": ({"next_observations": np.zeros((9, 2))}, r"next_observations has shape \(9, 2\)"),
    "no next observations": (
        {"next_observations": np.full((9, 11), np.nan)},
        "next_observations is NaN.*9 of 9 rows",
    ),
    "step numbers": (
        {"terminals": np.arange(9)},
        "terminals holds 2; write 1 where an episode ends and 0 elsewhere",
    ),
    "signs": ({"timeouts": np.repeat([-1, 1], [8, 1])}, "timeouts holds -1;"),
    "probabilities": ({"terminals": np.repeat([0, 0.5], [8, 1])}, "terminals holds 0.5;"),
    "own observations": (
        {"next_observations": arrays(9)["observations"]},
        "every next observation is the observation of its own row, though the next row is another; repair",
    ),
    "two names": ({"truncations": np.arange(9) == 4}, "timeouts and truncations differ; keep the right one"),
    "no rows": (arrays(0), "no rows"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(changes, message):
    for use in (
        d4rl_data.episode_returns,
        lambda env_id, data: d4rl_data.qlearning_dataset(env_id, dataset=data),
    ):
        with pytest.raises(DatasetError, match=message) as error:
            use(HOPPER, arrays(9, **changes))
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_one_number_a_step(monkeypatch):
    """Where an observation or an action is one number, a file may store (N,)."""
    spec = dataclasses.replace(d4rl.task(HOPPER), env_id="one-v0", observation_size=1, action_size=1)
    monkeypatch.setitem(d4rl.TASKS, "one-v0", spec)
    flat = arrays(9, observations=np.arange(9.0), actions=np.arange(9.0))
    flat |= {"terminals": np.zeros(9), "timeouts": np.zeros(9)}
    data = d4rl_data.qlearning_dataset("one-v0", dataset=flat)
    np.testing.assert_array_equal(data["observations"], np.arange(8.0)[:, None])
    np.testing.assert_array_equal(data["actions"], np.arange(8.0)[:, None])


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
            d4rl_data.get_dataset(HOPPER, path)
        assert "\n" not in str(error.value) and error.value.__cause__ is None  # no traceback of h5py's
        assert error.value.__suppress_context__ or error.value.__context__ is None
    for missing in (tmp_path / "nowhere.hdf5", tmp_path):
        with pytest.raises(DatasetError, match="no readable file.*check the path"):
            d4rl_data.get_dataset(HOPPER, missing)


def test_files_of_other_formats(tmp_path):
    path = tmp_path / "main_data.hdf5"
    minari = {f"episode_{i}/{key}": np.zeros(3) for i in range(1000) for key in ("actions", "rewards")}
    many = {f"array\n{i}": np.zeros(3) for i in range(1000)}
    for contents, message in [
        (
            minari,
            r"is a file of Minari's: give the dataset's id \(NAMESPACE/NAME-vN\) as --env-id, and no path",
        ),
        (many, "lacks observations, actions, rewards, terminals"),
    ]:
        with pytest.raises(DatasetError, match=f"{path}.*{message}") as error:
            d4rl_data.get_dataset(HOPPER, write(path, contents))
        assert len(str(error.value)) < 300 + len(str(path)) and "\n" not in str(error.value)
    for key in ("observations", "timeouts", "next_observations"):
        parts = {f"{key}/position": np.zeros(9), f"{key}/velocity": np.zeros(9)}
        plain = {name: values for name, values in arrays(9).items() if name != key}
        with pytest.raises(
            DatasetError, match=f"{path}: {key} is a group of arrays or a link to nothing; write"
        ):
            d4rl_data.get_dataset(HOPPER, write(path, plain | parts))
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = "{}"
    with pytest.raises(DatasetError, match="is in robomimic's format: give an id of robomimic's as --env-id"):
        d4rl_data.get_dataset(HOPPER, path)


# --- sound files that cannot be read here ---
def test_a_locked_file(tmp_path):
    path = write(tmp_path / "data.hdf5", arrays(9))
    code = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as writer:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(
            DatasetError, match=r"is locked \(.*close the program.*HDF5_USE_FILE_LOCKING=FALSE"
        ):
            d4rl_data.get_dataset(HOPPER, path)
        writer.communicate("\n")
    assert len(d4rl_data.get_dataset(HOPPER, path)["rewards"]) == 9


def test_a_filter_that_is_not_installed(tmp_path):
    path = write(
        tmp_path / "data.hdf5", {key: values for key, values in arrays(9).items() if key != "rewards"}
    )
    with h5py.File(path, "a") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((9,))
        made.set_filter(32123, h5py.h5z.FLAG_OPTIONAL, ())  # nobody's
        space = h5py.h5s.create_simple((9,))
        rewards = h5py.h5d.create(file.id, b"rewards", h5py.h5t.IEEE_F32LE, space, made)
        rewards.write_direct_chunk((0,), bytes(36), 0)
    with pytest.raises(DatasetError, match=r"needs an HDF5 filter.*\(32123\): pip install hdf5plugin"):
        d4rl_data.get_dataset(HOPPER, path)


def test_a_file_with_a_damaged_array(tmp_path):
    path = tmp_path / "data.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in arrays(9000).items():
            file.create_dataset(key, data=values, compression="gzip")
        start = file["actions"].id.get_chunk_info(0).byte_offset
    contents = bytearray(path.read_bytes())
    contents[start : start + 1000] = bytes(1000)
    path.write_bytes(contents)
    with pytest.raises(DatasetError, match=r"bytes\) is incomplete or damaged.*download or copy it again"):
        d4rl_data.get_dataset(HOPPER, path)


# --- ends of episodes, by any name ---
STEPS = np.arange(300)
TERMINALS, TIMEOUTS = np.isin(STEPS, [49, 149, 299]), np.isin(STEPS, [99, 199, 249])


def ends(**named) -> dict[str, np.ndarray]:
    """300 rows with these arrays instead of terminals and timeouts."""
    data = arrays(300)
    return {key: data[key] for key in ("observations", "actions", "rewards")} | named


@pytest.mark.parametrize(
    "named",
    [
        *(
            {"terminals": TERMINALS, key: TIMEOUTS}
            for key in ("timeout", "truncated", "truncateds", "truncations")
        ),
        *(
            {key: TERMINALS, "timeouts": TIMEOUTS}
            for key in ("terminal", "terminated", "terminateds", "terminations")
        ),
        *({"terminals": TERMINALS, key: TERMINALS | TIMEOUTS} for key in ("done", "dones", "episode_ends")),
        {"terminals": TERMINALS, "timeouts": TIMEOUTS, "dones": TERMINALS | TIMEOUTS},
        {"terminals": TERMINALS, "timeouts": TIMEOUTS, "dones": TERMINALS},
        {"terminals": TERMINALS, "terminations": TERMINALS[:, None], "truncated": 1.0 * TIMEOUTS},
        {
            "terminals": TERMINALS,
            "timeouts": TIMEOUTS,
            "episode_ids": STEPS // 50,
            "episode_lengths": np.full(6, 50),
        },
    ],
    ids=lambda named: "+".join(named),
)
def test_names_of_ends(named, tmp_path):
    path, wanted = write(tmp_path / "data.hdf5", ends(**named)), ends(terminals=TERMINALS, timeouts=TIMEOUTS)
    loaded = d4rl_data.get_dataset(HOPPER, path)
    assert loaded.keys() == wanted.keys()
    for key, values in wanted.items():
        np.testing.assert_array_equal(loaded[key], values)
    expected = d4rl_data.qlearning_dataset(HOPPER, dataset=wanted)
    for key, values in d4rl_data.qlearning_dataset(HOPPER, dataset=ends(**named)).items():
        np.testing.assert_array_equal(values, expected[key])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"dones": TERMINALS | TIMEOUTS},
            "dones alone may mean.*write terminals and timeouts instead",
        ),
        (
            {"terminals": TERMINALS, "dones": TIMEOUTS},
            "dones does not mark the rows that terminals and timeouts",
        ),
        ({"terminals": TERMINALS, "timeouts": TIMEOUTS, "done": STEPS == 9}, "done does not mark the rows"),
        ({"terminals": TERMINALS, "terminated": TIMEOUTS}, "terminals and terminated differ"),
        (
            {"terminals": TERMINALS, "truncated": TERMINALS[:50]},
            "number of rows.*truncated|number of rows.*timeouts 50",
        ),
        *(
            (
                {"terminals": TERMINALS, key: STEPS // 50},
                f"{key} seems to say where episodes end, but is not read",
            )
            for key in (
                "episode_ids",
                "is_last",
                "first",
                "TimeLimit.truncated",
                "infos/TimeLimit.truncated",
                "step",
            )
        ),
        (
            {"terminals": TERMINALS, "traj_lengths": np.full(6, 50)},
            "traj_lengths seems to say where episodes end",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "+".join(value),
)
def test_ends_that_mean_two_things(named, message, tmp_path):
    path = write(tmp_path / "data.hdf5", ends(**named))
    for use in (
        lambda: d4rl_data.get_dataset(HOPPER, path),
        lambda: d4rl_data.qlearning_dataset(HOPPER, dataset=ends(**named)),
        lambda: d4rl_data.episode_returns(HOPPER, ends(**named)),
    ):
        with pytest.raises(DatasetError, match=message):
            use()


def test_other_arrays_say_nothing(tmp_path):
    """Names that only look like ends, and shapes that cannot be."""
    others = {
        "friends": STEPS,
        "infos/tendon": STEPS,
        "trajectory": np.zeros((300, 2)),
        "max_episode_steps": 1000,
    }
    others |= {"metadata/policy/last_fc/bias": STEPS, "weights": STEPS}
    plain = ends(terminals=TERMINALS)
    path = write(tmp_path / "data.hdf5", plain | others)
    assert d4rl_data.get_dataset(HOPPER, path).keys() == plain.keys()
    expected = d4rl_data.qlearning_dataset(HOPPER, dataset=plain)["rewards"]
    made = d4rl_data.qlearning_dataset(HOPPER, dataset=plain | others)
    np.testing.assert_array_equal(made["rewards"], expected)


def test_no_ends_at_all():
    """More rows than an episode has steps, and no end is marked."""
    nowhere = np.zeros(1001, bool)
    with pytest.raises(DatasetError, match=r"no row of 1,001 ends an episode, which has at most 1,000 steps"):
        d4rl_data.qlearning_dataset(HOPPER, dataset=arrays(1001, terminals=nowhere, timeouts=nowhere))
    short = arrays(1000, terminals=nowhere[1:], timeouts=nowhere[1:])
    assert len(d4rl_data.qlearning_dataset(HOPPER, dataset=short)["rewards"]) == 999
    del short["timeouts"]  # counted
    assert d4rl_data.episode_ends(HOPPER, short).tolist() == [999]


# --- transitions and episodes ---
def transitions_by_loop(data, horizon, terminate_on_end):
    """Row by row, as D4RL defines them, but every terminal is kept: (rows, their terminal flags)."""
    rows, flags, step, last = [], [], 0, len(data["rewards"]) - 1
    for i in range(last + 1):
        step += 1
        timeout = data["timeouts"][i] if "timeouts" in data else step == horizon
        terminal = data["terminals"][i] or (terminate_on_end and timeout)
        if timeout or data["terminals"][i]:
            step = 0
        if terminal or not (timeout or i == last):
            rows.append(i)
            flags.append(terminal)
    return np.array(rows), np.array(flags)


@pytest.mark.parametrize("terminate_on_end", [False, True])
@pytest.mark.parametrize("has_timeouts", [False, True])
@pytest.mark.parametrize("last_is_terminal", [False, True])
def test_qlearning_dataset_equals_a_loop(last_is_terminal, has_timeouts, terminate_on_end, tmp_path):
    data = arrays(1500, PEN)
    data["terminals"] &= np.random.default_rng(1).random(1500) < 0.1  # some episodes reach 100 steps
    data["terminals"][-1] = last_is_terminal
    if not has_timeouts:
        del data["timeouts"]
    rows, flags = transitions_by_loop(data, 100, terminate_on_end)
    path = write(tmp_path / "data.hdf5", data)
    result = d4rl_data.qlearning_dataset(PEN, path, terminate_on_end=terminate_on_end)
    assert len(rows) < 1499 or terminate_on_end  # something was dropped
    for key in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(result[key], data[key][rows])
    following = np.append(data["observations"][1:], data["observations"][-1:], axis=0)  # of the last: any
    np.testing.assert_array_equal(result["next_observations"], following[rows])
    np.testing.assert_array_equal(result["terminals"], flags)
    assert result["terminals"].dtype == bool and result["next_observations"].dtype == np.float32


def test_a_terminal_at_the_time_limit_is_kept():
    """Gymnasium's TimeLimit may report both at the last step."""
    last = np.arange(500) % 50 == 49
    data = d4rl_data.qlearning_dataset(HOPPER, dataset=arrays(500, terminals=last, timeouts=last))
    assert len(data["rewards"]) == 500 and data["terminals"].sum() == 10


# --- a file's own next observations ---
def walk(rows: int = 300, episode: int = 50, **changes) -> dict[str, np.ndarray]:
    """Episodes of a random walk, with next observations; each is cut off after `episode` steps."""
    data = arrays(rows, terminals=np.zeros(rows, bool), timeouts=np.arange(rows) % episode == episode - 1)
    generator = np.random.default_rng(1)
    paths = generator.standard_normal((rows // episode, episode + 1, 11)).cumsum(1).astype(np.float32)
    following = paths[:, 1:].reshape(rows, 11)
    return data | {"observations": paths[:, :-1].reshape(rows, 11), "next_observations": following} | changes


def test_next_observations_that_are_the_next_rows(tmp_path):
    """As in D4RL's own files: what comes out is what comes out without them, though a time-out's is known."""
    data = walk()
    plain = {key: values for key, values in data.items() if key != "next_observations"}
    for name, values in {
        "next_observations": data["next_observations"],
        "next_obs": data["next_observations"].astype(np.float64) * (1 + 1e-5),  # rounded in another way
        "next_states": data["next_observations"].astype(np.float16),
    }.items():
        path = write(tmp_path / "data.hdf5", plain | {name: values})
        assert d4rl_data.get_dataset(HOPPER, path).keys() == plain.keys()
        expected = d4rl_data.qlearning_dataset(HOPPER, dataset=plain)
        for made in (
            d4rl_data.qlearning_dataset(HOPPER, path),
            d4rl_data.qlearning_dataset(HOPPER, dataset=plain | {name: values}),
        ):
            assert len(made["rewards"]) == 294
            for key, values in expected.items():
                np.testing.assert_array_equal(made[key], values)


@pytest.mark.parametrize("has_timeouts", [False, True])
def test_unmarked_ends(has_timeouts, tmp_path):
    """Saved transitions: no row is lost, and the ends that next observations show count."""
    data = walk(rewards=np.ones(300))
    data["timeouts"] &= np.arange(300) == 149
    if not has_timeouts:
        del data["timeouts"]
    path = write(tmp_path / "data.hdf5", data)
    loaded = d4rl_data.get_dataset(HOPPER, path)
    assert loaded.keys() == data.keys()
    for made in (
        d4rl_data.qlearning_dataset(HOPPER, path),
        d4rl_data.qlearning_dataset(HOPPER, dataset=loaded),
    ):
        for key, values in made.items():
            np.testing.assert_array_equal(values, data[key])
    np.testing.assert_array_equal(
        d4rl_data.episode_returns(HOPPER, loaded), np.full(5, 50)
    )  # the last has no end
    count = 4 if has_timeouts else 5
    assert f"warning: {count} rows are not followed by the next observation" in d4rl_data.describe(
        HOPPER, loaded
    )
    over = d4rl_data.qlearning_dataset(HOPPER, path, terminate_on_end=True)
    assert np.flatnonzero(over["terminals"]).tolist() == [49, 99, 149, 199, 249]


def test_a_next_observation_after_the_reset():
    """From a vector environment that resets itself: at a time-out, it is the next episode's first."""
    data = walk()
    data["next_observations"][149] = data["observations"][150]
    data["timeouts"][49] = False  # one that is not marked, so that the file's own count
    data["timeouts"][199], data["terminals"][199] = True, True
    data["next_observations"][199] = data["observations"][200]
    made = d4rl_data.qlearning_dataset(HOPPER, dataset=data)
    kept = np.delete(np.arange(300), 149)
    for key, values in made.items():
        np.testing.assert_array_equal(values, data[key][kept])


def test_transitions_in_no_order(tmp_path):
    order = np.random.default_rng(0).permutation(300)
    data = {key: values[order] for key, values in walk().items()}
    path = write(tmp_path / "data.hdf5", data)
    loaded = d4rl_data.get_dataset(HOPPER, path)
    for key, values in d4rl_data.qlearning_dataset(HOPPER, path).items():
        np.testing.assert_array_equal(values, data[key])
    for use, advice in (
        (d4rl_data.episode_returns, ""),
        (d4rl_data.return_range, ": give --no-normalize-rewards"),
    ):
        with pytest.raises(DatasetError, match=f"do not follow each other, so returns.*not known{advice}"):
            use(HOPPER, loaded)
    line, warning = d4rl_data.describe(HOPPER, loaded).splitlines()
    assert line == "300 steps, of unknown episodes, 11 observations, 3 actions"
    assert warning.startswith("warning: rows do not follow each other: transitions are right, but returns")


def test_two_transitions_are_needed():
    with pytest.raises(DatasetError, match="0 of the at least 2 transitions"):
        d4rl_data.qlearning_dataset(HOPPER, dataset=arrays(1))


@pytest.mark.parametrize("in_order", [True, False])
def test_overwritten(in_order, monkeypatch):
    """The same transitions, made block by block in the memory of the dataset, which else stays as it was."""
    monkeypatch.setattr(d4rl_data, "BLOCK", 7)
    data = walk(terminals=np.arange(300) % 20 == 9)
    if in_order:
        del data["next_observations"]
    else:
        data["next_observations"] = data["next_observations"] + np.float32(1)
    before = {key: values.copy() for key, values in data.items()}
    expected = d4rl_data.qlearning_dataset(HOPPER, dataset=data)
    for key, values in before.items():
        np.testing.assert_array_equal(data[key], values)
        assert key not in expected or not np.shares_memory(expected[key], data[key])
    made = d4rl_data.qlearning_dataset(HOPPER, dataset=data, overwrite=True)
    for key, values in expected.items():
        np.testing.assert_array_equal(made[key], values)
    for key in ("observations", "actions", "rewards"):
        assert np.shares_memory(made[key], data[key])


def test_memory(tmp_path, monkeypatch):
    """Reading, describing, making transitions: a file's arrays, the next observations and little more."""
    data = walk(100_000, 500)
    del data["next_observations"]
    path, size = write(tmp_path / "data.hdf5", data), sum(values.nbytes for values in data.values())
    monkeypatch.setattr(d4rl_data, "BLOCK", 5000)

    def as_scripts_do(overwrite: bool):
        dataset = d4rl_data.get_dataset(HOPPER, path)
        d4rl_data.describe(HOPPER, dataset)
        d4rl_data.return_range(HOPPER, dataset)
        d4rl_data.qlearning_dataset(HOPPER, dataset=dataset, overwrite=overwrite)

    def peak(call, *given) -> float:
        """In sizes of the arrays."""
        tracemalloc.start()
        call(*given)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / size

    as_scripts_do(True)  # imports
    assert peak(as_scripts_do, True) < 2.1 < 2.5 < peak(as_scripts_do, False)
    assert peak(d4rl_data.qlearning_dataset, HOPPER, path) < 2.1


def test_episode_returns():
    data = arrays(7, rewards=2.0 ** np.arange(7), terminals=np.arange(7) == 1, timeouts=np.arange(7) == 4)
    np.testing.assert_array_equal(
        d4rl_data.episode_returns(HOPPER, data), [3, 28]
    )  # the tail has not finished
    assert d4rl_data.return_range(HOPPER, data) == 25
    said = d4rl_data.describe(HOPPER, data)
    assert said == "7 steps, 2 episodes with returns 3.0 to 28.0 (mean 15.5), 11 observations, 3 actions"
    data |= {"terminals": np.zeros(7, bool), "timeouts": np.zeros(7, bool)}
    np.testing.assert_array_equal(d4rl_data.episode_returns(HOPPER, data), [127])
    with pytest.raises(DatasetError, match="All episodes have the same return"):
        d4rl_data.return_range(HOPPER, data)
    counted = arrays(250, PEN, rewards=np.ones(250), terminals=np.arange(250) == 29)
    del counted["timeouts"]
    np.testing.assert_array_equal(d4rl_data.episode_returns(PEN, counted), [30, 100, 100])


# --- what is unlikely ---
def leave_out_comparison(monkeypatch):
    """With what the environment observes: test_evaluation.py."""
    monkeypatch.setattr(evaluation, "compare", lambda *given: [])


def sound(**changes) -> dict[str, np.ndarray]:
    """1000 rows of a random walk: ten episodes of 50 steps end by themselves, ten are cut off."""
    data = walk(1000)
    ended = data["timeouts"] & (np.arange(1000) % 100 == 49)
    data |= {"terminals": ended, "timeouts": data["timeouts"] & ~ended}
    return {key: values for key, values in (data | changes).items() if key != "next_observations"}


STEP = np.arange(1000)
ORDER = np.random.default_rng(0).permutation(1000)
UNLIKELY = {
    "nothing": ({}, []),
    "a tail": ({"terminals": STEP == 9, "timeouts": STEP == 19}, []),
    "actions beyond": ({"actions": np.tile([0, 0, 1.01], (1000, 1))}, ["100 % of the actions are outside"]),
    "rounded actions": ({"actions": np.tile([0, -1, 1.000001], (1000, 1))}, []),
    "actions from 0": ({"actions": np.tile([0, 0.5, 1], (1000, 1))}, ["actions go from 0 to 1, but"]),
    "normalised": (
        {"observations": arrays(1000)["observations"]},
        ["a row is", "every entry of an observation"],
    ),
    "unwritten": (
        {key: values * (STEP < 990)[:, None] for key, values in sound().items() if values.ndim == 2},
        ["10 rows are 0 in all observations and actions"],
    ),
    "whole observations": (
        {"observations": np.rint(sound()["observations"])},
        ["all observations are whole"],
    ),
    "whole actions": ({"actions": np.rint(sound()["actions"])}, ["all actions are whole numbers"]),
    "one far": (
        {"observations": sound()["observations"] + 1e9 * np.outer(STEP == 7, np.arange(11) == 3)},
        ["entry 3 of an observation is 1e+09 in one row"],
    ),
    "rewards 0": ({"rewards": np.zeros(1000)}, ["all rewards are 0: nothing but imitation"]),
    "rewards 1": ({"rewards": np.ones(1000)}, []),  # a terminal ends them
    "missing ends": ({"timeouts": STEP % 200 == 99}, ["observations jump after row 199 and elsewhere"]),
    "not done": ({"terminals": STEP % 50 != 49}, ["980 of 1,000 rows are terminals"]),
    "stored again": (
        {"observations": np.repeat(sound()["observations"][49::50], 50, axis=0)},
        ["observations hardly ever change inside an episode"],
    ),
    "shuffled": ({"observations": sound()["observations"][ORDER]}, ["a row is as far from the next one"]),
    "late ends": (
        {key: np.roll(sound()[key], 1) for key in ("terminals", "timeouts")},
        ["observations jump one row before the ends of episodes"],
    ),
    "early ends": (
        {key: np.roll(sound()[key], -1) for key in ("terminals", "timeouts")},
        ["observations jump one row after the ends of episodes"],
    ),
}


@pytest.mark.parametrize(("changes", "expected"), UNLIKELY.values(), ids=UNLIKELY)
def test_warnings(changes, expected, monkeypatch):
    leave_out_comparison(monkeypatch)
    data = sound(**changes)
    found = d4rl_data.warnings_about(HOPPER, data)
    assert len(found) == len(expected), found
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)
    assert d4rl_data.describe(HOPPER, data).splitlines()[1:] == [f"warning: {sentence}" for sentence in found]


def test_where_episodes_begin(monkeypatch):
    """What the environment is compared with: rows after an end."""
    given = []
    monkeypatch.setattr(evaluation, "compare", lambda *arguments: given.append(arguments[3]) or [])
    data = sound()
    rows = [0, *(i + 1 for i in range(999) if data["terminals"][i] or data["timeouts"][i])]
    d4rl_data.warnings_about(HOPPER, data)
    np.testing.assert_array_equal(given[0], data["observations"][rows])
    d4rl_data.warnings_about(HOPPER, data | {"next_observations": data["observations"]})  # in no order
    assert given[1] is None


def test_warnings_about_lengths(monkeypatch):
    """Longer than the task's 100 steps; cut off there and called terminal."""
    leave_out_comparison(monkeypatch)
    observations = np.random.default_rng(0).standard_normal((1000, 45)).cumsum(0)
    ends = np.isin(STEP, [99, 199, 301])  # and rows after the last one
    data = arrays(1000, PEN, observations=observations, terminals=STEP < 0, timeouts=ends)
    (longer,) = d4rl_data.warnings_about(PEN, data)
    assert longer.startswith("2 of 4 episodes have more than the task's 100 steps (up to 698)")
    data |= {"terminals": STEP % 100 == 99, "timeouts": STEP < 0}
    (cut,) = d4rl_data.warnings_about(PEN, data)
    assert cut.startswith("10 of 10 episodes have a terminal at the task's last step, 100")


def test_a_warning_where_ends_are_only_counted(monkeypatch):
    """Neither terminals nor time-outs, in more rows than an episode has."""
    leave_out_comparison(monkeypatch)
    data = {key: values for key, values in sound(terminals=STEP < 0).items() if key != "timeouts"}
    assert d4rl_data.warnings_about(HOPPER, data) == []  # one episode of 1,000 steps
    twice = {key: np.concatenate([values, values]) for key, values in data.items()}
    (counted,) = d4rl_data.warnings_about(HOPPER, twice)
    assert counted.startswith(
        "no row is a terminal and there are no timeouts: every episode is taken to have 1,000"
    )
    assert d4rl_data.warnings_about(HOPPER, twice | {"timeouts": np.arange(2000) % 50 == 49}) == []
    assert d4rl_data.warnings_about(HOPPER, twice | {"terminals": np.arange(2000) == 499}) == []


# --- bounds of actions, identity of data ---
def bounded_task(monkeypatch, low, high) -> str:
    """A task added by hand, as docs/data.md says, with Pendulum's environment and other bounds."""
    spec = dataclasses.replace(
        d4rl.task(HOPPER), env_id="bounds-v0", observation_size=3, action_size=len(low)
    )

    class Env(PendulumEnv):
        def __init__(self, render_mode=None):
            super().__init__()
            self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high))

    monkeypatch.setitem(d4rl.TASKS, "bounds-v0", spec)
    monkeypatch.setitem(
        gymnasium.registry,
        "bounds-v0",
        gymnasium.envs.registration.EnvSpec("bounds-v0", Env, disable_env_checker=True),
    )
    return "bounds-v0"


def test_bounds_are_the_environments(monkeypatch):
    env_id = bounded_task(monkeypatch, [-2], [2])
    np.testing.assert_array_equal(d4rl_data.action_bounds(env_id), [[-2], [2]])
    data = {"actions": np.array([[-5], [0.5]], np.float32)}
    np.testing.assert_array_equal(d4rl_data.action_bounds(env_id, data), [[-2], [2]])


def test_bounds_of_the_data_where_there_are_none(monkeypatch):
    most = np.finfo(np.float32).max
    env_id = bounded_task(monkeypatch, [-np.inf, 0, -most, 3], [np.inf, most, 1, 3])
    data = {"actions": np.array([[-5, 1, 0.5, 3], [5, 7, 0, 3]], np.float32)}
    low, high = d4rl_data.action_bounds(env_id, data)
    np.testing.assert_array_equal([low, high], [[-5, 0, 0, 3], [5, 7, 1, 4]])  # of the last: any width
    assert low.dtype == high.dtype == np.float32


def test_fingerprint():
    """Row 0 knows observations and actions, row 1 all arrays: values, types, shapes and names."""
    data = d4rl.qlearning_dataset(
        HOPPER, dataset=arrays(20, terminals=np.arange(20) == 3, timeouts=np.zeros(20))
    )
    prints = d4rl_data.fingerprint(data)
    assert prints.shape == (2, 32) and prints.dtype == np.uint8
    sha256 = hashlib.sha256()
    for key, shape in (("observations", "(19, 11)"), ("actions", "(19, 3)")):
        sha256.update(f"{key} float32 {shape}".encode() + data[key].tobytes())
    assert prints[0].tobytes() == sha256.digest()
    np.testing.assert_array_equal(d4rl_data.fingerprint(dict(reversed(data.items()))), prints)
    for key, values in data.items():
        changed = values.copy()
        changed[7] = ~changed[7] if key == "terminals" else np.nextafter(changed[7], np.float32(9))
        for other in (changed, values.astype(np.float64), values[:-1], values[::-1]):
            same = (d4rl_data.fingerprint(data | {key: other}) == prints).all(axis=1)
            assert same.tolist() == [key not in ("observations", "actions"), False]


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
