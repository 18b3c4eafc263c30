"""Minari's datasets through d4rl: recorded here, without a network, and compared with what was recorded."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import d4rl
from d4rl import DatasetError, evaluation, minari_datasets

minari = pytest.importorskip("minari", reason="Minari is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Minari asks for an author, a description and more


class DriftEnv(gymnasium.Env):
    """A point (2,) that moves by the action; the episode ends beyond 5. Its keys are in no order."""

    observation_space = spaces.Dict(
        velocity=spaces.Box(-9, 9, (2,), np.float64),
        goal=spaces.Dict(z=spaces.Box(-99, 99, (1,), np.float64), a=spaces.Box(-99, 99, (2,), np.float64)),
        pair=spaces.Tuple((spaces.Box(0, 99, (), np.float32), spaces.Box(-99, 99, (2, 2), np.float64))),
    )
    action_space = spaces.Box(-2, 2, (2, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.count = self.np_random.uniform(-1, 1, 2), 0
        return self._observation(np.zeros(2)), {}

    def step(self, action):
        assert action.shape == (2, 1)
        self.position, self.count = self.position + action[:, 0], self.count + 1
        reward, terminated = float(self.position.sum()), bool(self.position[0] > 5)
        return self._observation(action[:, 0]), reward, terminated, False, {}

    def _observation(self, velocity):
        x, y = self.position
        square = np.array([[x, y], [10 * x, 10 * y]])
        goal, pair = {"z": np.array([x + y]), "a": np.array([x, -y])}, (np.float32(self.count), square)
        return {"velocity": velocity.astype(np.float64), "goal": goal, "pair": pair}


def joined(x, y, velocity, count) -> list[float]:
    """DriftEnv's observation as one row, by hand: goal/a, goal/z, pair/0, pair/1, velocity."""
    return [x, -y, x + y, count, x, y, 10 * x, 10 * y, *velocity]


class FreeEnv(DriftEnv):
    """The same without bounds of the action."""

    action_space = spaces.Box(-np.inf, np.inf, (2, 1), np.float32)


gymnasium.register("Drift-v0", entry_point=f"{__name__}:DriftEnv", max_episode_steps=6)
gymnasium.register("Free-v0", entry_point=f"{__name__}:FreeEnv", max_episode_steps=6)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Minari's folder for one test. Whatever looks for the network fails."""

    def refuse(*args, **kwargs):
        raise OSError("a test wants the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.delenv("MINARI_REMOTE", raising=False)
    minari_datasets.task.cache_clear()
    evaluation._kept_environments.cache_clear()
    return tmp_path


def stack(values: list):
    """Minari's form of T nested values: arrays (T, ...), nested alike."""
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack(list(part)) for part in zip(*values, strict=True))
    return np.array(values)


def play(env: gymnasium.Env, seed: int, actions: np.ndarray) -> dict[str, list]:
    """One episode: T + 1 observations and, for each of T steps, the action, the reward and how it ended."""
    episode = {"observations": [env.reset(seed=seed)[0]], "actions": []}
    episode |= {"rewards": [], "terminations": [], "truncations": []}
    for action in actions:
        observation, *outcome, _ = env.step(action)
        for key, value in zip(episode, (observation, action, *outcome), strict=True):
            episode[key].append(value)
        if outcome[1] or outcome[2]:
            break
    return episode


def buffer(episode: dict[str, list], **changes):
    from minari.data_collector.episode_buffer import EpisodeBuffer

    return EpisodeBuffer(**{key: stack(values) for key, values in (episode | changes).items()})


def drift(speed: float, steps: int) -> np.ndarray:
    return np.array([[[speed], [0.25 * step]] for step in range(steps)], np.float32)


def record_drift(env_id: str, **kwargs) -> list[dict[str, list]]:
    """Three episodes: ended by the environment (step 4), the time limit (6) and the recorder (3)."""
    env = gymnasium.make("Drift-v0")
    episodes = [play(env, seed, drift(*plan)) for seed, plan in enumerate([(1.5, 9), (0.0, 9), (0.5, 3)])]
    assert [len(episode["rewards"]) for episode in episodes] == [4, 6, 3]
    minari.create_dataset_from_buffers(env_id, [buffer(episode) for episode in episodes], env=env, **kwargs)
    return episodes


