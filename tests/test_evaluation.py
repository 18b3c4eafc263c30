"""Playing episodes: here and in processes, before training, with a video, and what ends in one sentence."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from common import HOPPER, PATHS, ROOT, dataset, run_folders, tiny

import d4rl
from d4rl import evaluation as d4rl_evaluation

STANDINS = os.environ.get("SAQ_STANDIN_DIR", "")
MAZE = "maze2d-large-demos-v0"


@pytest.fixture(autouse=True)
def nothing_kept():
    """No test plays in what another one has built."""
    d4rl_evaluation._kept_environments.cache_clear()
    d4rl_evaluation._kept_workers.cache_clear()


def only_sentence(call, *args, **kwargs) -> str:
    """The message of the UsageError that the call raises, which must be one line."""
    with pytest.raises(d4rl.UsageError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- episodes ---
def act(observations, uniform):
    """A policy that depends on both of its inputs."""
    return np.sin(3 * observations[:, :3]) + uniform[:, None] - 0.5


def test_an_episode_by_hand():
    """Episode 2 of seed 3: 3002 seeds the reset, and the policy's random numbers apart from it."""
    env, rng, total, over = gymnasium.make(HOPPER), np.random.default_rng(3002), 0.0, False
    obs, _ = env.reset(seed=3002)
    while not over:
        action = np.clip(act(obs[None], rng.random(1))[0], -1, 1)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + reward, terminated or truncated
    assert d4rl_evaluation.evaluate(HOPPER, act, 4, seed=3)[2] == total
    assert d4rl_evaluation.evaluate(HOPPER, act, 4, seed=np.int64(3))[2] == total


def test_returns_do_not_depend_on_processes():
    """Each episode has its own random numbers, and an observation is never acted on in company."""
    envs = [gymnasium.make(HOPPER) for _ in range(4)]
    spec = d4rl.task(HOPPER)
    here = d4rl_evaluation._play_here(spec, envs, act, list(range(4)), seed=3)
    assert len(set(here.values())) == 4
    assert d4rl_evaluation._play_here(spec, envs[:2], act, [1, 3], seed=3) == {1: here[1], 3: here[3]}
    assert list(here.values()) == d4rl_evaluation.evaluate(HOPPER, act, 4, seed=3)

    workers = [d4rl_evaluation._Worker(HOPPER, None) for _ in range(2)]
    companies = set()

    def act_alone(observations, uniform):
        companies.add(len(observations))
        return act(observations, uniform)

    assert d4rl_evaluation._play_spread(workers, act_alone, list(range(4)), seed=3) == here
    assert companies == {1}
    workers[0].process.kill()
    with pytest.raises(d4rl.UsageError, match=r"plays hopper-medium-v2 has died \(exit code -9\)"):
        workers[0].ask([0])


def test_an_interrupted_evaluation(monkeypatch):
    """Answers that nobody has read would be taken for those of the next evaluation."""
    monkeypatch.setattr(d4rl_evaluation, "SPREAD", (HOPPER,))
    monkeypatch.setenv("D4RL_PROCESSES", "2")
    calls = []

    def falls(observations, uniform):
        calls.append(len(calls))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return np.zeros((len(observations), 3))

    d4rl_evaluation._kept_workers.cache_clear()
    with pytest.raises(KeyboardInterrupt):
        d4rl_evaluation.evaluate(HOPPER, falls, 3, seed=0)
    after = d4rl_evaluation.evaluate(HOPPER, falls, 3, seed=0)
    d4rl_evaluation._kept_workers.cache_clear()
    assert after == d4rl_evaluation.evaluate(HOPPER, falls, 3, seed=0)
    d4rl_evaluation._kept_workers.cache_clear()


@pytest.mark.parametrize("wanted", ["0", "-1", "two"])
def test_a_number_of_processes_that_is_none(wanted, monkeypatch):
    monkeypatch.setenv("D4RL_PROCESSES", wanted)
    with pytest.raises(d4rl.DatasetError, match=f"D4RL_PROCESSES is '{wanted}'"):
        d4rl_evaluation.evaluate("antmaze-umaze-v2", lambda observations, uniform: None, 1, seed=0)


def test_the_time_limit_ends_an_episode():
    """Of pen, whose open hand holds it for 100 steps: here and in a worker."""
    calls = []

    def still(observations, uniform):
        calls.append(len(observations))
        assert len(calls) <= 200
        return np.zeros((1, 24))

    spec, env = d4rl.task("pen-human-v1"), gymnasium.make("pen-human-v1")
    here = d4rl_evaluation._play_here(spec, [env], still, [1], seed=0)
    workers = [d4rl_evaluation._Worker("pen-human-v1", None)]
    assert d4rl_evaluation._play_spread(workers, still, [1], seed=0) == here and len(calls) == 200


