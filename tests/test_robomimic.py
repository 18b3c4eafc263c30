"""robomimic's files and environments. `runs` is a global: test_mutations.py puts altered copies there."""

import json
import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from common import SCRIPTS, play, run, tiny

import d4rl
from d4rl import robomimic_tasks as d4rl_robomimic_tasks
from d4rl import runs

STANDINS = os.environ.get("SAQ_STANDIN_DIR", "")
standins = pytest.mark.skipif(not STANDINS, reason="SAQ_STANDIN_DIR names no folder with stand-in datasets")
robosuite = pytest.mark.skipif(not find_spec("robosuite"), reason="robosuite is not installed")
LIFT = d4rl.task("robomimic/lift-ph")
OSC = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1, "ramp_ratio": 0.2}
OSC |= {"output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3, "kp_limits": [0, 300]}
OSC |= {"damping_limits": [0, 10], "position_limits": None, "orientation_limits": None, "interpolation": None}
OSC |= {"uncouple_pos_ori": True, "control_delta": True, "impedance_mode": "fixed"}
OBJECT_SIZES = {"lift": 10, "can": 14, "square": 14, "tool_hang": 44, "transport": 41}
SIZES = {"lift": 19, "can": 23, "square": 23, "tool_hang": 53, "transport": 59}


def env_args(task: str, version: str = "1.5.2") -> dict:
    """What robomimic's files say of their environment."""
    arm = OSC | {"input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    controller = OSC if version.startswith("1.4") else {"type": "BASIC", "body_parts": {"right": arm}}
    kwargs = {"robots": ["Panda"], "controller_configs": controller, "control_freq": 20}
    if task == "transport":
        kwargs |= {"robots": ["Panda"] * 2, "controller_configs": [controller] * 2}
        kwargs |= {"env_configuration": "single-arm-opposed"}
    if not version.startswith("1.4"):
        kwargs["lite_physics"] = False
    name = d4rl_robomimic_tasks.ENVIRONMENTS[task]
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def columns(task: str, rows: range) -> dict[str, np.ndarray]:
    """Observations in which every number says where it comes from: row + column / 1000."""
    sizes = {f"robot{arm}_{key}": size for arm in (0, 1) for key, size in (("eef_pos", 3), ("eef_quat", 4))}
    sizes |= {"robot0_gripper_qpos": 2, "robot1_gripper_qpos": 2, "object": OBJECT_SIZES[task]}
    return {key: np.array(rows)[:, None] + np.arange(size) / 1000 for key, size in sizes.items()}


def write(path: Path, task: str = "lift", version: str = "1.5.2", lengths: tuple[int, ...] = (3, 2)) -> Path:
    """A small file in robomimic's format. The last two rows of every demonstration are rewarded."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(env_args(task, version))
        for number, length in enumerate(lengths):
            first = 100 * number
            demo = data.create_group(f"demo_{number}")
            for group, start in (("obs", first), ("next_obs", first + 1)):
                for key, values in columns(task, range(start, start + length)).items():
                    demo[f"{group}/{key}"] = values
            demo["actions"] = np.full((length, 14 if task == "transport" else 7), number / 10)
            demo["rewards"] = (np.arange(length) >= length - 2).astype(float)
            demo["dones"] = demo["rewards"][()].astype(int)
    return path


POSE, SEEN = list(range(7)), list(range(7, 14))  # of an object; seen from the gripper
AS_IN_1_5 = {
    "can": SEEN + POSE,
    "square": SEEN + POSE,
    "tool_hang": [14 * i + j for i in range(3) for j in SEEN + POSE] + [42, 43],
    "transport": [*range(27), 39, 40, *range(27, 39)],
}


# --- files ---
@pytest.mark.parametrize("task", SIZES)
def test_observations_hold_every_arm_and_the_objects(task, tmp_path):
    env_id, robot = f"robomimic/{task}-ph", 18 if task == "transport" else 9
    data = d4rl.get_dataset(env_id, write(tmp_path / "f.hdf5", task))
    assert data["observations"].shape == (5, SIZES[task]) == (5, d4rl.task(env_id).observation_size)
    parts = [range(3), range(4), range(2)] * (robot // 9) + [range(OBJECT_SIZES[task])]
    expected = np.array([0, 1, 2, 100, 101])[:, None] + np.concatenate(parts) / 1000
    np.testing.assert_allclose(data["observations"], expected, rtol=1e-6)
    np.testing.assert_allclose(data["next_observations"], expected + 1, rtol=1e-6)

    old = d4rl.get_dataset(env_id, write(tmp_path / "old.hdf5", task, "1.4.1"))
    for key in ("observations", "next_observations"):
        np.testing.assert_array_equal(old[key][:, :robot], data[key][:, :robot])
        if task == "lift":  # the same order, but the distance counted from the other end
            np.testing.assert_array_equal(old[key][:, robot:] * ([1] * 7 + [-1] * 3), data[key][:, robot:])
        else:
            np.testing.assert_array_equal(old[key][:, robot:], data[key][:, robot:][:, AS_IN_1_5[task]])


def test_demonstrations(tmp_path):
    """In the order of their numbers; an episode ends at success, and no row is dropped."""
    path = write(tmp_path / "f.hdf5", lengths=tuple(range(3, 15)))  # by name, demo_10 comes before demo_2
    with h5py.File(path, "r+") as file:
        file["data/demo_1/rewards"][...] = 0
    data = d4rl_robomimic_tasks.read(LIFT, path)
    np.testing.assert_allclose(np.unique(data["actions"]), np.arange(12) / 10, rtol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(data["timeouts"]), np.cumsum(range(3, 15)) - 1)
    assert data["rewards"][:12].tolist() == [0, 1, 1, *[0] * 7, 1, 1]
    np.testing.assert_array_equal(data["terminals"], data["rewards"])
    assert d4rl.episode_returns("robomimic/lift-ph", data).tolist() == [1, 0] + [1] * 10  # at success, once
    transitions = d4rl.qlearning_dataset("robomimic/lift-ph", path)
    for key, values in transitions.items():
        np.testing.assert_array_equal(values, np.asarray(data[key], values.dtype))


def change(path: Path, changes: dict) -> Path:
    """Put other arrays, or with None nothing, in the place of a file's own; "env_args" are its arguments."""
    with h5py.File(path, "r+") as file:
        for key, values in changes.items():
            place = file["data"].attrs if key == "env_args" else file
            if key in place:
                del place[key]
            if values is not None:
                place[key] = json.dumps(values) if key == "env_args" else values
    return path


DENSE, BOTH = ([0.1, 0.4, 1, 1], [0.1, 0.2, 0.3]), [0, 0, 1, 1, 0, 0, 1]
FIRST = [0, 0, 1, 1, 0, 0, 0]  # only the first of two demonstrations succeeds
REWARDS = {  # of the two demonstrations, and their dones; which rows are success; what is said
    "sparse": ([0, 0, 1, 1], [0, 0, 1], None, None, BOTH, ""),
    "never": ([0, 0, 1, 1], [0, 0, 0], [0, 0, 0, 1], [0, 0, 1], FIRST, ""),
    "dense": (*DENSE, [0, 0, 1, 1], [0, 0, 0], FIRST, "1 of 2"),
    "ends": (*DENSE, [0, 0, 1, 1], [0, 0, 1], FIRST, "1 of 2"),
    "late, dense": (DENSE[0], [0.1, 0.2, 1], [0, 0, 1, 1], [0, 0, 1], BOTH, "2 of 2"),
    "costs": ([-1, -1, 0, 0], [-1, -1, -1], None, None, FIRST, "are -1 and 0: 0 is read as success"),
    "scaled": ([0, 0, 100, 100], [0, 0, 100], None, None, BOTH, "are 0 and 100: 100 is read"),
    "zeros": ([0] * 4, [0] * 3, [0, 0, 0, 1], [0, 0, 1], [0, 0, 0, 1, 0, 0, 1], "0 to 0, not 1 and 0: dones"),
    "ones": ([1] * 4, [1] * 3, [0, 0, 1, 1], [0, 0, 0], FIRST, "rewards are 1 to 1"),
    "none": (None, None, [0, 0, 1, 1], [0, 0, 1], BOTH, "there are no rewards: dones are read"),
}


def with_rewards(path: Path, *arrays) -> Path:
    keys = [f"data/demo_{number}/{key}" for key in ("rewards", "dones") for number in (0, 1)]
    return change(write(path, lengths=(4, 3)), dict(zip(keys, arrays, strict=True)))


@pytest.mark.parametrize("case", REWARDS)
def test_rewards_become_success(case, tmp_path, monkeypatch):
    """1 at success, wherever a file says clearly when that is; it is told how that was read."""
    *arrays, success, sentence = REWARDS[case]
    path = with_rewards(tmp_path / "f.hdf5", *arrays)
    data = d4rl_robomimic_tasks.read(LIFT, path)
    assert data["rewards"].tolist() == data["terminals"].tolist() == success
    assert data["timeouts"].tolist() == [0, 0, 0, 1, 0, 0, 1]
    said = d4rl_robomimic_tasks.remarks(LIFT, path)
    assert len(said) == bool(sentence) and sentence in "".join(said)
    monkeypatch.setattr(d4rl.evaluation, "compare", lambda *given: [])
    dataset = d4rl.get_dataset("robomimic/lift-ph", path)
    assert set(said) <= set(d4rl.warnings_about("robomimic/lift-ph", dataset, path))


ENDS, NO = ([0, 0, 0, 1], [0, 0, 1]), (None, None)
UNCLEAR = {
    "dense alone": (*DENSE, *NO, "rewards are 0.1 to 1, not 1 and 0, and no dones mark success"),
    "dense, ends": (*DENSE, *ENDS, "dones only mark the ends; write rewards of 1 at success"),
    "all zero": ([0] * 4, [0] * 3, [0] * 4, [0] * 3, "are 0 to 0, not 1 and 0, and no dones mark success"),
    "nothing": (*NO, *NO, "there are no rewards, and no dones mark success; write rewards of 1 at"),
    "numbers": (*NO, [0, 1, 2, 3], [0, 1, 2], "dones holds other values than 0 and 1"),
    "nan": ([0, 0, 1, np.nan], [0, 0, 1], *ENDS, "rewards is NaN, infinite or .* in 1 of 7 rows"),
    "in one": ([0, 0, 1, 1], None, *ENDS, "demo_1 lacks rewards"),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_rewards_that_do_not_say_success(case, tmp_path):
    *arrays, sentence = UNCLEAR[case]
    path = with_rewards(tmp_path / "f.hdf5", *arrays)
    with pytest.raises(d4rl.DatasetError, match=sentence):
        d4rl.qlearning_dataset("robomimic/lift-ph", dataset=d4rl_robomimic_tasks.read(LIFT, path))


def test_without_next_observations(tmp_path):
    """A last row that is no success has no next state, and makes no transition; a success needs none."""
    path = with_rewards(tmp_path / "f.hdf5", [0, 0, 0, 0], [0, 0, 1], None, None)
    whole = d4rl.qlearning_dataset("robomimic/lift-ph", path)
    change(path, {"data/demo_0/next_obs": None, "data/demo_1/next_obs": None})
    read = d4rl_robomimic_tasks.read(LIFT, path)
    assert read["timeouts"].tolist() == [0, 0, 0, 1, 0, 0, 1] and "next_observations" not in read
    data, rows = d4rl.qlearning_dataset("robomimic/lift-ph", dataset=read), [0, 1, 2, 4, 5, 6]
    for key in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_array_equal(data[key], whole[key][rows])
    np.testing.assert_array_equal(data["next_observations"][:5], whole["next_observations"][rows[:5]])


def test_files_of_other_makers(tmp_path):
    """Other names of demonstrations, groups beside them, no version of robosuite."""
    path = write(tmp_path / "f.hdf5", lengths=(3, 2, 2))
    usual = d4rl_robomimic_tasks.read(LIFT, path)
    with h5py.File(path, "r+") as file:
        for number, name in enumerate(("ep2-run1", "ep2-run9", "ep2-run10")):
            file["data"].move(f"demo_{number}", name)
        file["data/statistics/mean"] = np.zeros(19)
        file["data/note"] = 1
        args = env_args("lift")
        del args["env_version"]
        file["data"].attrs["env_args"] = json.dumps(args)
    for key, values in d4rl_robomimic_tasks.read(LIFT, path).items():
        np.testing.assert_array_equal(values, usual[key])
    assert d4rl_robomimic_tasks.remarks(LIFT, path) == []


def controlled(version: str, **settings) -> dict:
    """Arguments with other settings of the controller."""
    args = json.loads(json.dumps(env_args("lift", version)))  # (a copy)
    controller = args["env_kwargs"]["controller_configs"]
    controller.get("body_parts", {"right": controller})["right"].update(settings)
    return args


NO_VERSION = {key: value for key, value in env_args("lift", "1.4.1").items() if key != "env_version"}
DAMAGE = {  # what takes the place of what in a file, and what is said
    "key": ({"data/demo_1/obs/object": None}, "demo_1 lacks obs/object; pass a low-dimensional file"),
    "next": ({"data/demo_0/next_obs": None}, "demo_0 lacks next_obs/robot0_eef_pos"),
    "nan": ({"data/demo_0/obs/object": np.full((3, 10), np.nan)}, "observations is NaN.* in 3 of 5 rows"),
    "size": (
        {"data/demo_0/actions": np.zeros((3, 6))},
        r"demo_0/actions .* \(3, 6\); .* \(3, 7\)",
    ),
    "hand": (
        {"data/demo_0/obs/robot0_gripper_qpos": np.zeros((3, 6))},
        "demo_0/obs/robot0_gripper_qpos",
    ),
    "rows": ({"data/demo_1/obs/object": np.zeros((3, 10))}, r"demo_1/obs/object .* \(3, 10\); .* \(2, 10\)"),
    "text": ({"data/demo_1/actions": np.full((2, 7), b"x")}, r"demo_1/actions holds \|S1 of shape"),
    "actions": ({"data/demo_1/actions": None}, "demo_1 lacks actions"),
    "demonstrations": ({"data/demo_0": None, "data/demo_1": None}, "holds no demonstrations"),
    "args": ({"env_args": None}, "has no environment arguments"),
    "data": ({"data": None}, "has no environment arguments"),
    "kwargs": ({"env_args": {"env_name": "Lift", "env_kwargs": None}}, "has no environment arguments"),
    "version": ({"env_args": env_args("lift", "1.2.0")}, "robosuite 1.2.0; 1.4 and 1.5 can be read"),
    "no version": ({"env_args": NO_VERSION}, "does not say which version of robosuite recorded it; write it"),
    "task": ({"env_args": env_args("can")}, "in PickPlaceCan, robomimic/lift-ph needs Lift; did you mean"),
    "absolute": ({"env_args": controlled("1.5.1", input_type="absolute")}, "absolute poses .* pass a file"),
    "not delta": ({"env_args": controlled("1.4.1", control_delta=False)}, "actions that are absolute poses"),
    "pi": ({"data/demo_0/actions": np.full((3, 7), 3.1)}, r"60 % of the actions reach outside \[-1, 1\], as"),
}


@pytest.mark.parametrize(("changes", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(changes, sentence, tmp_path):
    path = change(write(tmp_path / "f.hdf5"), changes)
    with pytest.raises(d4rl.DatasetError, match=sentence) as error:
        d4rl.qlearning_dataset("robomimic/lift-ph", dataset=d4rl_robomimic_tasks.read(LIFT, path))
    assert "\n" not in str(error.value)


# --- environments ---
def play_actions(env, seed: int, steps: int = 5) -> np.ndarray:
    """Observations (steps + 1, size) of random actions."""
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, *env.action_space.shape))
    return np.array([env.reset(seed=seed)[0], *[env.step(action)[0] for action in actions]])


@robosuite
@pytest.mark.parametrize("task", SIZES)
def test_environment(task, tmp_path):
    """Sizes, seeds, success; a file of robosuite 1.4 describes the same environment."""
    env_id = f"robomimic/{task}-ph"
    paths = [write(tmp_path / f"{version}.hdf5", task, version) for version in ("1.5.2", "1.4.1")]
    env, old = (gymnasium.make(env_id, dataset_path=path) for path in paths)
    spec = d4rl.task(env_id)
    assert env.observation_space.shape == (SIZES[task],)
    assert spec.max_episode_steps == (700 if task in ("tool_hang", "transport") else 400)
    np.testing.assert_array_equal([env.action_space.low, env.action_space.high], d4rl.action_bounds(env_id))
    other, first = play_actions(env, 2), play_actions(env, 1)
    np.testing.assert_array_equal(play_actions(old, 1), first)
    assert np.abs(first - other).max() > 1e-3
    assert np.count_nonzero(first[0, 9:]) > OBJECT_SIZES[task] / 2
    inner, still = env.unwrapped.robosuite_env, np.zeros(spec.action_size)
    entries = inner._get_observations()
    np.testing.assert_array_equal(first[-1, :3], entries["robot0_eef_pos"])
    np.testing.assert_array_equal(first[-1, 3:7], entries["robot0_eef_quat"])
    assert env.step(still)[1:] == (0.0, False, False, {"success": False})
    inner._check_success = lambda: True
    assert env.step(still)[1:] == (1.0, True, False, {"success": True})


@robosuite
@standins
def test_a_recorded_demonstration_succeeds_again():
    """From a demonstration's first state, its actions move the arm as they did and succeed when they did."""
    path = Path(STANDINS, "robomimic", "lift", "ph", "low_dim_v15.hdf5")
    env = gymnasium.make("robomimic/lift-ph", dataset_path=path)
    data = d4rl.get_dataset("robomimic/lift-ph", path)
    assert len(data["rewards"]) == 13_052 and len(d4rl.episode_returns("robomimic/lift-ph", data)) == 200
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        state, model, length = demo["states"][0], demo.attrs["model_file"], len(demo["actions"])
    env.reset(seed=0)
    inner = env.unwrapped.robosuite_env
    inner.reset_from_xml_string(inner.edit_model_xml(model))  # (the cube has the size that it had then)
    inner.sim.reset()
    np.testing.assert_allclose(observe(env.unwrapped, state), data["observations"][0], atol=1e-6)
    for step in range(length):
        observation, reward, terminated, _, _ = env.unwrapped.step(data["actions"][step].astype(np.float64))
        np.testing.assert_allclose(observation[:3], data["next_observations"][step, :3], atol=0.01)  # m
        assert (reward, terminated) == (data["rewards"][step], data["terminals"][step])
    assert terminated


def observe(env, state) -> np.ndarray:
    """The observation of a simulator's state."""
    inner = env.robosuite_env
    inner.sim.set_state_from_flattened(state)
    inner.sim.forward()
    inner._get_observations(force_update=True)  # twice: poses seen from the gripper lag by one observation
    return env._observation(inner._get_observations(force_update=True))


@pytest.mark.slow
@robosuite
@pytest.mark.parametrize("task", ["can", "square", "tool_hang", "transport"])
def test_what_is_not_done_anew_changes_nothing(task, tmp_path):
    """The model at a reset (but for transport) and the limits of actions, bit for bit."""
    path, rows = write(tmp_path / "f.hdf5", task), []
    for anew in (False, True):
        env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path)
        inner = env.unwrapped.robosuite_env
        assert inner.hard_reset == (task == "transport")
        if anew:
            inner.hard_reset = True
            for robot in inner.robots:
                robot.__class__ = robot.__class__.__base__
        assert isinstance(type(inner.robots[0]).action_limits, property) == anew
        env.reset(seed=7)
        rows.append(play_actions(env, 3, steps=30))
    np.testing.assert_array_equal(*rows)


@pytest.mark.slow
@robosuite
def test_lift_with_its_cube_resized_is_the_model_built_anew(tmp_path):
    """Every array of the model, and what follows in an episode."""
    path, envs = write(tmp_path / "f.hdf5", "lift"), []
    for hard in (False, True):
        envs.append(gymnasium.make("robomimic/lift-ph", dataset_path=path).unwrapped)
        if hard:
            envs[-1].robosuite_env.hard_reset = True
            envs[-1].task_name = ""  # robosuite draws the size itself
    sizes = []
    for seed in range(4):
        np.testing.assert_array_equal(*(env.reset(seed=seed)[0] for env in envs))
        models = [env.robosuite_env.sim.model._model for env in envs]
        arrays = [name for name in dir(models[0]) if isinstance(getattr(models[0], name), np.ndarray)]
        assert len(arrays) > 300
        for name in arrays:
            np.testing.assert_allclose(*(getattr(model, name) for model in models), rtol=1e-12, err_msg=name)
        assert models[0].stat.meaninertia == pytest.approx(models[1].stat.meaninertia, rel=1e-12)
        np.testing.assert_allclose(*(play_actions(env, seed, steps=30) for env in envs), atol=1e-9)
        sizes.append(tuple(models[0].geom("cube_g0").size))
    assert len(set(sizes)) == 4


def test_robosuite_is_needed_only_for_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path / "f.hdf5")
    monkeypatch.setitem(sys.modules, "robosuite", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as if it were not installed
    assert len(d4rl.get_dataset("robomimic/lift-ph", path)["rewards"]) == 5
    for use in (d4rl.playable_task, lambda env_id: d4rl.make(env_id, path)):
        with pytest.raises(
            d4rl.DatasetError, match=r'is missing: pip install -e "./d4rl\[robomimic\]" in the clone'
        ):
            use("robomimic/lift-ph")


def test_a_robosuite_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "robosuite.py").write_text("raise ImportError('numba needs\\nanother numpy')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "robosuite", raising=False)
    sentence = "robosuite cannot be imported here .ImportError: numba needs another numpy.; pip install -e"
    with pytest.raises(d4rl.DatasetError, match=sentence):
        d4rl.playable_task("robomimic/lift-ph", write(tmp_path / "f.hdf5"))


# --- evaluation ---
REFUSED = [  # arguments of the environment, and what is said
    (
        {"wings": 2},
        "cannot be built here \\(TypeError: [^{]*'wings'\\); look at env_kwargs in the file's env_args",
    ),
    ({"robots": ["Heron"]}, "cannot be built here .*Heron.*; look at env_kwargs"),
    ({"controller_configs": OSC | {"input_max": 2}}, "actions are from -1 to 2; only -1 to 1 can be played"),
]


@robosuite
@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_what_robosuite_refuses_is_said_before_training(changes, sentence, tmp_path, capfd):
    args = env_args("lift", "1.4.1")
    args["env_kwargs"] |= changes
    path = change(write(tmp_path / "f.hdf5"), {"env_args": args})
    with pytest.raises(d4rl.DatasetError, match=sentence) as error:
        d4rl.playable_task("robomimic/lift-ph", path)
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""


def test_a_worker_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_PROCESSES", "1")
    with pytest.raises(d4rl.DatasetError, match="recorded in Lift"):
        d4rl.evaluate("robomimic/can-ph", None, 4, 0, h5path=write(tmp_path / "f.hdf5"))


@robosuite
def test_a_run_is_played_after_its_file_has_moved(tmp_path, monkeypatch):
    """The file says how the environment is built; the run remembers where it was."""
    path = write(tmp_path / "f.hdf5", lengths=(40, 40))
    used = []

    def evaluate(env_id, act, episodes, seed, video_folder=None, h5path=None):
        used.append(str(h5path))
        return [1.0] * episodes

    monkeypatch.setattr(d4rl, "evaluate", evaluate)
    flags = ["--env-id", "robomimic/lift-ph", "--dataset-path", path]
    folder = run("saq_bc", tmp_path, *flags, *tiny("saq_bc", steps=2, eval_every=2, episodes=1))
    play("saq_bc", "--evaluate", folder)
    moved = path.rename(tmp_path / "moved.hdf5")
    assert play("saq_bc", "--evaluate", folder, "--dataset-path", moved) == 100
    assert used == [str(path), str(path), str(moved)]
    with pytest.raises(d4rl.DatasetError, match="no readable file"):
        d4rl.make("robomimic/lift-ph", path)


def test_a_run_is_played_with_its_own_data(tmp_path, monkeypatch):
    """Another file may describe another environment, whose scores are none of the run's."""
    monkeypatch.setattr(d4rl.evaluation, "playable_task", lambda *_: LIFT)
    monkeypatch.setattr(d4rl, "evaluate", lambda *_: [1.0])
    path = write(tmp_path / "f.hdf5", lengths=(40, 40))
    flags = ["--env-id", "robomimic/lift-ph", "--dataset-path", path]
    folder = run("saq_bc", tmp_path, *flags, *tiny("saq_bc", steps=2, eval_every=2, episodes=1))

    def prepare(*more):
        runs.prepare(SCRIPTS["saq_bc"].parse_args(["--evaluate", str(folder), *map(str, more)]))

    prepare()
    moved = path.rename(tmp_path / "moved.hdf5")
    prepare("--dataset-path", moved)
    other = write(tmp_path / "other.hdf5", lengths=(40, 39))
    with pytest.raises(d4rl.UsageError, match="trained on other data .*--dataset-path"):
        prepare("--dataset-path", other)
    write(path, lengths=(40, 39))  # where the run's own file was
    with pytest.raises(d4rl.UsageError, match="trained on other data .*--dataset-path"):
        prepare()


# --- against the originals ---
def fresh_python(folder: Path, *packages: str) -> Path:
    """The Python of a new virtual environment that holds `packages`."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip install {' '.join(packages)} failed: {done.stderr[-300:]}")
    return python


SEQUENCES = """
import sys, numpy as np
import robomimic.utils.obs_utils as obs_utils
from robomimic.utils.dataset import SequenceDataset
keys = [key for part in ("eef_pos", "eef_quat", "gripper_qpos") for key in ["robot0_" + part]] + ["object"]
obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": keys}}])
how = {"hdf5_cache_mode": "all", "hdf5_use_swmr": False}
data = SequenceDataset(sys.argv[1], keys, ["actions", "rewards", "dones"], **how)
rows = [data[i] for i in range(len(data))]
out = {key: np.concatenate([row[key] for row in rows]) for key in ("actions", "rewards", "dones")}
for ours, theirs in (("observations", "obs"), ("next_observations", "next_obs")):
    out[ours] = np.concatenate([np.concatenate([row[theirs][key] for key in keys], axis=1) for row in rows])
np.savez(sys.argv[2], **out)
"""


@pytest.mark.slow
@standins
def test_arrays_equal_robomimics_own(tmp_path):
    """robomimic 0.3.0's SequenceDataset, in a virtual environment, gives the same rows in the same order."""
    python = fresh_python(tmp_path / "venv", "torch==2.13.0", "numpy<2", "h5py", "tqdm", "termcolor")
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "robomimic==0.3.0"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("robomimic 0.3.0 cannot be installed")
    for task in ("lift", "can"):
        path = Path(STANDINS, "robomimic", task, "ph", "low_dim_v15.hdf5").resolve()
        command = [python, "-c", SEQUENCES, path, tmp_path / "out.npz"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        ours, theirs = d4rl.get_dataset(f"robomimic/{task}-ph", path), np.load(tmp_path / "out.npz")
        for key in ("observations", "next_observations", "actions", "rewards"):
            np.testing.assert_array_equal(ours[key], theirs[key].astype(np.float32))
        success = theirs["dones"] * theirs["rewards"] == 1  # (see `read`)
        np.testing.assert_array_equal(ours["terminals"], success)


RECORD = """
import json, sys, h5py, numpy as np, robosuite
with h5py.File(sys.argv[1], "r+") as file:
    args = json.loads(file["data"].attrs["env_args"])
    args["env_kwargs"] |= dict(ignore_done=True, use_camera_obs=False, has_offscreen_renderer=False)
    np.random.seed(0)
    env = robosuite.make(args["env_name"], **args["env_kwargs"])
    env.reset()
    rng, rows, states, actions = np.random.default_rng(0), [env._get_observations(force_update=True)], [], []
    for _ in range(30):
        states.append(env.sim.get_state().flatten())
        actions.append(rng.uniform(-0.7, 0.7, env.action_dim))
        rows.append(env.step(actions[-1])[0])
    demo = file["data/demo_0"]
    for group, part in (("obs", rows[:-1]), ("next_obs", rows[1:])):
        for key in list(demo[group]):
            name = key.replace("object", "object-state")
            del demo[group][key]
            if name in rows[0]:
                demo[group][key] = np.array([row[name] for row in part])
    for key, values in (("actions", actions), ("rewards", np.arange(30) // 29), ("states", states)):
        if key in demo:
            del demo[key]
        demo[key] = np.array(values)
    del file["data/demo_1"]
"""


@pytest.mark.slow
@robosuite
def test_robosuite_1_4_says_the_same_in_todays_order(tmp_path):
    """Real 1.4.1 records; put into the same states, 1.5 observes the same numbers in the same places."""
    python = fresh_python(tmp_path / "venv", "robosuite==1.4.1", "mujoco==2.3.7", "numpy<2", "h5py")
    for task in SIZES:
        path = write(tmp_path / f"{task}.hdf5", task, "1.4.1")
        subprocess.run([python, "-c", RECORD, path], check=True, capture_output=True, cwd=tmp_path)
        data = d4rl.get_dataset(f"robomimic/{task}-ph", path)
        with h5py.File(path) as file:
            states = file["data/demo_0/states"][()]
        env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path).unwrapped
        env.reset(seed=0)
        for row in range(1, 30, 4):
            # 1.4 observed one physics step (2 ms) before the recorded state; a wrong place differs far more.
            np.testing.assert_allclose(observe(env, states[row]), data["observations"][row], atol=0.02)
