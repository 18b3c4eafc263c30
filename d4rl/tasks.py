"""The tasks: what `tasks.tsv` says of each, and where its dataset belongs on disk."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import gymnasium

D4RL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
# The revision is that of the checksums in `tasks.tsv`.
ROBOMIMIC = (
    "https://huggingface.co/datasets/robomimic/robomimic_datasets/resolve/74fa018461f479cd9fd15b924a16103012096203/"
)
PACKAGE = Path(__file__).parent


class UsageError(ValueError):
    """Something that the user has to change; the message is one sentence: what is wrong and what to do."""


class DatasetError(UsageError):
    """A task id or a dataset that cannot be used."""


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
    path: str  # below D4RL or ROBOMIMIC, or the name of a file in this folder

    @property
    def is_robomimic(self) -> bool:
        return self.env_id.startswith("robomimic/")

    @property
    def is_minari(self) -> bool:
        """An id with a namespace that is not robomimic's is one of Minari's; Minari knows where its files are."""
        return "/" in self.env_id and not self.is_robomimic

    @property
    def knows_next(self) -> bool:
        """Next observations of its dataset are what followed every step, also at the end of an episode."""
        return self.is_robomimic or self.is_minari

    @property
    def url(self) -> str:
        """Where the file is published (of no use for the task whose file comes with the package)."""
        return (ROBOMIMIC if self.is_robomimic else D4RL) + self.path

    @property
    def default_path(self) -> Path:
        """Where `get_dataset` looks and what it downloads to.

        The file in the package, else $D4RL_DATASET_DIR or ~/.d4rl/datasets as in the original; for robomimic's tasks
        the folders TASK/ph or TASK/mh in $ROBOMIMIC_DATASET_DIR or ~/.robomimic/datasets.
        """
        if (PACKAGE / self.path).is_file():
            return PACKAGE / self.path
        name = "robomimic" if self.is_robomimic else "d4rl"
        folder = os.environ.get(f"{name.upper()}_DATASET_DIR") or Path.home() / f".{name}" / "datasets"
        return Path(folder, self.path.partition("/")[2] if self.is_robomimic else Path(self.path).name)


def plain_name(env_id: str) -> str:
    """An id as D4RL writes it, of Minari's too: hopper-expert-v0 of mujoco/hopper/expert-v0."""
    own = "/" in env_id and not env_id.startswith("robomimic/")
    return env_id.partition("/")[2].replace("/", "-") if own else env_id


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

    Here and in all functions of this package, an environment made by `gymnasium.make` may stand for its id, as in the
    original. An id with a namespace other than robomimic's names a dataset of Minari, which is loaded to answer.
    """
    if spec := getattr(env_id, "spec", None):
        env_id = spec.id
    if env_id in TASKS:
        return TASKS[env_id]
    if "/" in str(env_id) and not str(env_id).startswith("robomimic/"):
        from d4rl import minari_datasets

        return minari_datasets.task(env_id)
    recorded = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets", str(env_id))
    if (recorded / "data").is_dir():
        move = f"move {recorded} to {recorded.parent / 'my' / recorded.name}"
        raise DatasetError(f"{env_id} of Minari's needs a namespace here: {move}, and give my/{env_id}.")
    if str(env_id) in gymnasium.registry:
        advice = (
            'record data of it with Minari, or add it as a task ("Your own data" and "Add a task" in docs/data.md).'
        )
        raise DatasetError(f"{env_id} is an environment without a dataset: {advice}")
    close = difflib.get_close_matches(str(env_id), TASKS)
    advice = "see python -m d4rl list; an id of Minari's has a namespace, as my/own-v0."
    if close:
        advice = f"did you mean {' or '.join(close)}?"
    raise DatasetError(f"There is no task {env_id!r}: {advice}")