def edit_metadata(folder: Path, env_id: str, old: str, new: str):
    path = folder / env_id / "data" / "metadata.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def only_sentence(call, *args) -> str:
    """The message of the DatasetError that the call raises, which must be one line."""
    with pytest.raises(DatasetError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- arrays ---
def test_nested_observations_by_hand():
    episodes = record_drift("my/drift-v0")
    data = minari_datasets.read("my/drift-v0")
    rows, following = [], []
    for seed, episode in enumerate(episodes):
        x, y = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).uniform(-1, 1, 2)
        states = [joined(x, y, (0, 0), 0)]
        for count, ((dx,), (dy,)) in enumerate(episode["actions"], start=1):
            x, y = x + dx, y + dy
            states.append(joined(x, y, (dx, dy), count))
        rows += states[:-1]
        following += states[1:]  # what was observed last is the next observation of the last step alone
    expected = {
        "observations": np.float32(rows),
        "actions": np.concatenate([drift(1.5, 4), drift(0, 6), drift(0.5, 3)])[..., 0],
        "next_observations": np.float32(following),
        "rewards": np.float32([x + y for *_, x, y, _, _, _, _ in following]),
        "terminals": np.arange(13) == 3,
        "timeouts": np.isin(np.arange(13), [9, 12]),
    }
    assert data.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(data[key], values, rtol=1e-6, err_msg=key)
        assert data[key].dtype == values.dtype and data[key].shape == values.shape


def test_how_episodes_end():
    """The environment's end counts, also with a time limit on the same step."""
    env = gymnasium.make("Drift-v0")
    episode = play(env, 0, drift(0, 3))
    buffers = []
    for terminated, truncated in [(False, False), (False, True), (True, False), (True, True)]:
        flags = {"terminations": [False, False, terminated], "truncations": [False, False, truncated]}
        buffers.append(buffer(episode, **flags))
    minari.create_dataset_from_buffers("my/ends-v0", buffers, env=env)
    data = d4rl.get_dataset("my/ends-v0")
    assert data["terminals"][2::3].tolist() == [False, False, True, True]
    assert data["timeouts"][2::3].tolist() == [True, True, False, False]
    assert data["terminals"].sum() == data["timeouts"].sum() == 2
    assert len(d4rl.qlearning_dataset("my/ends-v0")["rewards"]) == 12


def replay_equals_data(env_id: str):
    """Seeds 0, 1, ... and the data's actions give the data's rows again, element by element."""
    env, data, seed, over = minari_datasets.make(env_id), d4rl.get_dataset(env_id), 0, True
    np.testing.assert_array_equal([env.action_space.low, env.action_space.high], d4rl.action_bounds(env_id))
    for row in range(len(data["rewards"])):
        if over:
            observation, _ = env.reset(seed=seed)
            seed += 1
        assert env.observation_space.contains(observation)
        np.testing.assert_array_equal(np.float32(observation), data["observations"][row])
        observation, reward, terminated, _, _ = env.step(data["actions"][row])
        np.testing.assert_array_equal(np.float32(observation), data["next_observations"][row])
        assert np.float32(reward) == data["rewards"][row] and terminated == data["terminals"][row]
        over = terminated or data["timeouts"][row]
    assert seed > 1 and over


def test_environment_gives_the_rows_of_the_dataset():
    """Although the environment's own order of keys is another one."""
    record_drift("my/replay-v0")
    replay_equals_data("my/replay-v0")
    np.testing.assert_array_equal(d4rl.action_bounds("my/replay-v0"), [[-2, -2], [2, 2]])


