"""Datasets and scores: read a D4RL file, check it, turn it into transitions, normalise returns.

A D4RL file is HDF5 with the arrays observations (N, observation size), actions (N, action size), rewards (N), terminals
(N) and, in most files, timeouts (N); row i + 1 follows row i unless an episode ended at row i. Whatever is wrong with a
dataset, or may mean two things, is raised as a `DatasetError`: one sentence that says what is wrong and what to do.
What is only unlikely is in `warnings_about`.
"""

import contextlib
import hashlib
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from d4rl import downloads, evaluation, minari_datasets, robomimic_tasks
from d4rl.tasks import DatasetError, Task, task

with contextlib.suppress(ImportError):
    import hdf5plugin  # noqa: F401 (brings further filters of HDF5)

REQUIRED = ("observations", "actions", "rewards", "terminals")
FLAGS = ("terminals", "timeouts")
TRANSITION = ("observations", "actions", "next_observations", "rewards", "terminals")
BLOCK = 100_000  # rows that are moved at once
OTHER_NAMES = {  # that files of other makers have for these arrays
    "terminals": ("terminal", "terminated", "terminateds", "terminations"),
    "timeouts": ("timeout", "truncated", "truncateds", "truncations"),
    "next_observations": ("next_obs", "next_observation", "next_states"),
}
EITHER_END = ("done", "dones", "episode_ends")  # ended by the environment or cut off
KNOWN = {*REQUIRED, *OTHER_NAMES, *EITHER_END}.union(*OTHER_NAMES.values())
ENDS = re.compile(
    r"termin|trunc|time.?(out|limit|step)|episode|traj|(^|[^a-z])(dones?|ends?|first|last|starts?|steps?)([^a-z]|$)",
    re.IGNORECASE,
)  # what other arrays are called that say where episodes end


