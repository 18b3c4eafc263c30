"""Updates per second of both stages of every script, beside an IQL built as CORL's and the machine's peak.

    python benchmark/speed.py                             # one CPU core: about four minutes
    python benchmark/speed.py --device cuda               # a GPU
    python benchmark/speed.py --modes eager compiled bf16

A block of updates is the script's own `train` on random data of hopper's sizes, without evaluations. The
blocks of all scripts and modes take turns, so that a machine that slows down slows all; shown are medians of
the rounds. On a CPU the seconds are the process's own (others may use the machine), on a GPU the clock's.
Modes: eager, as the scripts are on a CPU; compiled, with `torch.compile` around the loss; bf16, with
matrix products in that format as by --bf16; graph, as the scripts are on a GPU. "graph+compiled" is both.
"""

import copy
import csv
import importlib.util
import sys
import time
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
import tyro
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import BLUE, GREY, INK, ORANGE, PALE, ROOT, plt, save, stop  # noqa: E402

from d4rl import Spaces, runs  # noqa: E402

OBS_DIM, ACTION_DIM, BATCH = 11, 3, 256  # hopper's, and the scripts' default
SIZES = "--codebook-size 64 --embedding-dim 128 --vqvae-hidden-dim 512 --codebook-form official".split()
JOBS = {  # name: script, stage, flags. The quantizer is the same in all of SAQ's scripts
    "quantizer": ("saq_bc", "quantizer", []),
    "quantizer, official size": ("saq_bc", "quantizer", SIZES),
    "SAQ-BC": ("saq_bc", "learner", []),
    "SAQ-CQL": ("saq_cql", "learner", []),
    "SAQ-IQL": ("saq_iql", "learner", []),
    "SAQ-BRAC": ("saq_brac", "learner", []),
    "BC": ("baselines/bc", "learner", []),
    "CQL": ("baselines/cql", "learner", []),
    "IQL": ("baselines/iql", "learner", []),
    "BRAC, behaviour": ("baselines/brac", "behaviour", []),
    "BRAC": ("baselines/brac", "learner", []),
    "Aquadem, quantizer": ("baselines/aquadem", "quantizer", []),
    "Aquadem": ("baselines/aquadem", "learner", []),
}
CORL = "CORL's IQL"
COLUMNS = ("job", "mode", "device", "updates_per_second", "lowest", "highest")
COLUMNS += ("times_corl", "lowest_times", "highest_times", "gflop_per_update", "share_of_peak")


@dataclass
class Args:
    jobs: list[str] = field(default_factory=lambda: list(JOBS))  # some of them
    modes: list[str] = field(default_factory=list)  # none: eager and bf16; on a GPU eager, graph, graph+bf16
    rounds: int = 7  # blocks of each job and mode
    seconds: float = 0.4  # of a block, about
    rows: int = 500_000  # of the random data
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # CPU threads
    out: str = ""  # a CSV file for the numbers; the plot is beside it as .svg and .png
    plot: str = ""  # draw the plot of this CSV file, measure nothing


# --- the scripts, as they are ---
class Enough(Exception):
    """The block has its updates."""


class Stopwatch(runs.Run):
    """In the place of a run: times updates after the first ones, writes nothing, then ends `train`."""

    def __init__(self, args, warm_up: int, updates: int):
        self.args, self.warm_up, self.updates = args, warm_up, updates
        self.folder, self.stage = "the benchmark", ""

    def restore(self, stage: str, model, optimizer, generator) -> int:
        self.step, self.count, self.sums = 0, 0, {}
        return 0

    def log(self, metrics: dict):
        super().log(metrics)
        if self.count == self.warm_up:
            self.begin = now(self.args.device)
        if self.count == self.warm_up + self.updates:
            self.seconds = now(self.args.device) - self.begin
            raise Enough


