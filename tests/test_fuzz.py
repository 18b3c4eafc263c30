"""Random files of all three formats: the transitions of a slow reader, or one sentence where it finds none.

The slow reader follows docs/data.md in loops over Python's numbers and shares nothing with d4rl.
FUZZ_EXAMPLES=20000 takes longer and looks at other files in every run.
"""

import contextlib
import io
import json
import os
import sys

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces

import d4rl
from d4rl import evaluation, minari_datasets
from d4rl.__main__ import main as command_line

hypothesis = pytest.importorskip("hypothesis", reason="Hypothesis is not installed")
from hypothesis import strategies as st  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error::RuntimeWarning")]
pytestmark += [pytest.mark.filterwarnings(f"ignore:.*{words}") for words in ("out of date", "is set to None")]
SIZES = {"fuzz-v0": (3, 2), "fuzz-v1": (1, 1), "robomimic/lift-ph": (19, 7), "fuzz/own-v0": (3, 2)}
HORIZON = 7


def fuzz(examples: int):
    """A test gets `pick`, which chooses one of its arguments, and a generator for numbers."""
    wanted = os.environ.get("FUZZ_EXAMPLES")
    settings = {"max_examples": int(wanted or examples), "derandomize": not wanted, "deadline": None}
    settings |= {"database": None, "suppress_health_check": list(hypothesis.HealthCheck)}

    def decorate(test):
        def run(folder, data, seed):
            def pick(*options):
                return data.draw(st.sampled_from(options))

            test(folder, pick, np.random.default_rng(seed))

        run = hypothesis.given(data=st.data(), seed=st.integers(0, 2**32 - 1))(run)
        return hypothesis.settings(**settings)(run)

    return decorate