class Spaces(NamedTuple):
    """What a policy has to know of a task's observations and actions: arrays or tensors."""

    obs_mean: object  # (observation size,): of the data; a policy sees (observation - mean) / std
    obs_std: object  # (observation size,)
    action_low: object  # (action size,): bounds of the action space
    action_high: object  # (action size,)
    fingerprint: object  # (2, 32): what it was trained on, see `fingerprint`

    def to(self, device) -> "Spaces":
        """Tensors, moved."""
        return Spaces(*(array.to(device) for array in self))

    def standardise(self, obs):
        """(..., observation size): as the data have mean 0 and standard deviation 1."""
        return (obs - self.obs_mean) / self.obs_std

    def standardise_(self, obs):
        """The same, in the memory of the tensor `obs`."""
        return obs.sub_(self.obs_mean).div_(self.obs_std)

    def scale(self, action):
        """(..., action size): from the bounds of the action space to -1 and 1, where networks work."""
        return (action - (self.action_high + self.action_low) / 2) / ((self.action_high - self.action_low) / 2)

    def unscale(self, action):
        """(..., action size): back into the action space; what lies outside is moved to the nearest bound."""
        middle, half = (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
        return (middle + half * action).clip(self.action_low, self.action_high)


def action_bounds(env_id: str, dataset: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest actions of a task's environment, each (action size,), float32; robomimic's are -1 and 1.

    Where the environment has no bound, it is the lowest or highest action of the dataset, if one is given.
    """
    spec = task(env_id)
    if spec.is_minari:
        low, high = minari_datasets.action_bounds(env_id)
    elif spec.is_robomimic:
        high = np.ones(spec.action_size, np.float32)
        low = -high
    else:
        env = evaluation.make(env_id)
        low, high = env.action_space.low.astype(np.float32), env.action_space.high.astype(np.float32)
        env.close()
    if dataset is None:
        return low, high
    # Some say "no bound" with the largest float.
    low = np.where(low > -1e9, low, dataset["actions"].min(0))
    high = np.where(high < 1e9, high, dataset["actions"].max(0))
    return low, np.where(high > low, high, low + 1)  # (an action that never changes still has a width)


def fingerprint(transitions: dict[str, np.ndarray]) -> np.ndarray:
    """What tells two sets of transitions apart: (2, 32) bytes, uint8.

    Row 0 is the sha256 of observations and actions, which is all that a quantizer sees, row 1 that of all arrays.
    """
    rows = []
    for keys in (("observations", "actions"), sorted(transitions)):
        sha256 = hashlib.sha256()
        for key in keys:
            values = np.ascontiguousarray(transitions[key])
            sha256.update(f"{key} {values.dtype} {values.shape}".encode())
            sha256.update(values)
        rows.append(np.frombuffer(sha256.digest(), np.uint8))
    return np.stack(rows)


def get_normalized_score(env_id: str, returns):
    """D4RL's normalised score of undiscounted returns as a FRACTION: 0 = random policy, 1 = expert.

    `returns` is a number or an array; the result has its shape. Multiply by 100 for the figures that papers report.
    """
    spec = task(env_id)
    return (np.asarray(returns) - spec.ref_min) / (spec.ref_max - spec.ref_min)


# --- reading and checking ---
def get_dataset(env_id: str, h5path: str | Path | None = None) -> dict[str, np.ndarray]:
    """A task's dataset in file order, checked.

    Args:
        env_id: a task id, e.g. "hopper-medium-v2".
        h5path: the file; by default the task's own, verified and, at the first use, downloaded (`downloads.py`).

    Returns:
        observations (N, observation size), actions (N, action size) and rewards (N,), float32; terminals (N,), bool:
        the environment ended the episode at this row; timeouts (N,), bool, if the file has them: it was cut off here.
        next_observations (N, observation size), float32: from robomimic and Minari, and from a file that has them and
        in which some row is not followed by its next observation although no end is marked there.

    Raises:
        DatasetError: unknown task; file missing, unreadable, incomplete or of another task; values that no sound
            dataset has, or whose meaning is not clear.
    """
    spec = task(env_id)
    if spec.is_minari:
        if h5path:
            raise DatasetError(f"{env_id} is an id of Minari's, which finds its own files; leave the path out.")
        return _checked(spec, minari_datasets.read(env_id), env_id)
    path = dataset_file(spec, h5path)
    return _checked(spec, _read(spec, path), str(path))


def dataset_file(spec: Task, h5path: str | Path | None = None) -> Path:
    """The readable file of a task: `h5path`, or the task's own, verified and downloaded if it is not there."""
    path = Path(h5path) if h5path else downloads.fetch(spec)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise DatasetError(f"There is no readable file {path}: check the path.")
    return path


@contextlib.contextmanager
def readable(path: Path):
    """Whatever HDF5 raises while a file is read becomes a DatasetError that says what to do."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except Exception as error:
        problem = unreadable_here(path, error)
        if not problem:  # what an interrupted download or copy leaves behind
            reason = _innermost(error)
            problem = f"({path.stat().st_size} bytes) is incomplete or damaged ({reason}): download or copy it again"
        raise DatasetError(f"{path} {problem}.") from None


def unreadable_here(path: Path, error: Exception) -> str:
    """What keeps a file that may be sound from being read, and what to do; empty if it is something else."""
    if "unable to lock file" in str(error):
        advice = "close the program that writes it, or set HDF5_USE_FILE_LOCKING=FALSE if there is none"
        return f"is locked ({_innermost(error)}): {advice}"
    if missing := _missing_filters(path):
        advice = "pip install hdf5plugin, or write the file without that filter"
        return f"needs an HDF5 filter that is not installed ({missing[:50]}): {advice}"
    return ""


def _innermost(error: Exception) -> str:
    """HDF5's own reason."""
    return (str(error).partition("(")[2].rpartition(")")[0] or str(error))[:150]


def _missing_filters(path: Path) -> str:
    """The filters by which a file's arrays are stored and that HDF5 does not have here."""
    missing = set()

    def look(_, item):
        if isinstance(item, h5py.Dataset):
            made = item.id.get_create_plist()
            filters = [made.get_filter(i) for i in range(made.get_nfilters())]
            absent = [(code, name) for code, _, _, name in filters if not h5py.h5z.filter_avail(code)]
            missing.update(f"{code} {name.decode()}".strip() for code, name in absent)

    with contextlib.suppress(Exception), h5py.File(path) as file:
        file.visititems(look)
    return ", ".join(sorted(missing))


def _read(spec: Task, path: Path) -> dict[str, np.ndarray]:
    """The arrays at the top level of an HDF5 file; those that say nothing here are named but not read."""
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty (0 bytes): download or copy it again.")
    with readable(path):
        if not h5py.is_hdf5(path):
            raise DatasetError(f"{path} is not an HDF5 file; pass a dataset in D4RL's or robomimic's format.")
        if spec.is_robomimic:
            return robomimic_tasks.read(spec, path)
        with h5py.File(path) as file:
            if isinstance(file.get("episode_0"), h5py.Group):
                advice = "give the dataset's id (NAMESPACE/NAME-vN) as --env-id, and no path"
                raise DatasetError(f"{path} is a file of Minari's: {advice}.")
            if "env_args" in getattr(file.get("data"), "attrs", ()):
                raise DatasetError(f"{path} is in robomimic's format: give an id of robomimic's as --env-id.")
            items = dict(file.items())
            if isinstance(items.get("infos"), h5py.Group):
                items |= {f"infos/{key}": item for key, item in file["infos"].items()}
            arrays = {}
            for key, item in items.items():
                read = isinstance(item, h5py.Dataset) and (key in KNOWN or _tells_ends(key, item.shape))
                arrays[key] = item[()] if read else None
            return arrays


def _tells_ends(key: str, shape: tuple[int, ...] | None) -> bool:
    """By its name and shape, an array that D4RL's format does not know says where episodes begin or end."""
    name = key.removeprefix("infos/")
    return bool("/" not in name and ENDS.search(name) and shape and shape[0] == math.prod(shape) > 1)


def _checked(spec: Task, arrays: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The arrays of D4RL's format, in one type and shape each; DatasetError if they do not fit the task."""
    given = {key: np.asarray(values) for key, values in arrays.items() if values is not None}
    names = {}  # what an array is called: which one of D4RL's it is
    for name in (*REQUIRED, *OTHER_NAMES):
        names |= {key: name for key in (name, *OTHER_NAMES.get(name, ())) if key in given}
    either = [key for key in EITHER_END if key in given]
    missing = [name for name in REQUIRED if name not in names.values()]
    if missing == ["terminals"] and either:
        problem = f"{either[0]} alone may mean that an episode ended or that it was cut off"
        raise DatasetError(f"{source}: {problem}; write terminals and timeouts instead.")
    for key in sorted(KNOWN & arrays.keys()):
        if arrays[key] is None:  # _read has found it, but no values
            raise DatasetError(f"{source}: {key} is a group of arrays or a link to nothing; write one array.")
    if missing:
        found = " ".join(", ".join(arrays).split())[:150] or "nothing"  # (a name may hold line breaks)
        missing = ", ".join(missing)
        raise DatasetError(f"{source} lacks {missing} (found: {found}); pass a dataset in D4RL's format.")

    checked, ends = {}, {key: _array(spec, source, key, "terminals", given[key]) for key in either}
    for key, name in names.items():
        values = _array(spec, source, key, name, given[key])
        if name in checked and not np.array_equal(checked[name], values):
            raise DatasetError(f"{source}: {name} and {key} differ; keep the right one.")
        checked[name] = values
    rows = {key: len(values) for key, values in (checked | ends).items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in rows.items())
        raise DatasetError(f"{source}: the arrays differ in their number of rows ({counts}); repair the dataset.")
    if rows["rewards"] == 0:
        raise DatasetError(f"{source} holds no rows; pass a dataset that has some.")

    _add_timeouts(source, checked, ends)
    others = [key for key in given if key not in names and key not in ends and _tells_ends(key, given[key].shape)]
    if others and "timeouts" not in checked:
        advice = "write them as terminals and timeouts, or leave it out"
        raise DatasetError(f"{source}: {others[0][:50]} seems to say where episodes end, but is not read; {advice}.")
    if "next_observations" in checked and not spec.knows_next and not _unmarked(checked).any():
        del checked["next_observations"]  # they are the next rows, as everywhere in D4RL
    if "next_observations" in checked:
        goes_on = ~checked["terminals"]
        same = np.array_equal(checked["next_observations"][goes_on], checked["observations"][goes_on])
        if same and _unmarked(checked).any():  # (what a buffer keeps of an array that its environment overwrites)
            problem = "every next observation is the observation of its own row, though the next row is another"
            raise DatasetError(f"{source}: {problem}; repair next_observations, or leave them out.")
    unending = "timeouts" in checked and not (checked["terminals"] | checked["timeouts"]).any()
    if unending and "next_observations" not in checked and rows["rewards"] > spec.max_episode_steps:
        problem = f"no row of {rows['rewards']:,} ends an episode, which has at most {spec.max_episode_steps:,} steps"
        raise DatasetError(f"{source}: {problem} in {spec.env_id}; mark the ends in terminals and timeouts.")
    return checked


def _array(spec: Task, source: str, key: str, name: str, values: np.ndarray) -> np.ndarray:
    """The array `key` in the type and shape of D4RL's `name`."""
    if values.dtype.kind not in "biuf":
        kind = str(values.dtype)[:50]
        raise DatasetError(f"{source}: {key} holds {kind}, not numbers; pass a dataset in D4RL's format.")
    if values.ndim == 0:
        problem = "has shape (), so it is one value instead of one a step"
        raise DatasetError(f"{source}: {key} {problem}; repair the dataset.")
    sizes = {"actions": spec.action_size}
    sizes |= {"observations": spec.observation_size, "next_observations": spec.observation_size}
    row = (sizes[name],) if name in sizes else ()
    if row == () and values.shape[1:] == (1,):
        values = values[:, 0]  # some files store (N, 1)
    elif row == (1,) and values.ndim == 1:
        values = values[:, None]
    if values.shape[1:] != row:
        wanted = f"(N, {row[0]})" if row else "(N,)"
        raise DatasetError(
            f"{source}: {key} has shape {values.shape} but {spec.env_id} needs {wanted}, one row a step; "
            "did you mean another --env-id?"
        )
    if name in FLAGS:
        if not ((values == 0) | (values == 1)).all():
            odd = values[(values != 0) & (values != 1)][0]
            raise DatasetError(f"{source}: {key} holds {odd:g}; write 1 where an episode ends and 0 elsewhere.")
        return values.astype(bool)
    with np.errstate(over="ignore"):  # too large for float32: inf, found in the next line
        values = values.astype(np.float32, copy=False)
    # Squares of larger numbers are infinite in float32, so a network would see zeros in the place of observations.
    if not -1e15 < values.min(initial=0) <= values.max(initial=0) < 1e15:
        bad = np.count_nonzero(~(np.abs(values) < 1e15).all(axis=tuple(range(1, values.ndim))))
        rows = f"{bad} of {len(values)} rows"
        raise DatasetError(f"{source}: {key} is NaN, infinite or beyond 1e15 in {rows}; repair the dataset.")
    return values


def _add_timeouts(source: str, checked: dict[str, np.ndarray], either: dict[str, np.ndarray]):
    """From arrays that mark ends of both kinds; one that marks the terminals only says nothing of time-outs."""
    terminals = checked["terminals"]
    for key, ends in either.items():
        if np.array_equal(ends, terminals):
            continue
        timeouts = checked.setdefault("timeouts", ends & ~terminals)
        if not np.array_equal(ends, terminals | timeouts):
            others = "terminals and timeouts together mark"
            raise DatasetError(f"{source}: {key} does not mark the rows that {others}; keep what is right.")


# --- episodes and transitions ---
def _gaps(dataset: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: the next row is not this row's own next observation; the last row has none."""
    own, following = dataset["next_observations"][:-1], dataset["observations"][1:]
    gaps = np.append((own != following).any(axis=1), True)
    (rows,) = np.nonzero(gaps[:-1])
    # The two may have been rounded in different ways.
    gaps[rows] = ~np.isclose(own[rows], following[rows], rtol=1e-3, atol=1e-5).all(axis=1)
    return gaps


def _unmarked(dataset: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: an episode must have ended here, by the next observations that a file has, and no end is marked."""
    unmarked = _gaps(dataset) & ~dataset["terminals"] & ~dataset.get("timeouts", np.False_)
    unmarked[-1] = False
    return unmarked


def is_ordered(env_id: str, dataset: dict[str, np.ndarray]) -> bool:
    """Whether rows follow each other, as in D4RL, or are single transitions, such as those of a replay buffer."""
    if task(env_id).knows_next or "next_observations" not in dataset:
        return True
    inside = ~dataset["terminals"] & ~dataset.get("timeouts", np.False_)
    return _unmarked(dataset).sum() <= inside.sum() / 2


def _timeouts(spec: Task, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: rows where an episode was cut off, counted from the last episode end if the file does not say."""
    if "next_observations" in dataset and not spec.knows_next:
        return _unmarked(dataset) | dataset.get("timeouts", np.False_)
    if "timeouts" in dataset:
        return dataset["timeouts"]
    rows = np.arange(len(dataset["terminals"]))  # (the original's counter starts at 1 after a terminal: one row early)
    starts = np.concatenate([[True], dataset["terminals"][:-1]])
    step = rows - np.maximum.accumulate(np.where(starts, rows, 0))  # since the last terminal
    return (step + 1) % spec.max_episode_steps == 0


def episode_ends(env_id: str, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """The last row of every finished episode (episodes,). A demonstration of robomimic's goes on after success."""
    spec = task(env_id)
    timeouts = _timeouts(spec, dataset)
    return np.flatnonzero(timeouts if spec.is_robomimic else dataset["terminals"] | timeouts)


def qlearning_dataset(
    env_id: str,
    h5path: str | Path | None = None,
    dataset: dict[str, np.ndarray] | None = None,
    terminate_on_end: bool = False,
    overwrite: bool = False,
) -> dict[str, np.ndarray]:
    """Transitions (s, a, r, s', done) for Q-learning, as the original's function of this name makes them.

    The next observation of row i is the observation of row i + 1. A terminal row is kept with its flag: its next
    observation belongs to another episode, but (1 - done) removes it from every target. Any other row at a time-out,
    and the last row, is dropped: there a target must continue, and the file does not hold the state to continue from.
    robomimic's and Minari's datasets do hold it: all their rows are kept. So are those of a file with next observations
    that are not the next rows, but for time-outs where they are: that is the first observation of the next episode.

    Args:
        env_id: a task id.
        h5path: as in `get_dataset`.
        dataset: arrays as `get_dataset` returns them, instead of a file.
        terminate_on_end: keep rows at a time-out and flag them as terminal. (The original promises this flag but does
            not set it, so that learners bootstrap from the next episode's first state.)
        overwrite: use the memory of `dataset`, whose values are lost: half as much is needed.

    Returns:
        observations (M, observation size), actions (M, action size), next_observations (M, observation size), rewards
        (M,), all float32, and terminals (M,), bool.

    Raises:
        DatasetError: as `get_dataset`, or no transition is left.
    """
    spec = task(env_id)
    arrays = get_dataset(env_id, h5path) if dataset is None else _checked(spec, dataset, "The given dataset")
    timeouts = _timeouts(spec, arrays)
    if terminate_on_end:
        arrays["terminals"] = arrays["terminals"] | timeouts
    terminals, observations = arrays["terminals"], arrays["observations"]
    keep = terminals | ~timeouts
    if "next_observations" not in arrays:
        keep[-1] = terminals[-1]
        arrays["next_observations"] = np.concatenate([observations[1:], observations[-1:]])
    elif spec.knows_next:
        keep[:] = True
    else:
        keep |= _gaps(arrays)
    (rows,) = np.nonzero(keep)
    if len(rows) < 2:
        raise DatasetError(f"The dataset of {env_id} holds {len(rows)} of the at least 2 transitions that are needed.")
    return {key: _rows(arrays[key], rows, overwrite or dataset is None) for key in TRANSITION}


def _rows(values: np.ndarray, rows: np.ndarray, in_place: bool) -> np.ndarray:
    """`values[rows]` of ascending rows; `in_place`: in the memory of `values`."""
    if not in_place:
        return values[rows]
    for start in range(0, len(rows), BLOCK):  # rows move towards the beginning, where they are no longer needed
        block = rows[start : start + BLOCK]
        values[start : start + len(block)] = values[block]
    return values[: len(rows)]


def episode_returns(env_id: str, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """Undiscounted return of every finished episode, in file order: (episodes,) float64. In robomimic: 1 for success.

    `dataset` is what `get_dataset` returns. Rows after the last episode end are left out; a dataset in which no episode
    ends counts as one episode. DatasetError if rows do not follow each other (`is_ordered`).
    """
    spec = task(env_id)
    dataset = _checked(spec, dataset, "The given dataset")
    if not is_ordered(env_id, dataset):
        raise DatasetError("The rows of this dataset do not follow each other, so returns of episodes are not known.")
    ends = episode_ends(env_id, dataset)
    if len(ends) == 0:
        ends = np.array([len(dataset["rewards"]) - 1])
    starts = np.concatenate([[0], ends[:-1] + 1])
    # A demonstration of robomimic's is rewarded for as long as it stays at the goal; evaluation ends at the first time.
    reduce = np.maximum if spec.is_robomimic else np.add
    return reduce.reduceat(dataset["rewards"][: ends[-1] + 1].astype(np.float64), starts)


def return_range(env_id: str, dataset: dict[str, np.ndarray]) -> float:
    """Best minus worst return of a dataset's episodes; DatasetError if all are equal, or not known."""
    problem = "The rows of this dataset do not follow each other, so returns of episodes are not known"
    if is_ordered(env_id, dataset):
        spread = float(np.ptp(episode_returns(env_id, dataset)))
        if spread > 0:
            return spread
        problem = "All episodes have the same return, so rewards cannot be normalised by best - worst return"
    raise DatasetError(f"{problem}: give --no-normalize-rewards and a --reward-scale.")


# --- for people ---
def describe(env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None) -> str:
    """For people, in one line: rows, episodes and their returns, sizes of an observation and an action.

    A second line says of Minari's datasets what their scores may be compared with; then follow `warnings_about`.
    """
    rows, observation_size = dataset["observations"].shape
    episodes = "of unknown episodes"
    if is_ordered(env_id, dataset):
        returns = episode_returns(env_id, dataset)
        low, high, mean = returns.min(), returns.max(), returns.mean()
        episodes = f"{len(returns):,} episodes with returns {low:.1f} to {high:.1f} (mean {mean:.1f})"
    action_size = dataset["actions"].shape[1]
    lines = [f"{rows:,} steps, {episodes}, {observation_size} observations, {action_size} actions"]
    if task(env_id).is_minari:
        lines.append(minari_datasets.note(env_id))
    return "\n".join(lines + [f"warning: {sentence}" for sentence in warnings_about(env_id, dataset, h5path)])


def warnings_about(env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None) -> list[str]:
    """What a sound dataset can have but most have not: a sentence each.

    `dataset` is what `get_dataset` returns, `h5path` the file that it is from, if it is not the task's own.
    """
    spec, starts = task(env_id), None
    sentences = ["rows do not follow each other: transitions are right, but returns of episodes are not known."]
    if is_ordered(env_id, dataset):
        sentences = _about_ends(spec, dataset) + (_about_order(spec, dataset) if not spec.knows_next else [])
        ends, observations = episode_ends(env_id, dataset), dataset["observations"]
        starts = observations[np.append(0, ends[ends < len(observations) - 1] + 1)]
    sentences += _about_values(dataset)
    if spec.is_robomimic:
        path = dataset_file(spec, h5path)
        with readable(path):
            sentences += robomimic_tasks.remarks(spec, path)
    try:
        sentences += _about_actions(dataset["actions"], *action_bounds(env_id, dataset))
        return sentences + evaluation.compare(env_id, dataset, h5path, starts)
    except DatasetError as error:  # a file can be looked into without its simulator
        return [*sentences, f"the data was not compared with the environment: {error}"]


def _about_values(dataset: dict[str, np.ndarray]) -> list[str]:
    """Sentences on values that hardly any task has."""
    observations, actions, rewards = dataset["observations"], dataset["actions"], dataset["rewards"]
    sentences = []
    for name, values in (("observations", observations), ("actions", actions)):
        if np.array_equal(values, np.rint(values)):
            sentences.append(f"all {name} are whole numbers: were they rounded?")
    mean, std = observations.mean(axis=0), observations.std(axis=0)
    if len(mean) > 1 and (np.abs(mean) < 0.2).all() and (np.abs(std - 1) < 0.2).all():
        problem = "every entry of an observation has mean 0 and standard deviation 1"
        sentences.append(f"{problem}: if they were normalised, the environment's are not.")
    farthest = np.maximum(observations.max(axis=0) - mean, mean - observations.min(axis=0))
    (far,) = np.nonzero(farthest > 0.9 * np.sqrt(len(observations)) * std)
    if len(far) and len(observations) > 100:
        value = observations[np.abs(observations[:, far[0]] - mean[far[0]]).argmax(), far[0]]
        problem = f"entry {far[0]} of an observation is {value:g} in one row, which makes all others alike"
        sentences.append(f"{problem}: is it a fault of measurement?")
    unwritten = np.count_nonzero(~(observations.any(axis=1) | actions.any(axis=1)))
    if unwritten > 1:
        sentences.append(f"{unwritten:,} rows are 0 in all observations and actions: were they never written?")
    if np.ptp(rewards) == 0 and (rewards[0] == 0 or not dataset["terminals"].any()):
        sentences.append(f"all rewards are {rewards[0]:g}: nothing but imitation can be learned from them.")
    return sentences


def _about_actions(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[str]:
    """A sentence on actions that do not fit the bounds of the environment's."""
    space = f"{low.min():.4g} to {high.max():.4g}"
    outside = outside_share(actions, low, high)
    if outside > 0.1:
        problem = f"{100 * outside:.0f} % of the actions are outside of the environment's action space, which cuts them"
        values = f"{actions.min():.4g} to {actions.max():.4g} in the data, {space} there"
        return [f"{problem} off ({values}): are they in other units?"]
    if high.min() > 1.5 and low.max() < -1.5 and 0.95 < np.abs(actions).max() <= 1:
        return [f"actions go from -1 to 1, but the environment's from {space}: other units?"]
    if low.max() < 0 <= actions.min() and actions.max() <= 1:
        return [f"actions go from 0 to 1, but the environment's from {space}: other units?"]
    return []


def outside_share(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Of the rows, the part that reaches outside the action space by more than rounding."""
    margin = 1e-5 * (high - low)
    return float(((actions < low - margin) | (actions > high + margin)).any(axis=1).mean())


def _about_ends(spec: Task, dataset: dict[str, np.ndarray]) -> list[str]:
    """Sentences on where episodes end."""
    sentences, terminals, horizon = [], dataset["terminals"], spec.max_episode_steps
    if "next_observations" in dataset and not spec.knows_next:
        problem = f"{_unmarked(dataset).sum():,} rows are not followed by the next observation that the file has"
        sentences.append(f"{problem}, though no end is marked there: they count as time-outs.")
    elif "timeouts" not in dataset and not terminals.any() and len(terminals) > horizon:
        problem = "no row is a terminal and there are no timeouts"
        sentences.append(f"{problem}: every episode is taken to have {horizon:,} steps.")
    ends = episode_ends(spec.env_id, dataset)
    lengths = np.diff(ends, prepend=-1, append=len(terminals) - 1)  # (the last: rows after the last end)
    if (longer := (lengths > horizon).sum()) > 0:
        problem = f"{longer:,} of {np.count_nonzero(lengths):,} episodes have more than the task's {horizon:,} steps"
        sentences.append(f"{problem} (up to {lengths.max():,}): are ends missing, or was there another limit?")
    if spec.is_robomimic:
        return sentences
    last = np.count_nonzero(terminals[ends] & (lengths[:-1] == horizon))
    if last > 0.1 * len(ends):
        problem = f"{last:,} of {len(ends):,} episodes have a terminal at the task's last step, {horizon:,}"
        sentences.append(f"{problem}: those that were only cut off there need a time-out instead.")
    if terminals.mean() > 0.5:
        sentences.append(f"{terminals.sum():,} of {len(terminals):,} rows are terminals: do they mark what goes on?")
    return sentences


def _about_order(spec: Task, dataset: dict[str, np.ndarray]) -> list[str]:
    """Sentences on rows that do not look like steps of episodes, by how far apart their observations are."""
    obs, generator = dataset["observations"], np.random.default_rng(0)
    ends = episode_ends(spec.env_id, dataset)
    inside = np.delete(np.arange(len(obs)), np.append(ends, len(obs) - 1))
    inside = generator.choice(inside, min(len(inside), 30_000), replace=False)
    if len(inside) < 100:
        return []
    if (obs[inside] == obs[inside + 1]).all(axis=1).mean() > 0.9:
        return ["observations hardly ever change inside an episode: was one array stored again and again?"]
    size = obs[inside].std(axis=0)
    moving = size > 0
    if not moving.any():
        return []

    def distances(rows, others) -> np.ndarray:
        differences = np.abs(obs[others] - obs[rows])[:, moving]
        return np.median(differences / size[moving], axis=1)  # some entries may jump within an episode

    # Of MuJoCo's tasks, HalfCheetah has the widest steps: two thirds of the distance between any two rows.
    steps, strangers = distances(inside, inside + 1), distances(inside, generator.permutation(inside))
    if np.median(steps) > 0.85 * np.median(strangers):
        return ["a row is as far from the next one as from any other: are they in the order of the steps?"]
    ends = ends[(ends > 0) & (ends < len(obs) - 2)]
    if len(ends) < 10:
        return []
    before, here, after = (np.median(distances(ends + shift, ends + shift + 1)) for shift in (-1, 0, 1))
    if 2 * here < max(before, after):
        side = "before" if before > after else "after"
        return [f"observations jump one row {side} the ends of episodes: are the ends marked in the wrong rows?"]
    far = np.sort(inside[steps > here])
    if len(far) > 2 and np.quantile(steps, 0.95) < 0.5 * here:
        return [f"observations jump after row {far[0]:,} and elsewhere as between episodes: are ends missing?"]
    return []
