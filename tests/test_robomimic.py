"""robomimic's files and environments, and the evaluation that is spread over processes."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest
from common import ROOT, play, result, run, tiny

import d4rl
from d4rl import evaluation, robomimic_tasks

STANDINS = os.environ.get("SAQ_STANDIN_DIR", "")
standins = pytest.mark.skipif(not STANDINS, reason="SAQ_STANDIN_DIR names no folder with stand-in datasets")
OSC = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
OBJECT_SIZES = {"lift": 10, "can": 14, "square": 14, "tool_hang": 44, "transport": 41}
SIZES = {"lift": 19, "can": 23, "square": 23, "tool_hang": 53, "transport": 59}


def env_args(task: str, version: str = "1.5.2") -> dict:
    """What robomimic's files say of their environment."""
    arm = OSC | {"input_ref_frame": "world", "gripper": {"type": "GRIP"}}
    controller = OSC if version.startswith("1.4") else {"type": "BASIC", "body_parts": {"right": arm}}
    kwargs = {"robots": ["Panda"], "controller_configs": controller, "control_freq": 20, "has_renderer": False}
    if task == "transport":
        kwargs |= {"robots": ["Panda"] * 2, "controller_configs": [controller] * 2}
        kwargs |= {"env_configuration": "single-arm-opposed"}
    if not version.startswith("1.4"):
        kwargs["lite_physics"] = False
    name = robomimic_tasks.ENVIRONMENTS[task]
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
            for group, rows in (
                ("obs", range(first, first + length)),
                ("next_obs", range(first + 1, first + length + 1)),
            ):
                for key, values in columns(task, rows).items():
                    demo[f"{group}/{key}"] = values
            demo["actions"] = np.full((length, 14 if task == "transport" else 7), number / 10)
            demo["rewards"] = (np.arange(length) >= length - 2).astype(float)
            demo["dones"] = demo["rewards"][()].astype(int)
    return path


# --- files ---
@pytest.mark.parametrize("task", SIZES)
def test_observations_hold_every_arm_and_the_objects(task, tmp_path):
    data = d4rl.get_dataset(f"robomimic/{task}-ph", write(tmp_path / "f.hdf5", task))
    assert data["observations"].shape == (5, SIZES[task]) == (5, d4rl.task(f"robomimic/{task}-ph").observation_size)
    parts = [range(3), range(4), range(2)] * (2 if task == "transport" else 1) + [range(OBJECT_SIZES[task])]
    expected = np.concatenate(parts) / 1000
    np.testing.assert_allclose(data["observations"], np.array([0, 1, 2, 100, 101])[:, None] + expected, rtol=1e-6)
    np.testing.assert_allclose(data["next_observations"], data["observations"] + 1, rtol=1e-6)


def test_demonstrations_come_in_the_order_of_their_numbers(tmp_path):
    path = write(tmp_path / "f.hdf5", lengths=tuple(range(1, 13)))  # by name, demo_10 comes before demo_2
    data = d4rl.get_dataset("robomimic/lift-ph", path)
    np.testing.assert_array_equal(np.flatnonzero(data["timeouts"]), np.cumsum(range(1, 13)) - 1)
    np.testing.assert_allclose(np.unique(data["actions"]), np.arange(12) / 10, rtol=1e-6)


def test_an_episode_ends_at_success_and_no_row_is_dropped(tmp_path):
    path = write(tmp_path / "f.hdf5", lengths=(3, 4))
    data = d4rl.get_dataset("robomimic/lift-ph", path)
    assert data["terminals"].tolist() == [False, True, True, False, False, True, True]
    transitions = d4rl.qlearning_dataset("robomimic/lift-ph", path)
    assert transitions["rewards"].tolist() == [0, 1, 1, 0, 0, 1, 1]
    np.testing.assert_array_equal(transitions["next_observations"], data["next_observations"])
    assert d4rl.episode_returns("robomimic/lift-ph", data).tolist() == [1, 1]
    assert "2 episodes with returns 1.0 to 1.0" in d4rl.describe("robomimic/lift-ph", data)