def test_workers_end_with_their_parent():
    code = "from d4rl import evaluation as e; import os; w = e._Worker('hopper-medium-v2', None);"
    code += "w.connection.send([0]); w.receive(); print(w.process.pid, flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", code]
    parent = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    status = Path("/proc", parent.stdout.strip(), "stat")
    for _ in range(100):
        if not status.exists() or "Z" in status.read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its parent")


# --- what is no score ---
@pytest.mark.parametrize("spread", [False, True])
def test_actions_that_are_none(spread, monkeypatch):
    """Clipped and played, they would give an ordinary-looking score."""
    monkeypatch.setattr(d4rl_evaluation, "SPREAD", (HOPPER,) if spread else ())
    monkeypatch.setenv("D4RL_PROCESSES", "1")

    def said(action) -> str:
        play = d4rl_evaluation.evaluate
        return only_sentence(play, HOPPER, lambda obs, _: np.array([action] * len(obs)), 1, 0)

    for value in (np.nan, np.inf):
        assert "the policy's actions are NaN or infinite" in said([0, value, 0])
    assert "the policy's actions have shape (1, 2); they have to be (1, 3)" in said([0, 0])
    assert "shape (1,)" in said(0)


class OddEnv(gymnasium.Env):
    """Gives the observations and rewards of `plan`, one a step, each filled with one number."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (11,))
    action_space = gymnasium.spaces.Box(-1, 1, (3,))
    plan: list

    def reset(self, *, seed=None, options=None):
        self.todo = list(self.plan)
        return np.full(11, self.todo.pop(0)[0]), {}

    def step(self, action):
        value, reward = self.todo.pop(0)
        return np.full(11, value), reward, not self.todo, False, {}


def odd(monkeypatch, *plan):
    """From now on hopper is an OddEnv."""
    monkeypatch.setattr(OddEnv, "plan", list(plan), raising=False)
    monkeypatch.setattr(d4rl_evaluation.gymnasium, "make", lambda *args, **kwargs: OddEnv())
    d4rl_evaluation._kept_environments.cache_clear()


def still(obs, uniform):
    return np.zeros((len(obs), 3))


def test_observations_that_are_not_finite(monkeypatch):
    for bad in ((np.nan, 0), (np.inf, 0), (0, np.nan)):
        odd(monkeypatch, (0, 0), (0, 1), bad)
        said = only_sentence(d4rl_evaluation.evaluate, HOPPER, still, 2, 0)
        assert "OddEnv" in said and "an observation or a reward that is NaN or infinite" in said
    odd(monkeypatch, (np.nan, 0), (0, 0))
    assert "OddEnv" in only_sentence(d4rl_evaluation.playable_task, HOPPER)
    odd(monkeypatch, (0, 0), (0, 1), (0, 2))
    assert d4rl_evaluation.evaluate(HOPPER, still, 2, 0) == [3, 3]


def test_whole_numbers(monkeypatch):
    """Of an environment that counts in its first observation and measures in the next."""
    odd(monkeypatch, (0, 0), (0.5, 0), (0, 0))
    seen = []
    d4rl_evaluation.evaluate(HOPPER, lambda obs, _: seen.append(obs[0, 0]) or still(obs, _), 1, 0)
    assert seen == [0, 0.5]


def test_rewards_and_ends_in_arrays(monkeypatch):
    """As some environments give them: (1,)."""
    odd(monkeypatch, (0, 0), (0, np.ones(1)), (0, np.full(1, 2)))
    step = OddEnv.step

    def step_in_arrays(self, action):
        obs, reward, terminated, truncated, info = step(self, action)
        return obs, reward, np.array([terminated]), np.array([truncated]), info

    monkeypatch.setattr(OddEnv, "step", step_in_arrays)
    assert d4rl_evaluation.evaluate(HOPPER, still, 3, 0) == [3, 3, 3]


def test_a_bar_of_what_takes_long(monkeypatch, capsys):
    """Steps of the longest episode there can be; shown after a second, and wiped away."""
    odd(monkeypatch, (0, 0), (0, 1), (0, 2))
    capsys.readouterr()  # what was said before
    assert d4rl_evaluation.evaluate(HOPPER, still, 2, 0) == [3, 3]
    assert capsys.readouterr() == ("", "")
    d4rl_evaluation.evaluate(HOPPER, lambda obs, _: time.sleep(1.1) or still(obs, _), 2, 0)
    out, err = capsys.readouterr()
    shown = [line.strip() for line in err.split("\r")]
    assert out == "" and shown[-1] == "" and "\n" not in err
    assert shown[1].startswith("episodes:") and "| 1/1000 [00:01<" in shown[1]


# --- before training ---
def test_built_once_and_kept(monkeypatch):
    """What was built before training plays the first evaluation, and changes nothing of it."""
    expected = d4rl_evaluation.evaluate(HOPPER, act, 4, seed=3)
    d4rl_evaluation._kept_environments.cache_clear()
    made, make = [], d4rl_evaluation.make
    monkeypatch.setattr(d4rl_evaluation, "make", lambda *args, **kw: made.append(args) or make(*args, **kw))
    assert d4rl_evaluation.playable_task(HOPPER) == d4rl.task(HOPPER) and len(made) == 1
    rng = np.random.default_rng(0)
    data = {"observations": np.zeros((9, 11)), "actions": rng.uniform(-1, 1, (9, 3))}
    d4rl_evaluation.compare(HOPPER, data)
    assert len(made) == 1
    assert d4rl_evaluation.evaluate(HOPPER, act, 4, seed=3) == expected and len(made) == 4
    assert d4rl_evaluation.evaluate(HOPPER, act, 4, seed=3) == expected and len(made) == 4


def test_started_once_and_kept(monkeypatch):
    expected = d4rl_evaluation.evaluate(HOPPER, act, 3, seed=3)
    monkeypatch.setattr(d4rl_evaluation, "SPREAD", (HOPPER,))
    monkeypatch.setenv("D4RL_PROCESSES", "2")
    d4rl_evaluation.playable_task(HOPPER, Path("x"))
    (first,) = d4rl_evaluation._kept_workers(HOPPER, "x")
    d4rl_evaluation.compare(HOPPER, {"observations": np.zeros((9, 11)), "actions": np.ones((9, 3))}, "x")
    assert d4rl_evaluation.evaluate(HOPPER, act, 3, seed=3, h5path="x") == expected
    assert len(d4rl_evaluation._kept_workers(HOPPER, "x")) == 2
    assert d4rl_evaluation._kept_workers(HOPPER, "x")[0] is first


def test_environments_that_cannot_be_made(monkeypatch):
    """Whatever goes wrong is one sentence that names the task and the cause."""
    spec = d4rl.task(HOPPER)
    other = dataclasses.replace(spec, observation_size=12)
    monkeypatch.setattr(d4rl_evaluation, "task", lambda env_id: other)
    said = only_sentence(d4rl_evaluation.playable_task, HOPPER)
    assert "shapes (11,) and (3,), its task (12,) and (3,): correct d4rl/tasks.tsv" in said
    monkeypatch.setattr(d4rl_evaluation, "task", lambda env_id: spec)

    def broken(*args, **kwargs):
        raise TypeError("no such argument: x\n\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(OddEnv, "reset", broken)
        patch.setattr(d4rl_evaluation.gymnasium, "make", lambda *args, **kwargs: OddEnv())
        said = only_sentence(d4rl_evaluation.playable_task, HOPPER)
        assert "hopper-medium-v2 cannot be reset here (TypeError: no such argument: x)" in said
    d4rl_evaluation._kept_environments.cache_clear()
    monkeypatch.setattr(d4rl_evaluation.gymnasium, "make", broken)
    said = only_sentence(d4rl_evaluation.playable_task, HOPPER)
    assert "hopper-medium-v2 cannot be built here (TypeError: no such argument: x)" in said


def test_a_worker_that_cannot_start(monkeypatch):
    monkeypatch.setattr(d4rl_evaluation, "SPREAD", (HOPPER,))
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    said = only_sentence(d4rl_evaluation.playable_task, HOPPER)
    assert "a process that plays hopper-medium-v2 has died (exit code 1)" in said and "D4RL_PROCESSES" in said


def test_a_worker_uses_the_package_beside_it(tmp_path, monkeypatch):
    """Another d4rl in the current folder, such as another clone's, is not it."""
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "__init__.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    obs, reward, over = d4rl_evaluation._Worker(HOPPER, None).ask([0])
    assert obs.shape == (1, 11) and (reward, over) == (0, False)