def now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def load_apart(script: str, name: str):
    """A script as a module of its own, whose losses can be replaced; without bars."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{script}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)  # tyro and dataclasses look classes up here
    spec.loader.exec_module(sys.modules[name])
    sys.modules[name].tqdm = partial(sys.modules[name].tqdm, disable=True)
    return sys.modules[name]


class Script:
    """A stage of a script in a mode, with further flags; `block(n)`: seconds of n of its updates."""

    def __init__(self, job, mode: str, rows: int, device: str, action_dim: int = ACTION_DIM, more=()):
        script, self.stage, flags = JOBS[job]
        flags = [*flags, *more]
        self.words = set(mode.split("+"))
        self.module = module = load_apart(script, f"speed {job} {mode}".replace(".", ""))
        self.args = args = module.parse_args([*flags, "--device", device, "--env-id", "hopper-medium-v2"])
        args.eval_every, args.cuda_graph = 10**9, "graph" in self.words
        torch.manual_seed(0)
        spaces = Spaces(*torch.zeros(5, OBS_DIM))._replace(
            action_low=-torch.ones(action_dim), action_high=torch.ones(action_dim)
        )
        if hasattr(module, "make_models"):
            self.models = module.make_models(args, spaces.to(device))
        else:
            self.models = (module.Learner(args, OBS_DIM, action_dim).to(device),)
        codes = getattr(args, "codebook_size", getattr(args, "num_candidates", 1))
        arrays = random_data(rows, codes, device, action_dim)
        self.data = module.Transitions(*arrays[: len(module.Transitions._fields)])
        if "compiled" in self.words:
            for loss in {"quantizer_loss", "behaviour_loss", "learner_loss"} & vars(module).keys():
                setattr(module, loss, torch.compile(getattr(module, loss)))

    def block(self, updates: int) -> float:
        run = Stopwatch(self.args, 5, updates)
        torch.set_float32_matmul_precision("medium" if "bf16" in self.words else "highest")
        several = len(self.models) > 1 or "behaviour_steps" in vars(self.args)
        try:
            self.module.train(self.args, run, *([self.stage] if several else []), *self.models, self.data)
        except Enough:
            return run.seconds
        finally:
            torch.set_float32_matmul_precision("highest")
        raise AssertionError("train ended before its updates were done")


@cache
def random_data(rows: int, codes: int, device: str, action_dim: int = ACTION_DIM) -> list[torch.Tensor]:
    """In the order of `Transitions`; all that ask for the same have the same, once in memory."""
    random = torch.Generator(device).manual_seed(0)
    obs, next_obs = (torch.randn(rows, OBS_DIM, generator=random, device=device) for _ in range(2))
    action = torch.rand(rows, action_dim, generator=random, device=device) * 2 - 1
    reward = torch.rand(rows, generator=random, device=device)
    terminal = (torch.rand(rows, generator=random, device=device) < 0.001).float()
    code = torch.randint(codes, (rows,), generator=random, device=device)
    return [obs, action, reward, next_obs, terminal, code]


# --- what they are compared with ---
class CorlIQL:
    """IQL as CORL's iql.py does it: two critics, three Adams as they come, `.item()` of each loss."""

    def __init__(self, rows: int, device: str):
        torch.manual_seed(0)
        self.device = device
        obs, action, reward, next_obs, terminal, _ = random_data(rows, 1, device)
        self.data = [obs, action, reward[:, None], next_obs, terminal[:, None]]

        def network(inputs, outputs, *end):
            hidden = [nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
            return nn.Sequential(*hidden, nn.Linear(256, outputs), *end).to(device)

        self.q = nn.ModuleList([network(OBS_DIM + ACTION_DIM, 1, nn.Flatten(0)) for _ in range(2)])
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.v = network(OBS_DIM, 1, nn.Flatten(0))
        self.policy = network(OBS_DIM, ACTION_DIM, nn.Tanh())
        self.policy.log_std = nn.Parameter(torch.zeros(ACTION_DIM, device=device))
        optimizers = (torch.optim.Adam(net.parameters(), lr=3e-4) for net in (self.q, self.v, self.policy))
        self.q_optimizer, self.v_optimizer, self.policy_optimizer = optimizers
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.policy_optimizer, 10**6)

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def update(self) -> dict[str, float]:
        index, log = np.random.randint(0, len(self.data[0]), size=BATCH), {}
        obs, action, reward, next_obs, terminal = (array[index].to(self.device) for array in self.data)
        reward, terminal = reward.squeeze(-1), terminal.squeeze(-1)
        with torch.no_grad():
            next_v = self.v(next_obs)
            pairs = torch.cat([obs, action], 1)
            target_q = torch.min(*(critic(pairs) for critic in self.q_target))
        advantage = target_q - self.v(obs)
        v_loss = (torch.abs(0.7 - (advantage < 0).float()) * advantage**2).mean()
        log["value_loss"] = self.step(self.v_optimizer, v_loss)
        target = reward + (1 - terminal) * 0.99 * next_v.detach()
        pairs = torch.cat([obs, action], 1)
        q_loss = sum(nn.functional.mse_loss(critic(pairs), target) for critic in self.q) / 2
        log["q_loss"] = self.step(self.q_optimizer, q_loss)
        for slow, fast in zip(self.q_target.parameters(), self.q.parameters(), strict=True):
            slow.data.copy_((1 - 0.005) * slow.data + 0.005 * fast.data)
        weight = torch.exp(3 * advantage.detach()).clamp(max=100)
        std = torch.exp(self.policy.log_std.clamp(-20, 2))
        density = torch.distributions.Normal(self.policy(obs), std)
        policy_loss = (weight * -density.log_prob(action).sum(-1)).mean()
        log["actor_loss"] = self.step(self.policy_optimizer, policy_loss)
        self.schedule.step()
        return log

    def block(self, updates: int) -> float:
        for _ in range(5):
            self.update()
        begin = now(self.device)
        for _ in range(updates):
            self.update()
        return now(self.device) - begin


