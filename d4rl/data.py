"""Datasets and scores: read a D4RL file, check it, turn it into transitions, normalise returns.

A D4RL file is HDF5 with the arrays observations (N, observation size), actions (N, action size), rewards (N), terminals
(N) and, in most files, timeouts (N); row i + 1 follows row i unless an episode ended at row i. Whatever is wrong with a
dataset is raised as a `DatasetError`: one sentence that says what is wrong and what to do.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from d4rl import downloads, evaluation, minari_datasets, robomimic_tasks
from d4rl.tasks import DatasetError, Task, task

REQUIRED = ("observations", "actions", "rewards", "terminals")


class Spaces(NamedTuple):
    """What a policy has to know of a task's observations and actions: arrays or tensors."""

    obs_mean: object  # (observation size,): of the data; a policy sees (observation - mean) / std
    obs_std: object  # (observation size,)
    action_low: object  # (action size,): bounds of the action space
    action_high: object  # (action size,)
    fingerprint: object = None  # (2, 32): what it was trained on, see `fingerprint`

    def to(self, device) -> "Spaces":
        """Tensors, moved."""
        return Spaces(*(array.to(device) for array in self))

    def standardise(self, obs):
        """(..., observation size): as the data have mean 0 and standard deviation 1."""
        return (obs - self.obs_mean) / self.obs_std

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
        From robomimic and Minari also next_observations (N, observation size), float32.

    Raises:
        DatasetError: unknown task; file missing, unreadable, incomplete or of another task; values not finite.
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


def _read(spec: Task, path: Path) -> dict[str, np.ndarray]:
    """The arrays at the top level of an HDF5 file; those that D4RL's format does not know are named but not read."""
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty (0 bytes): download or copy it again.")
    try:
        if not h5py.is_hdf5(path):
            raise DatasetError(f"{path} is not an HDF5 file; pass a dataset in D4RL's or robomimic's format.")
        if spec.is_robomimic:
            return robomimic_tasks.read(spec, path)
        with h5py.File(path) as file:
            known = [key for key in (*REQUIRED, "timeouts") if isinstance(file.get(key), h5py.Dataset)]
            return {key: file[key][()] if key in known else None for key in file}
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError):
        # It begins like HDF5 but cannot be read to the end: what an interrupted download or copy leaves behind.
        size = path.stat().st_size
        raise DatasetError(f"{path} ({size} bytes) is incomplete or damaged: download or copy it again.") from None


