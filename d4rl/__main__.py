"""`python -m d4rl`: list the tasks, fetch their datasets ahead of time, look into a file of your own."""

import argparse
import fnmatch
import sys

import numpy as np

from d4rl import downloads
from d4rl.data import (
    _timeouts,
    action_bounds,
    episode_ends,
    episode_returns,
    get_dataset,
    get_normalized_score,
    is_ordered,
    outside_share,
    qlearning_dataset,
    warnings_about,
)
from d4rl.tasks import TASKS, DatasetError, Task, task

FOLDERS = """Files are looked for in, and downloaded to, $D4RL_DATASET_DIR (~/.d4rl/datasets if it is not set);
robomimic's in TASK/ph and TASK/mh of $ROBOMIMIC_DATASET_DIR (~/.robomimic/datasets)."""
MINARI = "Ids of Minari (NAMESPACE/NAME-vN, such as D4RL/door/human-v2) work too; minari list remote shows them."


def main():
    """Exit code 2 and one sentence on stderr if something the user gave is wrong."""
    parser = argparse.ArgumentParser(prog="python -m d4rl", description="D4RL's tasks and datasets.", epilog=FOLDERS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "show the tasks as a table, and whether their files are here"
    command = commands.add_parser("list", help=about, description=f"{about.capitalize()}.", epilog=MINARI)
    command.add_argument("pattern", nargs="?", default="", help="part of an id (door) or a pattern ('*-human-v?')")
    command.set_defaults(run=list_tasks)

    about = "get dataset files ahead of their first use"
    more = "A file that is already there is verified, and never changed."
    command = commands.add_parser(
        "fetch", help=about, description=f"{about.capitalize()}. {more}", epilog=FOLDERS, allow_abbrev=False
    )
    command.add_argument("env_ids", nargs="+", metavar="ID", help="task ids, such as hopper-medium-v2")
    command.add_argument(
        "--allow-unverified",
        action="store_true",
        help="accept a file whose checksum nobody has published, downloaded now or put there by you, "
        "if it holds data of the task; its checksum is noted beside it and holds from then on",
    )
    command.set_defaults(run=fetch)

    about = "say what is wrong with a dataset, or what is in it"
    command = commands.add_parser("check", help=about, description=f"{about.capitalize()}.")
    command.add_argument("file", nargs="?", metavar="FILE", help="HDF5 file (default: the task's own, downloaded)")
    command.add_argument("--env-id", required=True, metavar="ID", help="the task that the file is for")
    command.set_defaults(run=check)

    args = parser.parse_args()
    try:
        sys.exit(args.run(args))
    except BrokenPipeError:
        sys.exit(0)  # the reader, such as head, has seen enough
    except (DatasetError, OSError) as error:
        sys.exit(_fail(error))
    except MemoryError:
        sys.exit(_fail("there is not enough memory for this dataset."))
    except KeyboardInterrupt:
        sys.exit(130)  # as the shell has it


def _fail(error: Exception | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


# --- list ---
def list_tasks(args: argparse.Namespace):
    """One line per task whose id contains or matches the pattern."""
    pattern = args.pattern if "*" in args.pattern or "?" in args.pattern else f"*{args.pattern}*"
    specs = [spec for env_id, spec in TASKS.items() if fnmatch.fnmatchcase(env_id, pattern)]
    if not specs:
        raise DatasetError(f"No id matches {args.pattern!r}; python -m d4rl list shows all.")
    row = "{:<29}{:>11}{:>7}{:>8}{:>11}{:>11}{:>9}  {}"
    lines = [row.format("id", "observation", "action", "horizon", "score 0", "score 100", "file/MB", "here")]
    for spec in specs:
        sizes = spec.observation_size, spec.action_size, spec.max_episode_steps
        references = f"{spec.ref_min:.2f}", f"{spec.ref_max:.2f}"
        size = f"{spec.bytes / 1e6:.1f}" if spec.bytes else "?"
        lines.append(row.format(spec.env_id, *sizes, *references, size, _here(spec)))
    lines += ["", "Score 0 and score 100 are the returns of a random policy and of an expert.", FOLDERS, MINARI]
    print("\n".join(lines))


def _here(spec: Task) -> str:
    path = downloads.find(spec)
    if not path.exists():
        return "no"
    if path.name == spec.default_path.name and spec.bytes not in (None, path.stat().st_size):
        return "wrong size"
    return "yes" if downloads.checksum(spec, path) else "unverified"


# --- fetch ---
def fetch(args: argparse.Namespace) -> int:
    """Each file in turn; a failure does not keep the others from being fetched."""
    code = 0
    for env_id in args.env_ids:
        try:
            spec = task(env_id)  # (a dataset of Minari's is downloaded by this)
            path = "in Minari's folder" if spec.is_minari else downloads.fetch(spec, args.allow_unverified)
            print(f"{env_id}: {path}")
        except DatasetError as error:
            code = _fail(error)
    return code


# --- check ---
def check(args: argparse.Namespace):
    """What one wants to know of a dataset before training on it."""
    spec, dataset = task(args.env_id), get_dataset(args.env_id, args.file)
    transitions = len(qlearning_dataset(args.env_id, dataset=dataset)["rewards"])
    terminals, timeouts = dataset["terminals"], _timeouts(spec, dataset)
    counted = f" (not in the file: counted every {spec.max_episode_steps} steps)"
    if "timeouts" in dataset or "next_observations" in dataset:
        counted = ""

    print(f"{args.file or args.env_id} fits {args.env_id}.")
    print(f"rows          {len(timeouts):,}: {transitions:,} transitions to learn from")
    if is_ordered(args.env_id, dataset):
        returns, ends = episode_returns(args.env_id, dataset), episode_ends(args.env_id, dataset)
        lengths = np.diff(ends, prepend=-1) if len(ends) else np.array([len(timeouts)])
        score = 100 * get_normalized_score(args.env_id, returns.mean())
        print(f"episodes      {len(returns):,}; {len(timeouts) - lengths.sum():,} rows after the last one's end")
        print(f"returns       {_spread(returns)}; the mean is a score of {score:.1f}")
        print(f"lengths       {_spread(lengths)}; the horizon is {spec.max_episode_steps}")
        print(f"time-outs     {timeouts.sum():,}{counted}")
    print(f"terminals     {terminals.sum():,}")
    print(f"rewards       {_spread(dataset['rewards'])}")
    print(f"observations  {_range(dataset['observations'])}")
    print(f"actions       {_range(dataset['actions'])}{_outside(args.env_id, dataset)}")
    for sentence in warnings_about(args.env_id, dataset, args.file):
        print(f"warning: {sentence}")


def _outside(env_id: str, dataset: dict[str, np.ndarray]) -> str:
    """By the bounds of the environment, if it can be built here."""
    try:
        low, high = action_bounds(env_id, dataset)
    except DatasetError:
        return ""
    percent = 100 * outside_share(dataset["actions"], low, high)
    return f"; {percent:.2f} % of the rows reach outside [{low.min():g}, {high.max():g}]"


def _spread(values: np.ndarray) -> str:
    return f"{values.min():.4g} to {values.max():.4g}, mean {values.mean(dtype=float):.4g}"


def _range(values: np.ndarray) -> str:
    (constant,) = np.nonzero((values == values[0]).all(axis=0))
    columns = ", ".join(map(str, constant)) or "none"
    return f"{values.min():.4g} to {values.max():.4g}; constant columns: {columns}"


if __name__ == "__main__":
    main()
