"""The paper's experiments as commands: print them, run them, run them again to go on where they stopped.

    python benchmark/experiments.py table5 --print                   # every command of Tables 1 and 5
    python benchmark/experiments.py table2 --only lift --jobs 2      # a part, two runs at a time
    python benchmark/experiments.py standins --collect mine.jsonl    # then: one line per finished run
    python benchmark/experiments.py table5 --engine ray --gpus 0.25  # the same commands on a Ray cluster

Every run has a folder of its own in --out. A finished run is skipped, a killed one is resumed. The runs of
SAQ-BC come first: the quantizer of each serves the other learners of the same task, seed and codebook.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import ROOT, append, stop  # noqa: E402

from d4rl.seeds import die_with_parent  # noqa: E402

LOCOMOTION = [
    f"{robot}-{data}-v2"
    for robot in ("halfcheetah", "hopper", "walker2d")
    for data in ("expert", "medium-expert", "medium-replay", "medium")
]
ANTMAZE = [f"antmaze-{size}-{data}-v2" for size in ("medium", "large") for data in ("diverse", "play")]
ADROIT = [f"{task}-human-v0" for task in ("door", "hammer", "pen", "relocate")]
KITCHEN = [f"kitchen-{data}-v0" for data in ("mixed", "complete", "partial")]
D4RL = LOCOMOTION + ANTMAZE + ADROIT + KITCHEN
ROBOMIMIC = [f"robomimic/{task}-ph" for task in ("lift", "can", "square", "tool_hang", "transport")]
STANDINS = {  # task: its file in $SAQ_STANDIN_DIR
    "hopper-medium-expert-v2": "hopper-medium-expert.hdf5",
    "door-human-v0": "door-human.hdf5",
    "robomimic/lift-ph": "robomimic/lift/ph/low_dim_v15.hdf5",
    "robomimic/can-ph": "robomimic/can/ph/low_dim_v15.hdf5",
    "pen-expert-v1": "pen-expert.hdf5",
    "halfcheetah-medium-expert-v2": "halfcheetah-medium-expert.hdf5",
    "hopper-medium-replay-v2": "hopper-medium-replay.hdf5",
}
SAQ_RL = ["saq_cql", "saq_iql", "saq_brac"]
COUNTERPARTS = ["baselines/bc", "baselines/cql", "baselines/iql", "baselines/brac"]
PAPER = tuple("--vqvae-steps 500000 --steps 1000000 --vqvae-hidden-dim 512 --embedding-dim 128".split())


# --- runs ---
@dataclass(frozen=True)
class Run:
    """One command: a script, a task, a seed and further flags."""

    script: str
    env_id: str
    seed: int
    flags: tuple[str, ...] = ()
    quantizer: "Run | None" = None  # a run of SAQ-BC whose quantizer is taken over

    @property
    def name(self) -> str:
        """The name of its folder, the same for the same command."""
        flags = self.flags + (self.quantizer.flags if self.quantizer else ())
        flags = "".join(dict.fromkeys("".join(pair).replace("--", "__") for pair in pairwise(flags)))
        return f"{self.env_id}__{self.script}__{self.seed}{flags}".replace("/", "-")

    def folder(self, out: Path) -> Path | None:
        """The run's folder in `out`: with a result before one with a checkpoint before one just started."""
        for file in ("result.json", "checkpoint*.pt", "args.json"):
            if found := sorted((out / self.name).glob(f"*/{file}")):
                return found[0].parent
        return None

    def finished(self, out: Path) -> bool:
        folder = self.folder(out)
        return folder is not None and (folder / "result.json").exists()

    def command(self, out: Path, data: dict[str, str]) -> list[str]:
        """What starts the run; `data` names files by task."""
        words = [sys.executable, f"{self.script}.py", "--env-id", self.env_id, "--seed", str(self.seed)]
        if self.env_id in data:
            words += ["--dataset-path", data[self.env_id]]
        if self.quantizer:
            words += ["--quantizer-from", str(self.quantizer.folder(out) or f"{out / self.quantizer.name}/*")]
        return [*words, *self.flags, "--runs-dir", str(out / self.name)]