def _checked(spec: Task, arrays: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The arrays of D4RL's format, in one type and shape each; DatasetError if they do not fit the task."""
    missing = [key for key in REQUIRED if arrays.get(key) is None]
    if missing:
        found = ", ".join(arrays) or "nothing"
        missing = ", ".join(missing)
        raise DatasetError(f"{source} lacks {missing} (found: {found}); pass a dataset in D4RL's format.")

    # D4RL's function takes the next row even where a file has next observations; robomimic's and Minari's know better.
    optional = ("timeouts", "next_observations") if spec.is_robomimic or spec.is_minari else ("timeouts",)
    checked = {}
    for key in (*REQUIRED, *optional):
        if arrays.get(key) is None:
            continue
        values = np.asarray(arrays[key])
        if values.dtype.kind not in "biuf":
            raise DatasetError(f"{source}: {key} holds {values.dtype}, not numbers; pass a dataset in D4RL's format.")
        sizes = {"actions": spec.action_size}
        sizes |= {"observations": spec.observation_size, "next_observations": spec.observation_size}
        row = (sizes[key],) if key in sizes else ()
        if row == () and values.shape[1:] == (1,):
            values = values[:, 0]  # some files store (N, 1)
        if values.ndim == 0 or values.shape[1:] != row:
            wanted = (*values.shape[:1], *row)
            raise DatasetError(
                f"{source}: {key} has shape {values.shape} but {spec.env_id} needs {wanted}; "
                "did you mean another --env-id?"
            )
        with np.errstate(over="ignore"):  # too large for float32: inf, found in the next line
            values = values.astype(np.float32, copy=False)
        bad = np.count_nonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if bad:
            rows = f"{bad} of {len(values)} rows"
            raise DatasetError(f"{source}: {key} is NaN or infinite in {rows}; repair the dataset.")
        checked[key] = values.astype(bool) if key in ("terminals", "timeouts") else values

    rows = {key: len(values) for key, values in checked.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in rows.items())
        raise DatasetError(f"{source}: the arrays differ in their number of rows ({counts}); repair the dataset.")
    if rows["rewards"] == 0:
        raise DatasetError(f"{source} holds no rows; pass a dataset that has some.")
    return checked


# --- episodes and transitions ---
def _timeouts(spec: Task, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: rows where an episode was cut off, counted from the last episode end if the file does not say."""
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
) -> dict[str, np.ndarray]:
    """Transitions (s, a, r, s', done) for Q-learning, as the original's function of this name makes them.

    The next observation of row i is the observation of row i + 1, so the last row is dropped. A terminal row is kept
    with its flag: its next observation belongs to another episode, but (1 - done) removes it from every target. A row
    at a time-out is dropped: there a target must continue, and the file does not hold the state to continue from.
    robomimic's and Minari's datasets do hold it: all their rows are kept.

    Args:
        env_id: a task id.
        h5path: as in `get_dataset`.
        dataset: arrays as `get_dataset` returns them, instead of a file.
        terminate_on_end: keep rows at a time-out and flag them as terminal. (The original promises this flag but does
            not set it, so that learners bootstrap from the next episode's first state.)

    Returns:
        observations (M, observation size), actions (M, action size), next_observations (M, observation size), rewards
        (M,), all float32, and terminals (M,), bool.

    Raises:
        DatasetError: as `get_dataset`, or no transition is left.
    """
    spec = task(env_id)
    dataset = get_dataset(env_id, h5path) if dataset is None else _checked(spec, dataset, "The given dataset")
    timeouts = _timeouts(spec, dataset)
    terminals = dataset["terminals"] | timeouts if terminate_on_end else dataset["terminals"]
    if "next_observations" in dataset:
        rows, next_observations = np.arange(len(terminals)), dataset["next_observations"]
    else:
        (rows,) = np.nonzero(np.full(len(terminals) - 1, True) if terminate_on_end else ~timeouts[:-1])
        next_observations = dataset["observations"][rows + 1]
    if len(rows) < 2:
        raise DatasetError(f"The dataset of {env_id} holds {len(rows)} of the at least 2 transitions that are needed.")
    return {
        "observations": dataset["observations"][rows],
        "actions": dataset["actions"][rows],
        "next_observations": next_observations,
        "rewards": dataset["rewards"][rows],
        "terminals": terminals[rows],
    }


def episode_returns(env_id: str, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """Undiscounted return of every finished episode, in file order: (episodes,) float64. In robomimic: 1 for success.

    `dataset` is what `get_dataset` returns. Rows after the last episode end are left out; a dataset in which no episode
    ends counts as one episode.
    """
    spec = task(env_id)
    dataset = _checked(spec, dataset, "The given dataset")
    ends = episode_ends(env_id, dataset)
    if len(ends) == 0:
        ends = np.array([len(dataset["rewards"]) - 1])
    starts = np.concatenate([[0], ends[:-1] + 1])
    # A demonstration of robomimic's is rewarded for as long as it stays at the goal; evaluation ends at the first time.
    reduce = np.maximum if spec.is_robomimic else np.add
    return reduce.reduceat(dataset["rewards"][: ends[-1] + 1].astype(np.float64), starts)


def return_range(env_id: str, dataset: dict[str, np.ndarray]) -> float:
    """Best minus worst return of a dataset's episodes; DatasetError if all are equal."""
    spread = float(np.ptp(episode_returns(env_id, dataset)))
    if spread == 0:
        problem = "All episodes have the same return, so rewards cannot be normalised by best - worst return"
        raise DatasetError(f"{problem}: give --no-normalize-rewards and a --reward-scale.")
    return spread


def describe(env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None) -> str:
    """For people, in one line: rows, episodes and their returns, sizes of an observation and an action.

    A second line says of Minari's datasets what their scores may be compared with; then follow `warnings_about`.
    """
    returns = episode_returns(env_id, dataset)
    rows, observation_size = dataset["observations"].shape
    action_size = dataset["actions"].shape[1]
    lines = [
        f"{rows:,} steps, {len(returns):,} episodes with returns {returns.min():.1f} to {returns.max():.1f} "
        f"(mean {returns.mean():.1f}), {observation_size} observations, {action_size} actions"
    ]
    if task(env_id).is_minari:
        lines.append(minari_datasets.note(env_id))
    return "\n".join(lines + [f"warning: {sentence}" for sentence in warnings_about(env_id, dataset, h5path)])


def warnings_about(env_id: str, dataset: dict[str, np.ndarray], h5path: str | Path | None = None) -> list[str]:
    """What is unusual about a dataset, and probably a fault of it: a sentence each."""
    try:
        return evaluation.compare(env_id, dataset, h5path)
    except DatasetError as error:  # a file can be looked into without its simulator
        return [f"the data was not compared with the environment: {error}"]