class FuzzEnv(gymnasium.Env):
    """Of any sizes; `named`: observations are a Dict, in no order."""

    def __init__(self, sizes=(3, 2), named=False, render_mode=None):
        boxes = {key: spaces.Box(-np.inf, np.inf, (size,), np.float64) for key, size in (("b", 1), ("a", 2))}
        self.observation_space = spaces.Dict(boxes) if named else spaces.Box(-np.inf, np.inf, sizes[:1])
        self.action_space = spaces.Box(-2, 2, sizes[1:])

    def reset(self, *, seed=None, options=None):
        return spaces.unflatten(self.observation_space, np.zeros(spaces.flatdim(self.observation_space))), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small tasks; no simulator of robomimic's, which takes seconds; Minari's folder."""
    folder, compare = tmp_path_factory.mktemp("fuzz"), evaluation.compare
    made = {name: {"sizes": SIZES[name]} for name in ("fuzz-v0", "fuzz-v1")} | {
        "FuzzDict-v0": {"named": True}
    }
    with pytest.MonkeyPatch.context() as patch:
        for env_id, kwargs in made.items():
            gymnasium.register(env_id, f"{__name__}:FuzzEnv", max_episode_steps=HORIZON, kwargs=kwargs)
            if "sizes" in kwargs:
                task = d4rl.Task(env_id, *SIZES[env_id], HORIZON, 0.0, 1.0, None, None, "fuzz.hdf5")
                patch.setitem(d4rl.TASKS, env_id, task)
        patch.setattr(
            evaluation, "compare", lambda name, *rest: [] if "lift" in name else compare(name, *rest)
        )
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder
    for env_id in made:
        del gymnasium.registry[env_id]


# --- what is done to files ---
CHANGES = {
    "double": lambda x: x.astype(float),
    "big endian": lambda x: x.astype(">f4"),
    "half": lambda x: x.astype(np.float16),
    "whole": lambda x: np.rint(x).astype(int),
    "text": lambda x: x.astype("S3"),
    "complex": lambda x: x.astype(complex),
    "records": lambda x: np.zeros(len(x), [("x", "f4"), ("y", "f4")]),
    "column": lambda x: x[:, None] if x.ndim == 1 else x,
    "flat": lambda x: x.ravel(),
    "wide": lambda x: np.stack([x, x], axis=-1),
    "apart": lambda x: np.stack([x, x]),
    "transposed": lambda x: x.T,
    "short": lambda x: x[:-1],
    "long": lambda x: np.concatenate([x, x[:1]]),
    "row numbers": lambda x: np.arange(len(x)),
    "one value": lambda x: np.float32(1),
    "no values": lambda x: h5py.Empty("f4"),
    "link": lambda x: h5py.SoftLink("/nowhere"),
    "elsewhere": lambda x: h5py.ExternalLink("nowhere.hdf5", "/x"),
    "group": lambda x: {},
    "missing": lambda x: None,
}
ODD = (np.nan, np.inf, 1e300, 1e20, 2, -1, 0.5, 1)


def write(path, arrays: dict, pick, rng, **attributes):
    """None is no array, {} a group. Up to two arrays are changed; the end of the file may be missing."""
    for key in dict.fromkeys(pick(*arrays) for _ in range(pick(0, 0, 1, 2) if arrays else 0)):
        values, how = arrays[key], pick(*["odd"] * 5, *CHANGES)
        if values is not None and how != "odd":
            arrays[key] = CHANGES[how](values)
        elif values is not None and values.size:
            arrays[key] = values.astype(float)
            arrays[key].flat[rng.integers(values.size)] = pick(*ODD)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            if isinstance(values, dict):
                file.create_group(key)
            elif values is not None:
                file[key] = values
        if attributes:
            file["data"].attrs.update(attributes)
    os.truncate(path, max(0, path.stat().st_size - pick(*[0] * 9, 1, 100, 1000, 10**6)))


# --- the slow reader ---
def need(condition):
    if not condition:
        raise ValueError("there is no clear reading")


def rows_of(item, width: int = 1, limit: float = 1e15) -> list[list[float]]:
    """The rows of a file's array."""
    need(isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf")
    rows = [row if isinstance(row, list) else [row] for row in item[()].tolist()]
    for row in rows:
        need(len(row) == width and all(abs(x) < limit for x in row))
    return [[float(np.float32(x)) if abs(x) < 1e30 else x for x in row] for row in rows]


def numbers_of(item, limit: float = 1e15) -> list[float]:
    return [x for (x,) in rows_of(item, limit=limit)]


def flags_of(item) -> list[bool]:
    numbers = numbers_of(item)
    need(all(x in (0, 1) for x in numbers))
    return [x == 1 for x in numbers]


NAMES = {
    "terminals": ("terminals", "terminal", "terminated", "terminateds", "terminations"),
    "timeouts": ("timeouts", "timeout", "truncated", "truncateds", "truncations"),
    "next_observations": ("next_observations", "next_obs", "next_observation", "next_states"),
}
EITHER = ("done", "dones", "episode_ends")
TELLING = ("episode_id", "trajectory_ends", "is_first", "steps")


def read_d4rl(file, sizes: tuple[int, int]) -> list[tuple]:
    """(s, a, r, s', done) of every transition; s' is None where nothing is learned from it."""

    def read(name, reader):
        found = [reader(file[key]) for key in NAMES[name] if file.get(key, getlink=True)]
        need(all(other == found[0] for other in found))
        return found[0] if found else None

    obs, actions = rows_of(file["observations"], sizes[0]), rows_of(file["actions"], sizes[1])
    rewards, count = numbers_of(file["rewards"]), len(obs)
    terminals, timeouts = read("terminals", flags_of), read("timeouts", flags_of)
    own = read("next_observations", lambda item: rows_of(item, sizes[0]))
    either = [flags_of(file[key]) for key in EITHER if file.get(key, getlink=True)]
    need(all(len(values) == count for values in (actions, rewards, terminals, *either)))
    need(all(values is None or len(values) == count for values in (timeouts, own)))
    for ends in either:
        if ends != terminals:  # else they say nothing of time-outs
            if timeouts is None:
                timeouts = [ends[i] and not terminals[i] for i in range(count)]
            need(ends == [terminals[i] or timeouts[i] for i in range(count)])
    telling = [item for key in TELLING for item in (file.get(key), file.get(f"infos/{key}"))]
    telling = [item for item in telling if isinstance(item, h5py.Dataset)]
    need(timeouts is not None or not any(item.shape and item.size == len(item) > 1 for item in telling))

    def close(a, b):
        return all(abs(x - y) <= 1e-5 + 1e-3 * abs(y) for x, y in zip(a, b, strict=True))

    marked = [terminals[i] or bool(timeouts and timeouts[i]) for i in range(count)]
    follows = [own is None or (i + 1 < count and close(own[i], obs[i + 1])) for i in range(count)]
    unmarked = [not (follows[i] or marked[i] or i + 1 == count) for i in range(count)]
    need(timeouts is None or any(marked + unmarked) or count <= HORIZON)
    need(not any(unmarked) or any(own[i] != obs[i] for i in range(count) if not terminals[i]))
    step, transitions = 0, []
    for i in range(count):
        step += 1
        cut = timeouts[i] if timeouts is not None else step == HORIZON
        step = 0 if cut or terminals[i] else step
        if any(unmarked):  # it is the file that knows what followed
            if terminals[i] or not (marked[i] or unmarked[i]) or not follows[i]:
                transitions.append((obs[i], actions[i], rewards[i], own[i], terminals[i]))
        elif terminals[i]:
            transitions.append((obs[i], actions[i], rewards[i], None, True))
        elif not cut and i + 1 < count:
            transitions.append((obs[i], actions[i], rewards[i], obs[i + 1], False))
    return transitions


POSES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}