def saq(
    scripts: list[str], env_id: str, seed: int, flags: tuple = (), quantizer_flags: tuple = ()
) -> list[Run]:
    """SAQ learners on one quantizer, that of SAQ-BC, which is a run as well."""
    bc = Run("saq_bc", env_id, seed, quantizer_flags)
    return [bc, *(Run(script, env_id, seed, flags, quantizer=bc) for script in scripts)]


def pairs(env_ids: list[str], seeds: list[int]) -> Iterator[Run]:
    """The four SAQ learners and their continuous counterparts."""
    for env_id, seed in itertools.product(env_ids, seeds):
        yield from saq(SAQ_RL, env_id, seed)
        yield from (Run(script, env_id, seed) for script in COUNTERPARTS)


def aquadem(env_ids: list[str], seeds: list[int]) -> Iterator[Run]:
    for env_id, seed, learner in itertools.product(env_ids, seeds, ("bc", "cql", "iql")):
        yield Run("baselines/aquadem", env_id, seed, ("--learner", learner))


def table3(seeds: list[int]) -> Iterator[Run]:
    """The quantizer with the state, and without."""
    robots, forms = ("halfcheetah", "hopper", "walker2d"), ((), ("--no-condition-on-obs",))
    for robot, seed, flags in itertools.product(robots, seeds, forms):
        yield from saq(SAQ_RL, f"{robot}-medium-replay-v2", seed, quantizer_flags=flags)


def table4(seeds: list[int]) -> Iterator[Run]:
    """The number of codes."""
    for size, seed in itertools.product((16, 32, 64, 128), seeds):
        yield from saq(SAQ_RL, "hopper-expert-v2", seed, quantizer_flags=("--codebook-size", str(size)))


def figure5(seeds: list[int]) -> Iterator[Run]:
    """The weight of each learner's constraint, from none to strong."""
    for seed in seeds:
        for weight in (0, 0.3, 1, 3, 10, 30):
            yield from saq(["saq_cql"], "hopper-expert-v2", seed, ("--conservatism", str(weight)))
            yield from saq(["saq_brac"], "hopper-expert-v2", seed, ("--behaviour-weight", str(weight)))
            temperature = str(weight or 0.001)  # of SAQ-IQL: 0 would follow the advantage alone
            yield from saq(["saq_iql"], "hopper-expert-v2", seed, ("--temperature", temperature))


def standins(seeds: list[int]) -> Iterator[Run]:
    """What results/runs.jsonl holds, with few evaluations; stand-ins with CQL's cheaper estimate."""
    for env_id, seed in itertools.product(["maze2d-large-demos-v0", *STANDINS], seeds):
        flags = ()
        if env_id in STANDINS:
            every, episodes = "15000" if "robomimic" in env_id else "10000", "50"
            episodes = "200" if env_id.startswith("pen") else episodes
            flags = ("--eval-every", every, "--eval-episodes", episodes)
        if env_id == "door-human-v0":  # 6,704 transitions
            flags += ("--steps", "10000")
        yield from saq(SAQ_RL, env_id, seed, flags, flags)
        yield from (Run(script, env_id, seed, flags) for script in COUNTERPARTS if script != "baselines/cql")
        cheaper = ("--num-actions", "4") if env_id in STANDINS else ()
        yield Run("baselines/cql", env_id, seed, flags + cheaper)
        if env_id in ("hopper-medium-expert-v2", "door-human-v0"):
            if env_id.startswith("hopper"):  # SAQ-IQL's temperature there
                flags += ("--temperature", "10")
            flags += ("--quantizer-steps", "20000")
            yield from (replace(run, flags=run.flags + flags) for run in aquadem([env_id], [seed]))