def test_ctrl_c_is_not_for_workers():
    """A terminal sends it to all processes, also to those that still import; only the parent has a word."""
    code = "import signal, time; from d4rl import evaluation as e; w = e._Worker('hopper-medium-v2', None);"
    code += "time.sleep(0.3); w.process.send_signal(signal.SIGINT); print(w.ask([0])[0].size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("11", "")


@pytest.mark.parametrize("flags", [[], ["--capture-video"]])
def test_mujoco_without_its_opengl(flags, tmp_path):
    """MUJOCO_GL names a library that is not here: one sentence before anything is trained or written."""
    data = ["--env-id", HOPPER, "--dataset-path", dataset(tmp_path / "data.hdf5")]
    for library in ("osmesa", "none-such"):
        command = [sys.executable, PATHS["saq_iql"], *data, *tiny("saq_iql"), *flags, "--runs-dir", tmp_path]
        environment = os.environ | {"MUJOCO_GL": library}
        done = subprocess.run(map(str, command), capture_output=True, text=True, env=environment, cwd=ROOT)
        if library == "osmesa" and done.returncode == 0:
            continue  # (it is here)
        assert done.returncode == 2 and not run_folders(tmp_path)
        assert done.stderr.startswith(f"error: MuJoCo cannot start with MUJOCO_GL={library} (")
        assert done.stderr.count("\n") == 1