# --- tasks, scores, evaluation ---
def test_task_and_scores():
    record_drift("my/plain-v0")
    assert d4rl.task("my/plain-v0") == d4rl.Task("my/plain-v0", 10, 2, 6, 0.0, 100.0, None, None, "")
    assert "no reference returns, so the score is the mean return" in minari_datasets.note("my/plain-v0")
    record_drift("my/flat-v0", ref_min_score=5.0, ref_max_score=5.0)  # no scale
    assert (d4rl.task("my/flat-v0").ref_min, d4rl.task("my/flat-v0").ref_max) == (0, 100)

    record_drift("my/scaled-v0", ref_min_score=-3.0, ref_max_score=7.0)
    returns = np.array([-3.0, 2.0, 7.0, 8.0])
    expected = minari.get_normalized_score(minari.load_dataset("my/scaled-v0"), returns)
    np.testing.assert_allclose(d4rl.get_normalized_score("my/scaled-v0", returns), expected)
    np.testing.assert_allclose(expected, [0, 0.5, 1, 1.1])
    note = minari_datasets.note("my/scaled-v0")
    assert "Drift-v0" in note and "not comparable with D4RL" in note and "returns of -3 and 7" in note


def test_the_environment_for_evaluation_sets_the_horizon(folder):
    record_drift("my/eval-v0", eval_env=gymnasium.make("Drift-v0", max_episode_steps=4))
    limit = r"\"max_episode_steps\": 4"
    edit_metadata(folder, "my/eval-v0", limit, f"{limit}.0")  # as in pointmaze
    assert type(d4rl.task("my/eval-v0").max_episode_steps) is int
    env = minari_datasets.make("my/eval-v0")
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(4)] == [False, False, False, True]


def test_through_d4rl():
    episodes = record_drift("my/whole-v0")
    data = d4rl.get_dataset("my/whole-v0")
    for key, values in d4rl.qlearning_dataset("my/whole-v0", dataset=data).items():  # nothing is dropped
        np.testing.assert_array_equal(values, data[key])
    returns = [sum(episode["rewards"]) for episode in episodes]
    np.testing.assert_allclose(d4rl.episode_returns("my/whole-v0", data), returns, rtol=1e-6)
    first, note = d4rl.describe("my/whole-v0", data).splitlines()
    assert "13 steps, 3 episodes" in first and note == minari_datasets.note("my/whole-v0")
    assert "leave the path out" in only_sentence(d4rl.get_dataset, "my/whole-v0", "a.hdf5")

    # Episode i starts from seed 1000 * seed + i. Actions beyond 2 are clipped; 6 steps, or past 5.
    expected = []
    for seed in (3000, 3001):
        x, y = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).uniform(-1, 1, 2)
        steps = next(n for n in range(1, 7) if x + 2 * n > 5)
        expected.append(sum(x + y + 4 * n for n in range(1, steps + 1)))
    played = d4rl.evaluate("my/whole-v0", lambda obs, _: np.full((len(obs), 2), 50.0), episodes=2, seed=3)
    np.testing.assert_allclose(played, expected)


# --- bad input ---
def test_values_that_are_wrong():
    """Refused, or warned of, as in D4RL's format."""
    env = gymnasium.make("Drift-v0")
    episodes = [play(env, seed, drift(0.5 - seed, 5)) for seed in range(3)]

    def warnings(env_id, **changes) -> str:
        buffers = []
        for episode in episodes:
            buffers.append(buffer(episode, **{key: change(episode[key]) for key, change in changes.items()}))
        minari.create_dataset_from_buffers(env_id, buffers, env=env)
        return " ".join(d4rl.warnings_about(env_id, d4rl.get_dataset(env_id)))

    assert warnings("my/sound-v0") == ""
    with pytest.raises(DatasetError, match="rewards is NaN.* in 3 of 15 rows"):
        warnings("my/nan-v0", rewards=lambda rewards: [np.nan, *rewards[1:]])
    with pytest.raises(DatasetError, match="actions is NaN.* in 15 of 15 rows"):
        warnings("my/inf-v0", actions=lambda actions: [1e300 * action.astype(float) for action in actions])
    said = warnings("my/units-v0", actions=lambda actions: [10 * action + 9 for action in actions])
    assert "of the actions are outside of the environment's action space" in said
    said = warnings("my/still-v0", observations=lambda rows: [row | {"velocity": np.ones(2)} for row in rows])
    assert "entry 8 of an observation is always 1 in the data, but -0.5 in the environment" in said