def read_robomimic(file, sizes) -> list[tuple]:
    """However success is told, it is a reward of 1 and the end."""
    args = json.loads(file["data"].attrs["env_args"])
    newer = "body_parts" in json.dumps(args["env_kwargs"])
    version = str(args.get("env_version") or ("1.5" if newer else ""))
    need(args["env_name"] == "Lift" and version[:3] in ("1.4", "1.5"))
    names = [name for name in file["data"] if name.startswith("demo")]
    demos = [file["data"][name] for name in sorted(names, key=lambda name: int(name.split("_")[1]))]

    def observed(demo, place):
        rows = zip(*(rows_of(demo[f"{place}/{key}"], size) for key, size in POSES.items()), strict=True)
        rows = [sum(row, []) for row in rows]
        return [row[:16] + [-x for x in row[16:]] for row in rows] if version[:3] == "1.4" else rows

    def column(key, read):
        values = [read(demo[key]) for demo in demos]
        need([len(part) for part in values] == [len(demo["actions"]) for demo in demos])
        return sum(values, [])

    steps, has_next = [], any("next_obs" in demo for demo in demos)
    for demo in demos:
        obs, count = observed(demo, "obs"), len(demo["actions"])
        following = observed(demo, "next_obs") if has_next else [*obs[1:], None]
        last = [i + 1 == count for i in range(count)]
        steps += zip(obs, rows_of(demo["actions"], 7), following, last, strict=True)
    rewards = [0.0] * len(steps)
    if any("rewards" in demo for demo in demos):
        rewards = column("rewards", lambda item: numbers_of(item, np.inf))
    values = sorted(set(rewards))
    if len(values) == 2:
        success = [reward == values[1] for reward in rewards]
    else:
        success = column("dones", flags_of)
        need(any(success))
        last = [step[3] for step in steps]
        early = [rewards[i] for i in range(len(steps)) if success[i] and not last[i]]
        if len(values) > 1 and all(success[i] for i in range(len(steps)) if last[i]):
            need(early)  # else they may only mark the ends
            success = [success[i] and (not last[i] or rewards[i] >= min(early)) for i in range(len(steps))]
    need(sum(max(map(abs, step[1])) > 1.001 for step in steps) <= len(steps) / 2)
    rows = zip(steps, success, strict=True)
    return [(s, a, float(at), s2, at) for (s, a, s2, _), at in rows if at or s2 is not None]


def read_minari(file, sizes) -> list[tuple]:
    """Every step, with what followed it; the keys of a Dict in alphabetical order."""
    transitions = []
    for number in range(len(file)):
        episode = file[f"episode_{number}"]
        parts = rows_of(episode["observations/a"], 2), rows_of(episode["observations/b"])
        obs = [a + b for a, b in zip(*parts, strict=True)]
        actions, rewards = rows_of(episode["actions"], 2), numbers_of(episode["rewards"])
        ended, cut = flags_of(episode["terminations"]), flags_of(episode["truncations"])
        need(len(obs) - 1 == len(actions) == len(rewards) == len(ended) == len(cut) > 0)
        need(not any(ended[:-1] + cut[:-1]))
        transitions += zip(obs[:-1], actions, rewards, obs[1:], ended, strict=True)
    return transitions


# --- the tests ---
def judge(path, env_id: str, read, given: bool = True):
    """The fast reading is the slow one, or a sentence; `python -m d4rl check` says the same."""
    try:
        with h5py.File(path) as file:
            slow = read(file, SIZES[env_id])
        need(len(slow) > 1)
    except Exception:  # whatever it is, the fast reader may not go on either
        slow = None
    try:
        fast, said = d4rl.qlearning_dataset(env_id, path if given else None), ""
    except d4rl.UsageError as error:
        fast, said = None, str(error)
        assert "\n" not in said and 20 < len(said) < 400 and said[-1] in ".?", said
        assert slow is None, said
    else:
        assert slow is not None
        keys = ("observations", "actions", "rewards", "next_observations", "terminals")
        found = list(zip(*(fast[key].tolist() for key in keys), strict=True))
        assert len(found) == len(slow)
        for (*found_row, following, done), row in zip(found, slow, strict=True):
            assert row == (*found_row, None if row[3] is None else following, done)
    out, err, arguments = io.StringIO(), io.StringIO(), ["check", *([str(path)] if given else [])]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["python -m d4rl", *arguments, "--env-id", env_id])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line()
    assert (end.value.code or 0, err.getvalue()) == ((2, f"error: {said}\n") if said else (0, ""))
    assert all(len(line) < 400 for line in out.getvalue().splitlines())