def test_a_demonstration_that_fails_continues(tmp_path):
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/rewards"][...] = 0
    data = d4rl.get_dataset("robomimic/lift-ph", path)
    assert data["terminals"].tolist() == [False, True, True, False, False]
    assert d4rl.episode_returns("robomimic/lift-ph", data).tolist() == [1, 0]


POSE, SEEN = list(range(7)), list(range(7, 14))  # of an object; seen from the gripper
AS_IN_1_5 = {
    "can": SEEN + POSE,
    "square": SEEN + POSE,
    "tool_hang": [14 * i + j for i in range(3) for j in SEEN + POSE] + [42, 43],
    "transport": [*range(27), 39, 40, *range(27, 39)],
}


@pytest.mark.parametrize("task", OBJECT_SIZES)
def test_files_of_robosuite_1_4_are_brought_into_todays_order(task, tmp_path):
    old = d4rl.get_dataset(f"robomimic/{task}-ph", write(tmp_path / "old.hdf5", task, "1.4.1"))
    new = d4rl.get_dataset(f"robomimic/{task}-ph", write(tmp_path / "new.hdf5", task))
    robot = 18 if task == "transport" else 9
    for key in ("observations", "next_observations"):
        np.testing.assert_array_equal(old[key][:, :robot], new[key][:, :robot])
        if task == "lift":  # the same order, but the distance counted from the other end
            np.testing.assert_array_equal(old[key][:, robot:] * ([1] * 7 + [-1] * 3), new[key][:, robot:])
        else:
            np.testing.assert_array_equal(old[key][:, robot:], new[key][:, robot:][:, AS_IN_1_5[task]])


def damage(path: Path, what: str):
    with h5py.File(path, "r+") as file:
        if what == "key":
            del file["data/demo_1/obs/robot0_eef_quat"]
        elif what == "next":
            del file["data/demo_0/next_obs"]
        elif what == "nan":
            file["data/demo_0/obs/object"][0, 0] = np.nan
        elif what == "args":
            del file["data"].attrs["env_args"]
        elif what == "version":
            file["data"].attrs["env_args"] = json.dumps(env_args("lift", "1.2.0"))
        elif what == "actions":
            del file["data/demo_0/actions"]
            file["data/demo_0/actions"] = np.zeros((3, 6))
        elif what == "demonstrations":
            del file["data/demo_0"], file["data/demo_1"]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("key", "demo_1 lacks obs/robot0_eef_quat; pass a low-dimensional file"),
        ("next", "demo_0 lacks next_obs/robot0_eef_pos"),
        ("nan", "observations is NaN or infinite in 1 of 5 rows"),
        ("args", "has no environment arguments"),
        ("version", "recorded with robosuite 1.2.0; 1.4 and 1.5 can be read"),
        ("actions", "is incomplete or damaged"),
        ("demonstrations", "holds no demonstrations"),
    ],
)
def test_damaged_files(what, sentence, tmp_path):
    path = write(tmp_path / "f.hdf5")
    damage(path, what)
    with pytest.raises(d4rl.DatasetError, match=sentence):
        d4rl.get_dataset("robomimic/lift-ph", path)


def test_a_file_of_another_task(tmp_path):
    with pytest.raises(d4rl.DatasetError, match="recorded in Lift, robomimic/can-ph needs PickPlaceCan; did you mean"):
        d4rl.get_dataset("robomimic/can-ph", write(tmp_path / "f.hdf5"))