def test_an_action_space_without_bounds():
    """The data's lowest and highest actions take their place; play goes beyond."""
    env = gymnasium.make("Free-v0")
    minari.create_dataset_from_buffers("my/free-v0", [buffer(play(env, 0, drift(0.5, 5)))], env=env)
    data = d4rl.get_dataset("my/free-v0")
    np.testing.assert_array_equal(d4rl.action_bounds("my/free-v0"), [[-np.inf] * 2, [np.inf] * 2])
    np.testing.assert_array_equal(d4rl.action_bounds("my/free-v0", data)[0], [0.5, 0])
    np.testing.assert_array_equal(d4rl.action_bounds("my/free-v0", data)[1], [1.5, 1])  # (not 0.5: no width)
    far = d4rl.evaluate("my/free-v0", lambda obs, _: np.full((len(obs), 2), 50.0), episodes=1, seed=0)
    x, y = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0))).uniform(-1, 1, 2)
    np.testing.assert_allclose(far, x + y + 100)


def test_unknown_ids(folder):
    start = time.time()
    message = only_sentence(d4rl.task, "my/nothing-v0")
    assert time.time() - start < 10  # Minari alone takes 23 s
    assert str(folder / "my" / "nothing-v0") in message and "a test wants the network" in message
    assert "check the id and the connection" in message
    for env_id in (
        "my/noversion",
        "my/a b-v0",
        "../up-v0",
        "/abs-v0",
        "hf://farama-minari/D4RL/door/human-v2",
    ):
        assert "NAMESPACE/NAME-vN" in only_sentence(d4rl.task, env_id)
    assert not any(folder.iterdir())


def test_minari_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    assert 'halted; None in sys.modules: pip install -e "./d4rl[minari]"' in only_sentence(
        d4rl.task, "my/drift-v0"
    )


def test_a_part_of_minari_missing(monkeypatch):
    """It says itself which one."""
    record_drift("my/drift-v0")
    asks = "pyarrow is not installed. Please install it using `pip install minari[arrow]`"
    monkeypatch.setattr(minari, "load_dataset", lambda env_id: exec(f"raise ImportError('{asks}')"))
    assert only_sentence(d4rl.task, "my/drift-v0").endswith(f"and {asks}.")


def test_spaces_that_are_not_numbers():
    numbers, image = spaces.Box(-1, 1, (2,)), spaces.Box(0, 255, (40, 40, 3), np.uint8)
    odd = {
        "actions hold Discrete": (numbers, spaces.Discrete(3)),
        "actions hold whole numbers (int64)": (numbers, spaces.Box(-3, 3, (2,), np.int64)),
        "observations hold Text": (spaces.Dict(a=numbers, b=spaces.Text(5)), numbers),
        "observations hold images": (spaces.Dict(a=numbers, b=image), numbers),
        "names no environment": (spaces.Box(0, 9, (2,), np.int64), numbers),
    }
    for number, (message, (observations, actions)) in enumerate(odd.items()):
        env_id = f"my/odd-v{number}"
        minari.create_dataset_from_buffers(env_id, [], observation_space=observations, action_space=actions)
        for call in (d4rl.task, minari_datasets.read, minari_datasets.make, minari_datasets.note):
            assert message in only_sentence(call, env_id)


def test_unreadable_files(folder):
    record_drift("my/broken-v0")
    data = folder / "my" / "broken-v0" / "data" / "main_data.hdf5"
    metadata = data.with_name("metadata.json")
    arrays, facts = data.read_bytes(), metadata.read_text()

    def refused(call):
        minari_datasets.task.cache_clear()
        message = only_sentence(call, "my/broken-v0")
        assert "broken-v0 cannot be read (" in message and "again" in message

    for size in (0, 1000, len(arrays) - 1000):
        data.write_bytes(arrays[:size])
        refused(minari_datasets.read)
    os.remove(data)  # what an interrupted download leaves
    refused(d4rl.task)
    data.write_bytes(arrays)
    for text in ("{", "{}", facts.replace('"minari_version": "', '"minari_version": "9')):
        metadata.write_text(text)
        refused(d4rl.task)
    os.remove(metadata)
    refused(d4rl.task)