# --- video ---
def test_a_video_without_opengl(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    d4rl_evaluation.playable_task(MAZE)
    said = only_sentence(d4rl_evaluation.playable_task, MAZE, video=True)
    assert said.startswith("A video needs OpenGL, and MuJoCo cannot use it here (")
    assert said.endswith("set MUJOCO_GL to egl or osmesa.")


def test_what_opengl_prints_is_kept_away(monkeypatch, capfd):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    only_sentence(d4rl_evaluation.playable_task, MAZE, video=True)
    assert capfd.readouterr() == ("", "")


def test_a_video_without_moviepy(monkeypatch):
    monkeypatch.setattr(d4rl_evaluation.importlib.util, "find_spec", lambda name: None)
    said = only_sentence(d4rl_evaluation._rendering, MAZE, None)
    assert said == 'A video needs moviepy, which is missing: pip install -e "./d4rl[video]" in the clone.'


RECORD = """
import sys, numpy, d4rl
try:
    d4rl.playable_task(sys.argv[1], video=True)
except d4rl.UsageError as error:
    print(error)
    raise SystemExit(77)
act = lambda obs, uniform: numpy.sin(3 * obs[:, :3]) + uniform[:, None] - 0.5
played = [d4rl.evaluate(sys.argv[1], act, 3, 1, video) for video in (None, sys.argv[2])]
assert played[0] == played[1] and len(played[0]) == 3, played
"""


def test_a_video_says_where_it_is(tmp_path):
    """Once; the returns are those without it."""
    command = [sys.executable, "-c", RECORD, HOPPER, tmp_path]
    environment = os.environ | {"MUJOCO_GL": "egl", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 77:
        pytest.skip(f"no video with MUJOCO_GL=egl: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "videos" / f"{HOPPER}-episode-0.mp4"
    assert done.stdout.splitlines() == [str(path)] and path.stat().st_size > 1000
    assert sorted(path.parent.iterdir()) == [path]


# --- the data beside the environment ---
def recorded(rows: int = 400) -> dict[str, np.ndarray]:
    """Data of the bundled maze's first steps as `get_dataset` returns them."""
    data = d4rl.get_dataset(MAZE)
    return {key: values[:rows].copy() for key, values in data.items()}


def test_compare_names_other_values():
    assert d4rl_evaluation.compare(MAZE, recorded()) == []
    constant = recorded()
    start = constant["observations"][0, 1]
    constant["observations"][:, 1] = start  # as at the start; later the ball moves
    (said,) = d4rl_evaluation.compare(MAZE, constant)
    assert said.startswith(f"entry 1 of an observation is always {start:.6g} in the data, but ")
    assert said.endswith(" in the environment.")
    value = float(said.split("but ")[1].split()[0])
    assert 1e-3 < abs(value - start) < 1
    constant["observations"][:, 1] = 300
    assert "is always 300 in the data, but 0." in d4rl_evaluation.compare(MAZE, constant)[0]

    scaled = recorded()
    low, high = scaled["observations"][:, 0].min(), scaled["observations"][:, 0].max()
    scaled["observations"][:, 0] = (scaled["observations"][:, 0] - low) / (high - low) - 100  # in other units
    (said,) = d4rl_evaluation.compare(MAZE, scaled)
    assert "entry 0 of an observation is between -100 and -99 in the data, but " in said
    scaled["observations"] = scaled["observations"] - 1e4
    assert len(d4rl_evaluation.compare(MAZE, scaled)) == 4


def test_compare_at_ten_widths(monkeypatch):
    data = {"observations": np.eye(11), "actions": np.zeros((9, 3))}  # every entry between 0 and 1
    for value, count in ((10.9, 0), (-9.9, 0), (11.1, 6), (-10.1, 6)):
        odd(monkeypatch, (0, 0), (value, 0), (0, 0))
        assert len(d4rl_evaluation.compare(HOPPER, data)) == count


def test_compare_where_episodes_begin(monkeypatch):
    """Two standard deviations of the data away from the first observations of ten episodes."""
    rows, starts = np.eye(11), np.tile([[0.1], [0.2]], (5, 11))
    data, std = {"observations": rows, "actions": np.zeros((11, 3))}, np.sqrt(1 / 11 - 1 / 121)
    for value, count in (
        (0.2 + 1.9 * std, 0),
        (0.1 - 1.9 * std, 0),
        (0.2 + 2.1 * std, 1),
        (0.1 - 2.1 * std, 1),
    ):
        rows[:, 10] = starts[:, 10] = value - 5e-4  # never changes, so it has no deviation
        odd(monkeypatch, *[(value, 0)] * 30)
        said = d4rl_evaluation.compare(HOPPER, data, None, starts)
        assert len(said) == count
        assert d4rl_evaluation.compare(HOPPER, data, None, starts[1:]) == []
    assert said[0].startswith(
        "episodes begin with entry 0 of an observation between 0.1 and 0.2, but with -0.5"
    )


def test_compare_names_five_entries_of_many():
    spec = d4rl.task("pen-human-v1")
    data = {"observations": np.full((50, spec.observation_size), 50.0), "actions": np.zeros((50, 24))}
    said = d4rl_evaluation.compare("pen-human-v1", data)
    assert len(said) == 6
    assert said[-1] == f"{spec.observation_size - 5} more entries of an observation differ likewise."


def test_compare_plays_the_datas_actions(monkeypatch):
    """From a reset with seed 0, to the end of the episode or for twenty steps."""
    played, respond = [], d4rl_evaluation._respond
    monkeypatch.setattr(
        d4rl_evaluation, "_respond", lambda envs, message: played.extend(message) or respond(envs, message)
    )
    data = {"observations": np.zeros((50, 11)), "actions": np.arange(150).reshape(50, 3)}
    odd(monkeypatch, *[(0, 0)] * 4)
    assert d4rl_evaluation.compare(HOPPER, data) == []
    assert played[0] == 0 and np.array_equal(played[1:], data["actions"][:3])
    played.clear()
    odd(monkeypatch, *[(0, 0)] * 30, (9, 0))
    assert d4rl_evaluation.compare(HOPPER, data) == []
    assert np.array_equal(played[1:], data["actions"][:20])
    odd(monkeypatch, *[(0, 0)] * 20, (9, 0))
    assert len(d4rl_evaluation.compare(HOPPER, data)) == 6


def test_nothing_random_is_drawn_before_training():
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for env_id in (MAZE, HOPPER, "kitchen-complete-v0"):
        spec = d4rl_evaluation.playable_task(env_id)
        data = {"observations": np.zeros((9, spec.observation_size))}
        data["actions"] = np.zeros((9, spec.action_size))
        d4rl_evaluation.compare(env_id, data)
    assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


SOUND = {
    MAZE: None,
    "hopper-medium-expert-v2": "hopper-medium-expert.hdf5",
    "hopper-medium-replay-v2": "hopper-medium-replay.hdf5",
    "halfcheetah-medium-expert-v2": "halfcheetah-medium-expert.hdf5",
    "door-human-v1": "door-human.hdf5",
    "pen-expert-v1": "pen-expert.hdf5",
    "robomimic/lift-ph": "robomimic/lift/ph/low_dim_v15.hdf5",
    "robomimic/can-ph": "robomimic/can/ph/low_dim_v15.hdf5",
}


@pytest.mark.parametrize("env_id", SOUND)
def test_nothing_is_said_of_sound_data(env_id):
    if SOUND[env_id] and not STANDINS:
        pytest.skip("SAQ_STANDIN_DIR names no folder with stand-in datasets")
    if env_id.startswith("robomimic"):
        pytest.importorskip("robosuite", reason="robosuite is not installed")
    path = Path(STANDINS, SOUND[env_id]) if SOUND[env_id] else None
    assert d4rl_evaluation.compare(env_id, d4rl.get_dataset(env_id, path), path) == []