class Product:
    """The peak: a large matrix product, in float32 or bfloat16; an update is one."""

    size = 1024

    def __init__(self, dtype, device: str):
        self.device, self.size = device, 1024 if device == "cpu" else 8192
        self.x = torch.randn(self.size, self.size, device=device).to(dtype)
        self.y = torch.empty_like(self.x)

    def block(self, updates: int) -> float:
        for _ in range(2):
            torch.mm(self.x, self.x, out=self.y)
        begin = now(self.device)
        for _ in range(updates):
            torch.mm(self.x, self.x, out=self.y)
        return now(self.device) - begin


def gflop(job) -> float:
    """Floating-point operations of an update's matrix products, in 10^9."""
    with FlopCounterMode(display=False) as one:
        job.block(1)
    with FlopCounterMode(display=False) as two:
        job.block(2)
    return (two.get_total_flops() - one.get_total_flops()) / 1e9


# --- measuring ---
def take_turns(jobs: dict, rounds: int, seconds: float) -> dict[tuple, list[float]]:
    """Updates per second of each job in each round; a block lasts about `seconds`."""
    counts, rates = {}, {key: [] for key in jobs}
    for key, job in jobs.items():  # compiles, where it has to, and finds out how many fill a block
        begin = time.perf_counter()
        job.block(2)
        counts[key] = max(5, round(seconds * 5 / job.block(5)))
        name = " ".join(map(str, key))
        print(f"{name:<40} {time.perf_counter() - begin:6.1f} s to begin", flush=True)
    for number in range(rounds):
        for key, job in jobs.items():
            rates[key].append(counts[key] / job.block(counts[key]))
        print(f"round {number + 1} of {rounds}", flush=True)
    return rates


def measure(args: Args) -> list[dict]:
    """A row of `COLUMNS` for each job and mode."""
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    modes = args.modes or ["eager", *(["graph", "graph+bf16"] if args.device == "cuda" else ["bf16"])]
    peaks = {"float32": Product(torch.float32, args.device), "bfloat16": Product(torch.bfloat16, args.device)}
    timed = {(CORL, "eager"): CorlIQL(args.rows, args.device)}
    work = {(CORL, "eager"): gflop(timed[CORL, "eager"])}
    for job in args.jobs:
        plain = Script(job, "eager", args.rows, args.device)
        amount = gflop(plain)
        for mode in modes:
            timed[job, mode] = Script(job, mode, args.rows, args.device) if mode != "eager" else plain
            work[job, mode] = amount
    everything = {**{(name, ""): peak for name, peak in peaks.items()}, **timed}
    rates = take_turns(everything, args.rounds, args.seconds)
    rows = []
    for (job, mode), amount in work.items():
        rate = rates[job, mode]
        times = [ours / theirs for ours, theirs in zip(rate, rates[CORL, "eager"], strict=True)]
        name = "bfloat16" if "bf16" in mode else "float32"
        peak = [2 * peaks[name].size ** 3 / 1e9 * one for one in rates[name, ""]]  # GFLOP/s
        share = median(one * amount / most for one, most in zip(rate, peak, strict=True))
        device = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, threads: {args.threads}"
        numbers = (median(rate), min(rate), max(rate), median(times), min(times), max(times), amount, share)
        rounded = [float(f"{number:.4g}") for number in numbers]
        rows.append(dict(zip(COLUMNS, [job, mode, device, *rounded], strict=True)))
    for name, peak in peaks.items():
        rate = [2 * peak.size**3 / 1e9 * one for one in rates[name, ""]]
        print(f"peak, {name}: {median(rate):,.0f} GFLOP/s ({min(rate):,.0f} to {max(rate):,.0f})")
    return rows