@fuzz(examples=4000)
def test_d4rl(folder, pick, rng):
    env_id, count, path = pick("fuzz-v0", "fuzz-v1"), pick(0, 1, 2, 3, 5, 7, 8, 20, 60), folder / "file.hdf5"
    walk = rng.standard_normal((count + 1, SIZES[env_id][0])).cumsum(0).astype(np.float32)
    ends, cuts, jumps = (rng.random(count) < pick(0, 0.05, 0.3, 1) for _ in range(3))
    arrays = {"observations": walk[:-1], "actions": rng.uniform(-2, 2, (count, SIZES[env_id][1]))}
    arrays |= {"rewards": rng.standard_normal(count), pick(*NAMES["terminals"]): ends}
    noise = pick(0, 1e-7) * rng.random((count, 1)) + 2 * jumps[:, None]
    more = {pick(*NAMES["timeouts"]): cuts, pick(*EITHER): ends | pick(cuts, cuts, jumps)}
    following = pick(walk[:-1], *[(walk[1:] + noise).astype(np.float32)] * 5)
    more |= {pick(*NAMES["next_observations"]): following}
    more |= {pick(*NAMES["terminals"]): ends | (cuts & pick(False, True))}
    arrays |= {key: values for key, values in more.items() if pick(False, True)}
    if pick(False, True) and arrays.keys() & {*NAMES["next_observations"]}:
        order = rng.permutation(count)
        arrays = {key: values[order] for key, values in arrays.items()}
    if other := pick(
        *[None] * 6, "infos/qpos", "metadata", "a\nb", "ä" * 300, "infos/steps", "infos/0/steps", *TELLING
    ):
        arrays[other] = pick(np.arange(count), np.zeros((count, 2)))
    write(path, arrays, pick, rng)
    judge(path, env_id, read_d4rl)


@fuzz(examples=1500)
def test_robomimic(folder, pick, rng):
    arrays, told = {"data/statistics/mean": np.zeros(3)}, pick("nothing", "dense", -1, 0, 1, 10)
    path = folder / "file.hdf5"
    dones, absolute, has_next = pick(*range(4)), pick(*[1] * 5, 3), pick(False, True)
    for number in range(pick(1, 2, 11)):
        count = int(rng.integers(1, 6))
        success, last = np.arange(count) >= rng.integers(0, count + 1), np.arange(count) == count - 1
        walk = {key: rng.standard_normal((count + 1, size)) for key, size in POSES.items()}
        demo = {f"obs/{key}": values[:-1] for key, values in walk.items()}
        demo |= {f"next_obs/{key}": values[1:] for key, values in walk.items() if has_next}
        demo["actions"] = absolute * rng.uniform(-1, 1, (count, 7))
        rewards = {"nothing": None, "dense": success + rng.random(count), -1: success - 1.0}
        demo["rewards"] = rewards[told] if told in rewards else 1.0 * told * success
        demo["dones"] = (success, last, success | last, None)[dones]
        arrays |= {f"data/demo_{number}/{key}": values for key, values in demo.items()}
    args = {
        "env_name": pick(*["Lift"] * 6, "Stack", None),
        "env_kwargs": {"controller_configs": "body_parts"},
    }
    args |= pick({}, *({"env_version": version} for version in ("1.5.1", "1.4.1", 1.5, None, "1.2")))
    write(path, arrays, pick, rng, env_args=pick(*[json.dumps(args)] * 9, "[", "[]", "1", "{}"))
    judge(path, "robomimic/lift-ph", read_robomimic)


@fuzz(examples=1000)
def test_minari(folder, pick, rng):
    minari = pytest.importorskip("minari", reason="Minari is not installed")
    minari_datasets.task.cache_clear()
    env_id, arrays, counts = "fuzz/own-v0", {}, [int(rng.integers(1, 6)) for _ in range(pick(*range(5)))]
    path = folder / env_id / "data"
    if not path.exists():
        minari.create_dataset_from_buffers(env_id, [], env=gymnasium.make("FuzzDict-v0"))
    for number, count in enumerate(counts):
        last, ended, cut = np.arange(count) == count - 1, pick(False, True), pick(False, True)
        episode = {"actions": rng.uniform(-2, 2, (count, 2)), "rewards": rng.standard_normal(count)}
        episode |= {"terminations": last & ended, "truncations": last & cut}
        episode |= {"observations/a": rng.standard_normal((count + 1, 2))}
        episode |= {"observations/b": rng.standard_normal((count + 1, 1))}
        arrays |= {f"episode_{number}/{key}": values for key, values in episode.items()}
    write(path / "main_data.hdf5", arrays, pick, rng)
    metadata = json.loads((path / "metadata.json").read_text())
    metadata |= {"total_episodes": len(counts), "total_steps": sum(counts)}
    (path / "metadata.json").write_text(json.dumps(metadata))
    judge(path / "main_data.hdf5", env_id, read_minari, given=False)