@standins
@pytest.mark.parametrize(("task", "steps"), [("lift", 13_052), ("can", 43_425)])
def test_standins(task, steps):
    path = Path(STANDINS, "robomimic", task, "ph", "low_dim_v15.hdf5")
    data = d4rl.get_dataset(f"robomimic/{task}-ph", path)
    assert len(data["rewards"]) == steps and len(d4rl.episode_returns(f"robomimic/{task}-ph", data)) == 200
    with h5py.File(path) as file:
        rewards = np.concatenate([file[f"data/demo_{i}/rewards"][()] for i in range(200)])
        np.testing.assert_array_equal(data["rewards"], rewards)
        first = file["data/demo_3/obs"]
        row = np.concatenate(
            [first[k][0] for k in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")]
        )
        start = sum(len(file[f"data/demo_{i}/rewards"]) for i in range(3))
    np.testing.assert_allclose(data["observations"][start], row, rtol=1e-6)


# --- environments ---
@pytest.mark.parametrize("version", ["1.5.2", "1.4.1"])
@pytest.mark.parametrize("task", SIZES)
def test_environment(task, version, tmp_path):
    """Sizes, seeds, success; the controller of a 1.4 file is accepted and does the same as 1.5's."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    env_id = f"robomimic/{task}-ph"
    env = gymnasium.make(env_id, dataset_path=write(tmp_path / "f.hdf5", task, version))
    assert env.observation_space.shape == (SIZES[task],)
    assert env.action_space.shape == (d4rl.task(env_id).action_size,)
    assert env.spec.max_episode_steps == (700 if task in ("tool_hang", "transport") else 400)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, *env.action_space.shape))

    def play(seed):
        rows = [env.reset(seed=seed)[0]]
        for action in actions:
            observation, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated, info["success"]) == (0, False, False, False)
            rows.append(observation)
        return np.array(rows)

    first, other, again = play(1), play(2), play(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first[0, 9:]).min() >= 0 and np.count_nonzero(first[0, 9:]) > OBJECT_SIZES[task] / 2
    inner = env.unwrapped.robosuite_env
    entries = inner._get_observations()
    np.testing.assert_array_equal(first[-1, :3], entries["robot0_eef_pos"])
    np.testing.assert_array_equal(first[-1, 3:7], entries["robot0_eef_quat"])
    inner._check_success = lambda: True
    assert env.step(actions[0])[1:] == (1.0, True, False, {"success": True})


@standins
@pytest.mark.parametrize("task", ["lift", "can"])
def test_a_recorded_demonstration_succeeds_again(task):
    """From a demonstration's first state, its actions move the arm as they did and succeed at the same step."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path = Path(STANDINS, "robomimic", task, "ph", "low_dim_v15.hdf5")
    env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path)
    data = d4rl.get_dataset(f"robomimic/{task}-ph", path)
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        state, model, length = demo["states"][0], demo.attrs["model_file"], len(demo["actions"])
    env.reset(seed=0)
    inner = env.unwrapped.robosuite_env
    inner.reset_from_xml_string(inner.edit_model_xml(model))  # (lift's cube has the size that it had then)
    inner.sim.reset()
    inner.sim.set_state_from_flattened(state)
    inner.sim.forward()
    inner._get_observations(force_update=True)  # twice: poses seen from the gripper lag by one observation
    first = env.unwrapped._observation(inner._get_observations(force_update=True))
    np.testing.assert_allclose(first, data["observations"][0], atol=1e-6)
    for step in range(length):
        observation, reward, terminated, _, _ = env.unwrapped.step(data["actions"][step].astype(np.float64))
        np.testing.assert_allclose(observation[:3], data["next_observations"][step, :3], atol=0.01)  # m
        assert reward == data["rewards"][step] and terminated == data["terminals"][step]
    assert terminated


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "square", "tool_hang"])
def test_which_tasks_need_not_build_their_model_anew(task, tmp_path):
    """Without hard resets these tasks play the same episodes, bit for bit."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path = write(tmp_path / "f.hdf5", task)
    rows = []
    for hard in (False, True):
        env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path)
        assert env.unwrapped.robosuite_env.hard_reset is False
        env.unwrapped.robosuite_env.hard_reset = hard
        env.reset(seed=7)
        rows.append([env.reset(seed=3)[0]])
        for action in np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape)):
            rows[-1].append(env.step(action)[0])
    np.testing.assert_array_equal(*rows)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["can", "transport"])
def test_constant_action_limits_change_nothing(task, tmp_path):
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path, rows = write(tmp_path / "f.hdf5", task), []
    for constant in (True, False):
        env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path)
        for robot in env.unwrapped.robosuite_env.robots:
            if not constant:
                robot.__class__ = robot.__class__.__base__
            assert isinstance(type(robot).action_limits, property) != constant
        rows.append([env.reset(seed=3)[0]])
        for action in np.random.default_rng(0).uniform(-1, 1, (30, *env.action_space.shape)):
            rows[-1].append(env.step(action)[0])
    np.testing.assert_array_equal(*rows)


@pytest.mark.slow
def test_lift_with_its_cube_resized_is_the_model_built_anew(tmp_path):
    """Every array of the model, and what follows in an episode."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path, envs = write(tmp_path / "f.hdf5", "lift"), []
    for hard in (False, True):
        envs.append(gymnasium.make("robomimic/lift-ph", dataset_path=path).unwrapped)
        if hard:
            envs[-1].robosuite_env.hard_reset, envs[-1].task_name = True, ""  # robosuite draws the size itself
    sizes = []
    for seed in range(4):
        np.testing.assert_array_equal(*(env.reset(seed=seed)[0] for env in envs))
        models = [env.robosuite_env.sim.model._model for env in envs]
        arrays = [name for name in dir(models[0]) if isinstance(getattr(models[0], name), np.ndarray)]
        assert len(arrays) > 300
        for name in arrays:
            np.testing.assert_allclose(*(getattr(model, name) for model in models), rtol=1e-12, err_msg=name)
        assert models[0].stat.meaninertia == pytest.approx(models[1].stat.meaninertia, rel=1e-12)
        for action in np.random.default_rng(seed).uniform(-1, 1, (30, 7)):
            np.testing.assert_allclose(*(env.step(action)[0] for env in envs), atol=1e-9)
        sizes.append(tuple(models[0].geom("cube_g0").size))
    assert len(set(sizes)) == 4