def long(seeds: list[int]) -> Iterator[Run]:
    """What results/long.jsonl holds: after 100,000 updates SAQ's learners do better with a smaller rate."""
    last = ("--steps", "100000", "--eval-every", "100000", "--eval-episodes")
    for env_id, seed in itertools.product([task for task in STANDINS if task[-2:] in ("v1", "v2")], seeds):
        flags = (*last, "200" if env_id.startswith("pen") else "50")
        smaller = () if env_id.startswith("pen") else ("--lr", "0.0003")
        yield from saq(["saq_iql"], env_id, seed, flags + smaller, flags)
        yield Run("saq_brac", env_id, seed, flags + smaller)
        yield from (Run(f"baselines/{name}", env_id, seed, flags) for name in ("iql", "brac"))


def ablations(seeds: list[int]) -> Iterator[Run]:
    """Tables 3 and 4 and Figure 5 on stand-ins, as far as `standins` does not hold them.

    SAQ-IQL's temperature needs no training: `--evaluate RUN --temperature X`.
    """
    replay, expert, last = "hopper-medium-replay-v2", "hopper-medium-expert-v2", ("--eval-every", "30000")
    last += ("--eval-episodes", "50")
    for seed in seeds:
        yield from saq(SAQ_RL, replay, seed, last, (*last, "--no-condition-on-obs"))
        yield from saq(["saq_iql"], expert, seed, last, last)
        for size in ("32", "64", "128"):
            yield from saq(["saq_cql"], expert, seed, last, (*last, "--codebook-size", size))
        for weight in ("0", "0.3", "1", "3", "10", "30"):
            yield from saq(["saq_cql"], expert, seed, (*last, "--conservatism", weight), last)


def figure2(seeds: list[int]) -> Iterator[Run]:
    """Continuous CQL and SAQ-CQL over training; benchmark/figure2.py also measures the penalties."""
    for script, seed in itertools.product(("saq_cql", "baselines/cql"), seeds):
        yield Run(script, "maze2d-large-demos-v0", seed, ("--eval-every", "500"))


EXPERIMENTS = {
    "table2": lambda seeds: pairs(ROBOMIMIC, seeds),
    "table3": table3,
    "table4": table4,
    "table5": lambda seeds: itertools.chain(pairs(D4RL, seeds), aquadem(D4RL, seeds)),
    "figure2": figure2,
    "figure5": figure5,
    "standins": standins,
    "long": long,
    "ablations": ablations,
}


def experiment(name: str, seeds: list[int]) -> list[Run]:
    """The runs of an experiment; each once, though several of its parts may need it."""
    return list(dict.fromkeys(EXPERIMENTS[name](seeds)))


# --- running ---
def execute(run: Run, out: Path, data: dict[str, str]) -> str:
    """Start, resume or skip a run: "finished", "skipped", or what went wrong."""
    if run.finished(out):
        return "skipped"
    if run.quantizer and not run.quantizer.finished(out):
        return f"failed: {run.quantizer.name} has no quantizer"
    started = run.folder(out)
    if started and list(started.glob("checkpoint*.pt")):
        command = [sys.executable, f"{run.script}.py", "--resume", str(started)]
        if run.env_id in data:  # it may have moved
            command += ["--dataset-path", data[run.env_id]]
    else:
        command = run.command(out, data)
    (out / run.name).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(out / run.name / "log.txt", "a") as log:
        settings = dict(cwd=ROOT, env=environment, preexec_fn=die_with_parent)
        code = subprocess.Popen(command, stdout=log, stderr=log, **settings).wait()
    return "finished" if run.finished(out) else f"failed: exit code {code}, see {out / run.name / 'log.txt'}"


def run_locally(runs: list[Run], out: Path, data: dict[str, str], jobs: int) -> Iterator[tuple[Run, str]]:
    """`jobs` at a time, one thread each; what needs a quantizer after what trains it."""
    for wave in ([r for r in runs if not r.quantizer], [r for r in runs if r.quantizer]):
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(execute, run, out, data): run for run in wave}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # Ctrl-C ends the trainings too; no further one starts
                pool.shutdown(cancel_futures=True)
                raise


