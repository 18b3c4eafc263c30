"""--num-seeds: one run per seed from one command, as many at a time as there are cores, and the mean of their scores.

Each run is a process with the command of a single run, so it is that run to the last bit. The process that starts them
reads no data.
"""

import ctypes
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from d4rl.evaluation import _cores
from d4rl.tasks import UsageError

ON_A_GPU = 4  # at a time: they take turns on it, and each holds memory


class Seed:
    """The run of one seed: its command, its process once that is started, and what it has left behind."""

    def __init__(self, args, seed: int):
        self.seed, self.runs_dir = seed, Path(args.runs_dir)
        self.flags = [*sys.argv[1:], "--num-seeds", "1", "--seed", str(seed)]  # the last one counts
        name = f"{args.env_id.replace('/', '-')}__{Path(sys.argv[0]).stem}__{seed}__{datetime.now():%Y%m%d-%H%M%S-%f}"
        self.log = self.runs_dir / f"{name}.log"

    def start(self, environment: dict[str, str]):
        """In a session of its own: Ctrl-C in a terminal is for the parent alone, which ends it."""
        command = [sys.executable, sys.argv[0], *self.flags]
        settings = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "env": environment}
        if os.name != "nt":
            settings |= {"start_new_session": True, "preexec_fn": die_with_parent}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, **settings)

    @property
    def folder(self) -> Path | None:
        """That of the run, which prints it as soon as it can be resumed."""
        for line in map(Path, self._output().splitlines()):
            if line.parent == self.runs_dir and f"__{self.seed}__" in line.name and line.is_dir():
                return line
        return None

    def _output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def score(self) -> float | None:
        """None if the process has failed."""
        return None if self.process.returncode else json.loads((self.folder / "result.json").read_text())["score"]

    def problem(self) -> str:
        """Why it has failed: the sentence that it ended with, if it found one."""
        sentences = re.findall("error: (.+)", self._output()) if self.process.returncode == 2 else []
        return sentences[-1] if sentences else f"exit code {self.process.returncode}; go on with: {self.how_to_go_on()}"

    def how_to_go_on(self) -> str:
        flags = ["--resume", str(self.folder)] if self.folder else self.flags
        return shlex.join(["python", sys.argv[0], *flags])

    def stop(self):
        """After `terminate`, which a process may miss."""
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def put_log_away(self):
        """Into the run's folder, if there is one."""
        if folder := self.folder:
            self.log = self.log.replace(folder / "log.txt")


def die_with_parent():
    """For the child of a killed process: nobody else may resume its run while it still trains."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def at_a_time(args) -> int:
    """One per core that this process may use, fewer if each has several threads. On a GPU a few."""
    most = max(1, _cores() // args.threads)
    return min(args.num_seeds, most, ON_A_GPU if args.device == "cuda" else most)


def train(args):
    """One run for each of the seeds `args.seed` to `args.seed + args.num_seeds - 1`, by the command of this process.

    Ended itself, it ends them and prints the commands that go on.

    Raises:
        UsageError: when all are over, if some have failed.
    """
    jobs = at_a_time(args)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # its log holds all that it has said
    environment.setdefault("D4RL_PROCESSES", str(_cores() // jobs + 1))  # the simulators of each
    waiting = [Seed(args, args.seed + i) for i in range(args.num_seeds)]
    running, scores, problems = [], [], {}
    print(f"{args.num_seeds} seeds, {jobs} at a time; follow one with: tail -f {waiting[0].log}")
    shown = dict(desc="seeds", bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}]", mininterval=1, miniters=0)
    with tqdm(total=args.num_seeds, disable=None, **shown) as progress:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    waiting[0].start(environment)
                    running.append(waiting.pop(0))
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    one.put_log_away()
                    if one.score() is None:
                        problems.setdefault(one.problem(), []).append(one.seed)
                        progress.write(f"seed {one.seed}: failed  {one.log}")
                    else:
                        scores.append(one.score())
                        progress.write(f"seed {one.seed}: {one.score():.1f}  {one.folder}")
                    progress.update()
                progress.update(0)
                time.sleep(0.1)
        except BaseException:
            for one in running:
                one.process.terminate()
            for one in running:
                one.stop()
                one.put_log_away()
            for one in running + waiting:
                progress.write(f"seed {one.seed}: go on with: {one.how_to_go_on()}", file=sys.stderr)
            raise
    if scores:
        print(summary(scores, args.num_seeds))
    if problems:
        told = (f"seed {', '.join(map(str, sorted(of)))}: {problem.rstrip('.')}" for problem, of in problems.items())
        raise UsageError(f"{args.num_seeds - len(scores)} of {args.num_seeds} seeds failed: {'; '.join(told)}")


def summary(scores: list[float], seeds: int) -> str:
    """The mean of the scores of so many seeds, some of which may have failed, with its 95 % interval."""
    of = f"{len(scores)} of {seeds}" if len(scores) < seeds else f"{seeds}"
    told = f"score {np.mean(scores):.1f}, mean of {of} seeds"
    if len(scores) < 2:
        return told
    reach = student_t(len(scores) - 1) * np.std(scores, ddof=1) / math.sqrt(len(scores))
    low, high = np.mean(scores) - reach, np.mean(scores) + reach
    return f"{told}; 95 % interval {low:.1f} to {high:.1f} (Student's t)"


def student_t(freedom: int) -> float:
    """The number t between which and -t Student's distribution has 95 %.

    With t = sqrt(freedom) tan(angle), the density of the angle is in proportion to cos(angle)^(freedom - 1).
    """
    angle = np.linspace(0, math.pi / 2, 1_000_001)
    middle = (angle[1:] + angle[:-1]) / 2
    mass = np.cumsum(np.cos(middle) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(angle[1:][np.searchsorted(mass, 0.95 * mass[-1])])
