"""Datasets and scores: read a D4RL file, check it, turn it into transitions, normalise returns.

A D4RL file is HDF5 with the arrays observations (N, observation size), actions (N, action size), rewards (N), terminals
(N) and, in most files, timeouts (N); row i + 1 follows row i unless an episode ended at row i. Whatever is wrong with a
dataset is raised as a `DatasetError`: one sentence that says what is wrong and what to do.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
PACKAGE = Path(__file__).parent
REQUIRED = ("observations", "actions", "rewards", "terminals")


class DatasetError(ValueError):
    """A task id or a dataset that cannot be used; the message is one sentence for the user."""


# --- tasks ---
@dataclass(frozen=True)
class Task:
    """One line of `tasks.tsv`: a task, its dataset file and its reference returns."""

    env_id: str
    observation_size: int
    action_size: int
    max_episode_steps: int
    ref_min: float  # undiscounted return of a random policy: score 0
    ref_max: float  # undiscounted return of an expert: score 100
    bytes: int | None  # size and checksum of the published file, None where unknown
    sha256: str | None
    path: str  # below URL, or the name of a file in this folder

    @property
    def url(self) -> str:
        """Where D4RL publishes the file (of no use for the task whose file comes with the package)."""
        return URL + self.path

    @property
    def default_path(self) -> Path:
        """Where `get_dataset` looks: in the package, else in $D4RL_DATASET_DIR, else in ~/.d4rl/datasets."""
        if (PACKAGE / self.path).is_file():
            return PACKAGE / self.path
        folder = os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets"
        return Path(folder) / Path(self.path).name


def _read_tasks() -> dict[str, Task]:
    tasks = {}
    for line in (PACKAGE / "tasks.tsv").read_text(encoding="utf-8").splitlines()[1:]:  # below the column names
        env_id, observation_size, action_size, steps, ref_min, ref_max, size, sha256, path = line.split("\t")
        tasks[env_id] = Task(
            env_id=env_id,
            observation_size=int(observation_size),
            action_size=int(action_size),
            max_episode_steps=int(steps),
            ref_min=float(ref_min),
            ref_max=float(ref_max),
            bytes=None if size == "-" else int(size),
            sha256=None if sha256 == "-" else sha256,
            path=path,
        )
    return tasks


TASKS = _read_tasks()


def task(env_id) -> Task:
    """The facts of one task; raises DatasetError for an unknown id, naming the closest known ones.

    Here and in all functions below, an environment made by `gymnasium.make` may stand for its id, as in the original.
    """
    if spec := getattr(env_id, "spec", None):
        env_id = spec.id
    if env_id in TASKS:
        return TASKS[env_id]
    close = difflib.get_close_matches(str(env_id), TASKS)
    advice = f"did you mean {' or '.join(close)}?" if close else f"the {len(TASKS)} ids are listed in d4rl/tasks.tsv."
    raise DatasetError(f"There is no task {env_id!r}: {advice}")


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
        h5path: the file; by default the one in the package or `task(env_id).default_path`.

    Returns:
        observations (N, observation size), actions (N, action size) and rewards (N,), float32; terminals (N,), bool:
        the environment ended the episode at this row; timeouts (N,), bool, if the file has them: it was cut off here.

    Raises:
        DatasetError: unknown task; file missing, unreadable, incomplete or of another task; values not finite.
    """
    spec = task(env_id)
    path = Path(h5path) if h5path else spec.default_path
    if not path.is_file() or not os.access(path, os.R_OK):
        advice = "check the path." if h5path else f"download {spec.url} and put it there, or pass the path of a copy."
        raise DatasetError(f"There is no readable file {path}: {advice}")
    return _checked(spec, _read(path), str(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays at the top level of an HDF5 file; those that D4RL's format does not know are named but not read."""
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty (0 bytes): download or copy it again.")
    try:
        if not h5py.is_hdf5(path):
            raise DatasetError(f"{path} is not an HDF5 file: pass a dataset in D4RL's format.")
        with h5py.File(path) as file:
            known = [key for key in (*REQUIRED, "timeouts") if isinstance(file.get(key), h5py.Dataset)]
            return {key: file[key][()] if key in known else None for key in file}
    except (OSError, RuntimeError, KeyError):
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

    checked = {}
    for key in (*REQUIRED, "timeouts"):
        if arrays.get(key) is None:
            continue  # only timeouts may be missing
        values = np.asarray(arrays[key])
        if values.dtype.kind not in "biuf":
            raise DatasetError(f"{source}: {key} holds {values.dtype}, not numbers; pass a dataset in D4RL's format.")
        row = {"observations": (spec.observation_size,), "actions": (spec.action_size,)}.get(key, ())
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
    keep = np.ones(len(terminals), bool) if terminate_on_end else ~timeouts
    (rows,) = np.nonzero(keep[:-1])
    if len(rows) < 2:
        raise DatasetError(f"The dataset of {env_id} holds {len(rows)} of the at least 2 transitions that are needed.")
    return {
        "observations": dataset["observations"][rows],
        "actions": dataset["actions"][rows],
        "next_observations": dataset["observations"][rows + 1],
        "rewards": dataset["rewards"][rows],
        "terminals": terminals[rows],
    }


def episode_returns(env_id: str, dataset: dict[str, np.ndarray]) -> np.ndarray:
    """Undiscounted return of every finished episode, in file order: (episodes,) float64.

    `dataset` is what `get_dataset` returns. Rows after the last episode end are left out; a dataset in which no episode
    ends counts as one episode.
    """
    spec = task(env_id)
    dataset = _checked(spec, dataset, "The given dataset")
    (ends,) = np.nonzero(dataset["terminals"] | _timeouts(spec, dataset))
    if len(ends) == 0:
        ends = np.array([len(dataset["rewards"]) - 1])
    starts = np.concatenate([[0], ends[:-1] + 1])
    return np.add.reduceat(dataset["rewards"][: ends[-1] + 1].astype(np.float64), starts)


def describe(env_id: str, dataset: dict[str, np.ndarray]) -> str:
    """One line for people: rows, episodes and their returns, sizes of an observation and an action."""
    returns = episode_returns(env_id, dataset)
    rows, observation_size = dataset["observations"].shape
    action_size = dataset["actions"].shape[1]
    return (
        f"{rows:,} steps, {len(returns):,} episodes with returns {returns.min():.1f} to {returns.max():.1f} "
        f"(mean {returns.mean():.1f}), {observation_size} observations, {action_size} actions"
    )