def show(rows: list[dict]):
    print(f"{'':<26} {'mode':<16} {'updates/s':>10} {'(lowest to highest)':>22} {'x CORL':>7} {'of peak':>8}")
    for row in rows:
        spread = f"({row['lowest']:,.0f} to {row['highest']:,.0f})"
        numbers = f"{row['times_corl']:>7.2f} {row['share_of_peak']:>8.0%}"
        print(
            f"{row['job']:<26} {row['mode']:<16} {row['updates_per_second']:>10,.0f} {spread:>22} {numbers}"
        )


def draw(path: Path):
    """A bar per job and mode: how many times CORL's updates per second."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    jobs = list(dict.fromkeys(row["job"] for row in rows if row["job"] != CORL))
    modes = list(dict.fromkeys(row["mode"] for row in rows if row["job"] != CORL))
    colours = [BLUE, ORANGE, INK, GREY, "#009e73", "#cc79a7"]
    figure, axes = plt.subplots(figsize=(7, 0.35 + 0.17 * len(jobs) * (len(modes) + 0.8)))
    for (place, job), (shift, mode) in product(enumerate(jobs), enumerate(modes)):
        for row in rows:
            if (row["job"], row["mode"]) != (job, mode):
                continue
            times, low, high = (float(row[name]) for name in ("times_corl", "lowest_times", "highest_times"))
            y = place * (len(modes) + 0.8) + shift
            axes.barh(y, times, 0.85, color=colours[shift], label=mode if job == jobs[0] else None)
            axes.plot([low, high], [y, y], color=INK, lw=0.8)
            axes.text(max(high, times), y, f" {times:.2g}", va="center", fontsize=7, color=INK)
    axes.axvline(1, color=GREY, lw=0.8)
    axes.set_yticks([place * (len(modes) + 0.8) + (len(modes) - 1) / 2 for place in range(len(jobs))], jobs)
    axes.set_ylim(len(jobs) * (len(modes) + 0.8) - 0.5, -1)  # the first at the top
    axes.grid(axis="x", color=PALE)
    axes.set_xlabel(f"updates per second, in units of an IQL built as CORL's ({rows[0]['device']})")
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    save(figure, path.parent, path.stem)


def main(args: Args):
    if args.plot:
        if not Path(args.plot).is_file():
            stop(f"{args.plot}: there is no such file; give a CSV file that --out has written.")
        return draw(Path(args.plot))
    if unknown := [job for job in args.jobs if job not in JOBS]:
        stop(f"no job is called {unknown[0]!r}; there are: {', '.join(JOBS)}.")
    known = {"eager", "compiled", "bf16", "graph"}
    if unknown := [mode for mode in args.modes if not set(mode.split("+")) <= known]:
        stop(f"no mode is called {unknown[0]!r}; there are {', '.join(sorted(known))}, or two as graph+bf16.")
    if args.device == "cuda" and not torch.cuda.is_available():
        stop("--device cuda needs a GPU that PyTorch can use, and there is none; leave the flag out.")
    if args.device == "cpu" and any("graph" in mode for mode in args.modes):
        stop("the mode graph needs --device cuda; leave it out.")
    rows = measure(args)
    show(rows)
    if args.out:
        path = Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        draw(path)


if __name__ == "__main__":
    main(tyro.cli(Args))