def test_a_locked_file(folder):
    """It is sound, so it need not be recorded again."""
    record_drift("my/locked-v0")
    path = folder / "my" / "locked-v0" / "data" / "main_data.hdf5"
    code = f"import h5py; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as writer:
        assert writer.stdout.readline() == "open\n"
        message = only_sentence(d4rl.get_dataset, "my/locked-v0")
        assert message.startswith(f"{path} is locked (") and "close the program that writes it" in message
        writer.communicate("\n")
    assert len(d4rl.get_dataset("my/locked-v0")["rewards"]) == 13


def test_episodes_that_do_not_fit():
    env = gymnasium.make("Drift-v0")
    episode = play(env, 0, drift(0, 3))
    short = buffer(episode, observations=episode["observations"][:-1])  # not Minari's T + 1
    minari.create_dataset_from_buffers("my/short-v0", [buffer(episode), short], env=env)
    assert "episode 1 has 3 observations for 3 steps" in only_sentence(minari_datasets.read, "my/short-v0")
    goes_on = buffer(episode, terminations=[False, True, False])
    minari.create_dataset_from_buffers("my/on-v0", [buffer(episode), goes_on], env=env)
    assert "episode 1 goes on after its end: see its terminations" in only_sentence(
        minari_datasets.read, "my/on-v0"
    )
    odd = {
        "terminations of episode 0 hold other values": {"terminations": [0.0, 0.0, 0.5]},
        "truncations of episode 0 hold other values": {"truncations": [1, 2, 3]},
        "goes on after its end: see its truncations": {"truncations": [False, True, False]},
        "holds |S3 of shape (3, 2, 1), not numbers": {"actions": [np.full((2, 1), b"1.5")] * 3},
        "(4, 3), not numbers of (2,) a step": {
            "observations": [row | {"velocity": np.ones(3)} for row in episode["observations"]]
        },
    }
    for number, (message, changes) in enumerate(odd.items()):
        minari.create_dataset_from_buffers(f"my/odd-v{number}", [buffer(episode, **changes)], env=env)
        assert message in only_sentence(d4rl.get_dataset, f"my/odd-v{number}")
    minari.create_dataset_from_buffers("my/empty-v0", [], env=env)
    assert "cannot be read" in only_sentence(minari_datasets.read, "my/empty-v0")


def test_environments_that_do_not_fit(folder):
    def copy(env_id, *change):
        record_drift(env_id)
        edit_metadata(folder, env_id, *change)
        return env_id

    gone = copy("my/gone-v0", f"{__name__}:DriftEnv", "no_such_package:DriftEnv")
    assert d4rl.task(gone).observation_size == 10  # reading needs no environment
    for ask in (minari_datasets.make, d4rl.playable_task):
        message = only_sentence(ask, gone)
        assert "Drift-v0" in message and "No module named 'no_such_package'" in message
    path = folder / gone / "data" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"requirements": ["no-such-package>=3"]}))
    assert "install no-such-package>=3." in only_sentence(minari_datasets.make, gone)

    other = copy("my/other-v0", r"[2, 1], \"low\": [[-2.0], [-2.0]]", r"[2, 1], \"low\": [[-3], [-3]]")
    assert "another action space" in only_sentence(minari_datasets.make, other)

    endless = copy("my/endless-v0", r"\"max_episode_steps\": 6", r"\"max_episode_steps\": null")
    assert "names no environment with a limit of steps" in only_sentence(d4rl.task, endless)


def test_rendering_is_not_taken_from_the_recording():
    """A dataset recorded with a window open is evaluated without one."""
    env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", max_episode_steps=5)
    episodes = [play(env, seed, np.zeros((5, 1), np.float32)) for seed in (0, 1)]
    minari.create_dataset_from_buffers("my/seen-v0", [buffer(episode) for episode in episodes], env=env)
    assert minari.load_dataset("my/seen-v0").recover_environment().render_mode == "rgb_array"
    assert minari_datasets.make("my/seen-v0").render_mode is None
    assert minari_datasets.make("my/seen-v0", render_mode="rgb_array").render_mode == "rgb_array"
    replay_equals_data("my/seen-v0")