def test_robosuite_is_needed_only_for_the_environment(tmp_path, monkeypatch):
    path = write(tmp_path / "f.hdf5")
    code = (
        f"import sys, d4rl; d4rl.get_dataset('robomimic/lift-ph', {str(path)!r}); sys.exit('robosuite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as if it were not installed
    for use in (d4rl.playable_task, lambda env_id: d4rl.make(env_id, path)):
        with pytest.raises(d4rl.DatasetError, match="robosuite, which is missing: pip install robosuite==1.5.2"):
            use("robomimic/lift-ph")


# --- evaluation ---
def act(observations, uniform):
    """A policy that depends on both of its inputs."""
    return np.sin(3 * observations[:, :3]) + uniform[:, None] - 0.5


def test_returns_do_not_depend_on_the_number_of_processes():
    """Each episode has its own random numbers, and an observation is never acted on in company."""
    envs = [gymnasium.make("hopper-medium-v2") for _ in range(5)]
    here = evaluation._play_here(envs, act, list(range(5)), seed=3)
    assert len(set(here.values())) == 5
    for count in (1, 2, 3):
        workers = [evaluation._Worker("hopper-medium-v2", None) for _ in range(count)]
        assert evaluation._play_spread(workers, act, list(range(5)), seed=3) == here
    assert evaluation._play_here(envs[:2], act, [1, 4], seed=3) == {1: here[1], 4: here[4]}


def test_a_worker_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("D4RL_PROCESSES", "2")
    with pytest.raises(d4rl.DatasetError, match="recorded in Lift"):
        d4rl.evaluate("robomimic/can-ph", act, 4, 0, h5path=write(tmp_path / "f.hdf5"))
    worker = evaluation._Worker("hopper-medium-v2", None)
    worker.connection.send(0)
    worker.receive()
    worker.process.kill()
    with pytest.raises(RuntimeError, match=r"has died \(exit code -9\)"):
        worker.receive()


def test_workers_end_with_their_parent():
    code = (
        "from d4rl import evaluation as e; w = e._Worker('hopper-medium-v2', None); w.connection.send(0); w.receive();"
    )
    code += "print(w.process.pid, flush=True); import os; os.kill(os.getpid(), 9)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    for _ in range(100):
        if (
            not Path("/proc", output.strip()).exists()
            or "Z" in Path("/proc", output.strip(), "stat").read_text().split()[2]
        ):
            return
        subprocess.run(["sleep", "0.1"])
    pytest.fail("the worker outlives its parent")


def test_evaluate_a_robomimic_task(tmp_path, monkeypatch):
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    monkeypatch.setenv("D4RL_PROCESSES", "2")
    path = write(tmp_path / "f.hdf5")
    steps = []

    def still(observations, uniform):
        steps.append(len(observations))
        return np.zeros((len(observations), 7))

    assert d4rl.evaluate("robomimic/lift-ph", still, 1, 0, h5path=path) == [0]
    assert steps == [1] * 400


def test_a_run_is_played_after_its_file_has_moved(tmp_path):
    """The file says how the environment is built; the run remembers where it was."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    path = write(tmp_path / "f.hdf5", lengths=(40, 40))
    flags = ["--env-id", "robomimic/lift-ph", "--dataset-path", path]
    folder = run("saq_bc", tmp_path, *flags, *tiny("saq_bc", steps=2, eval_every=2, episodes=1))
    path = path.rename(tmp_path / "moved.hdf5")
    evaluation._workers.cache_clear()  # a process that plays it now starts anew
    with pytest.raises(d4rl.DatasetError, match="no readable file"):
        play("saq_bc", "--evaluate", folder)
    assert play("saq_bc", "--evaluate", folder, "--dataset-path", path) == result(folder)["score"]


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
data = SequenceDataset(sys.argv[1], keys, ["actions", "rewards", "dones"], hdf5_cache_mode="all", hdf5_use_swmr=False)
rows = [data[i] for i in range(len(data))]
out = {key: np.concatenate([row[key] for row in rows]) for key in ("actions", "rewards", "dones")}
for ours, theirs in (("observations", "obs"), ("next_observations", "next_obs")):
    out[ours] = np.concatenate([np.concatenate([row[theirs][key] for key in keys], axis=1) for row in rows])
np.savez(sys.argv[2], **out)
"""


@pytest.mark.slow
@standins
def test_arrays_equal_robomimics_own(tmp_path):
    """robomimic 0.3.0's SequenceDataset, in an environment of its own, gives the same rows in the same order."""
    python = fresh_python(tmp_path / "venv", "torch==2.13.0", "numpy<2", "h5py", "tqdm", "termcolor")
    done = subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "robomimic==0.3.0"], capture_output=True)
    if done.returncode:
        pytest.skip("robomimic 0.3.0 cannot be installed")
    for task in ("lift", "can"):
        path = Path(STANDINS, "robomimic", task, "ph", "low_dim_v15.hdf5").resolve()
        command = [python, "-c", SEQUENCES, path, tmp_path / "out.npz"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        ours, theirs = d4rl.get_dataset(f"robomimic/{task}-ph", path), np.load(tmp_path / "out.npz")
        for key in ("observations", "next_observations", "actions", "rewards"):
            np.testing.assert_array_equal(ours[key], theirs[key].astype(np.float32))
        np.testing.assert_array_equal(ours["terminals"], theirs["dones"] * theirs["rewards"] == 1)  # (see `read`)


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
    for key, values in (("actions", actions), ("rewards", np.zeros(30)), ("states", states)):
        if key in demo:
            del demo[key]
        demo[key] = np.array(values)
    del file["data/demo_1"]
"""


@pytest.mark.slow
def test_robosuite_1_4_says_the_same_in_todays_order(tmp_path):
    """Real 1.4.1 records; put into the same states, 1.5 observes the same numbers in the same places."""
    pytest.importorskip("robosuite", reason="robosuite is not installed")
    python = fresh_python(tmp_path / "venv", "robosuite==1.4.1", "mujoco==2.3.7", "numpy<2", "h5py")
    for task in SIZES:
        path = write(tmp_path / f"{task}.hdf5", task, "1.4.1")
        subprocess.run([python, "-c", RECORD, path], check=True, capture_output=True, cwd=tmp_path)
        data = d4rl.get_dataset(f"robomimic/{task}-ph", path)
        with h5py.File(path) as file:
            states = file["data/demo_0/states"][()]
        env = gymnasium.make(f"robomimic/{task}-ph", dataset_path=path).unwrapped
        env.reset(seed=0)
        inner = env.robosuite_env
        for row in range(1, 30, 4):
            inner.sim.set_state_from_flattened(states[row])
            inner.sim.forward()
            inner._get_observations(force_update=True)  # twice: poses seen from the gripper lag by one observation
            observation = env._observation(inner._get_observations(force_update=True))
            # 1.4 observed one physics step (2 ms) before the recorded state; a wrong place or sign differs by far more.
            np.testing.assert_allclose(observation, data["observations"][row], atol=0.02)