def run_on_ray(runs: list[Run], out: Path, data: dict[str, str], gpus: float) -> Iterator[tuple[Run, str]]:
    """Each run is a Ray task with retries; `out` has to be a folder that all nodes share."""
    try:
        import ray
    except ImportError:
        stop("--engine ray needs Ray: pip install ray")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)
    remote = task(lambda run, *after: (run, execute(run, out, data)))
    submitted = {}
    for run in sorted(runs, key=lambda run: run.quantizer is not None):
        after = [submitted[run.quantizer]] if run.quantizer else []
        submitted[run] = remote.remote(run, *after)
    waiting = list(submitted.values())
    while waiting:
        (done,), waiting = ray.wait(waiting)
        yield ray.get(done)


# --- command line ---
def main(argv: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose name contains this")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark", help="folder of all runs")
    parser.add_argument("--paper-budget", action="store_true", help="the official code's updates and sizes")
    parser.add_argument("--flags", default="", help="further flags for every run, in quotes")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--gpus", type=float, default=0, help="share of a GPU per run, with --engine ray")
    parser.add_argument("--print", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--collect", type=Path, metavar="FILE", help="write the finished runs, run nothing")
    args = parser.parse_args(argv)

    out = args.out.resolve()
    standin_dir, data = os.environ.get("SAQ_STANDIN_DIR", ""), {}
    if args.experiment in ("standins", "long", "ablations"):
        data = {task: str(Path(standin_dir, path).resolve()) for task, path in STANDINS.items()}
    extra = tuple(shlex.split(args.flags))

    def extended(run: Run) -> Run:
        flags = run.flags + (PAPER if args.paper_budget else ()) + extra
        if run.script.startswith("baselines/"):  # these have no quantizer
            kept = (pair for pair in pairwise(flags) if not pair[0].startswith(("--vqvae", "--embedding")))
            flags = tuple(itertools.chain(*kept))
        return replace(run, flags=flags, quantizer=extended(run.quantizer) if run.quantizer else None)

    runs = [extended(run) for run in experiment(args.experiment, args.seeds)]
    chosen = [run for run in runs if args.only in run.name]
    runs = list(dict.fromkeys([run.quantizer for run in chosen if run.quantizer] + chosen))
    if not runs:
        stop(f"no run of {args.experiment} has {args.only!r} in its name; see --print.")
    if any(run.env_id in data for run in runs) and not standin_dir:
        stop("set SAQ_STANDIN_DIR to the folder of the stand-in datasets (docs/data.md).")
    if args.print:
        for run in runs:  # the shell is to find the quantizer's folder by its pattern
            words = ["python", *run.command(args.out, data)[1:]]
            print(*(word if word.endswith("/*") else shlex.quote(word) for word in words))
        return 0
    if args.collect:
        finished = [run for run in runs if run.finished(out)]
        args.collect.write_text("")
        for run in finished:
            append(args.collect, record(run, out))
        print(f"{len(finished)} of {len(runs)} runs are finished: {args.collect}")
        return 0
    failures = 0
    on_ray = args.engine == "ray"
    results = run_on_ray(runs, out, data, args.gpus) if on_ray else run_locally(runs, out, data, args.jobs)
    for run, outcome in tqdm(results, total=len(runs), desc="runs", mininterval=1):
        tqdm.write(f"{run.name}: {outcome}")
        failures += outcome.startswith("failed")
    return 1 if failures else 0


def pairwise(flags: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A flag with its value, or a switch alone."""
    for i, flag in enumerate(flags):
        if flag.startswith("--"):
            alone = i + 1 == len(flags) or flags[i + 1].startswith("--")
            yield (flag,) if alone else (flag, flags[i + 1])


def record(run: Run, out: Path) -> dict:
    """What is kept of a run: its result, its arguments, the learner's scores over training."""
    folder = run.folder(out)
    result = json.loads((folder / "result.json").read_text())
    arguments = json.loads((folder / "args.json").read_text())
    for name in (
        "dataset_path",
        "runs_dir",
        "quantizer_from",
        "resume",
        "evaluate",
    ):  # places of this machine
        arguments[name] = Path(arguments[name]).name if name in arguments else None
    return result | {"args": {name: value for name, value in arguments.items() if value is not None}}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of --print, such as head, has seen enough
        os._exit(0)
