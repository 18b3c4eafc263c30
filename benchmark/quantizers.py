"""Ways to turn continuous actions into codes: reconstruction, use of the codes, how predictable they are.

    SAQ_STANDIN_DIR=path/to/files python benchmark/quantizers.py

A (dataset, form, number of codes, seed) that is in --out is skipped and every line is written when it is
ready, so a killed run continues. `--table` prints the measures and `--plot FOLDER` draws the pictures of
docs/notes/quantizers.md, both from the lines alone.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import BLUE, GREY, INK, PALE, append, load, plt, read_lines, save, stop, table  # noqa: E402

from vqvae import VQVAE, mlp  # noqa: E402

saq_bc, aquadem = load("saq_bc"), load("baselines/aquadem")


DATASETS = {  # task, and its file in $SAQ_STANDIN_DIR (none: bundled)
    "maze2d-large-demos": ("maze2d-large-demos-v0", ""),
    "door-human": ("door-human-v0", "door-human.hdf5"),
    "pen-expert": ("pen-expert-v0", "pen-expert.hdf5"),
    "lift-ph": ("robomimic/lift-ph", "robomimic/lift/ph/low_dim_v15.hdf5"),
    "hopper-medium-expert": ("hopper-medium-expert-v2", "hopper-medium-expert.hdf5"),
    "hopper-medium-replay": ("hopper-medium-replay-v2", "hopper-medium-replay.hdf5"),
    "halfcheetah-medium-expert": ("halfcheetah-medium-expert-v2", "halfcheetah-medium-expert.hdf5"),
}
PLAYED = ("maze2d-large-demos", "pen-expert", "hopper-medium-expert")  # by SAQ-BC on the codes
FORMS = ("VQ-VAE", "VQ-VAE, no state", "VQ-VAE, small", "Aquadem", "FSQ", "bins")
SIZES = (4, 8, 16, 32, 64, 128)  # numbers of codes
BINS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # per dimension
LEVELS = {4: (2, 2), 8: (4, 2), 16: (4, 4), 32: (8, 4), 64: (4, 4, 4), 128: (8, 4, 4)}  # of FSQ
CLASSIFIED = range(16, 33)  # the numbers of codes for which bins are given a classifier
PICTURED = {  # dataset: states, as (name, row of the data); two action dimensions; what they are
    "maze2d-large-demos": ([("A", 60), ("B", 150), ("C", 330)], (1, 0), ("force right", "force down")),
    "hopper-medium-expert": ([("D", 20_100), ("E", 60_400), ("F", 120_500)], (0, 2), ("thigh", "foot")),
}
BUDGET = ("hidden_dim", "updates", "classifier_updates", "episodes")  # equal in all lines of a file
Job = tuple[str, str, int, int]  # dataset, form, K (bins: per dimension), seed


@dataclass
class Args:
    out: str = "quantizers.jsonl"  # one line per finished job
    datasets: tuple[Literal[tuple(DATASETS)], ...] = tuple(DATASETS)  # which datasets
    forms: tuple[Literal[FORMS], ...] = FORMS  # which forms
    sizes: tuple[Literal[SIZES], ...] = (16, 64, 4, 128)  # K of every form but the bins
    seeds: tuple[int, ...] = (0,)  # of weights, batches, the held-out rows and the episodes
    hidden_dim: int = 256  # width of the two hidden layers of every network
    updates: int = 5_000  # gradient updates of a quantizer
    classifier_updates: int = 5_000  # gradient updates of p(code | state)
    episodes: int = 20  # played by SAQ-BC on the datasets that are played; 0: none
    table: bool = False  # print the tables of what is there, run nothing
    plot: str = ""  # draw the pictures of what is there into this folder, run nothing


# --- forms ---
class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), networks as the VQ-VAE's.

    The encoder's d outputs are bounded by tanh and rounded, the i-th to one of `levels[i]` values. All
    combinations are the codes: no codebook to learn, nothing but the reconstruction to minimise.
    """

    def __init__(self, obs_dim: int, action_dim: int, levels: tuple[int, ...], hidden_dim: int = 256):
        super().__init__()
        self.encoder = mlp(obs_dim + action_dim, hidden_dim, hidden_dim, len(levels))
        self.decoder = mlp(obs_dim + len(levels), hidden_dim, hidden_dim, action_dim)
        self.register_buffer("levels", torch.tensor(levels))  # (d,)
        self.register_buffer("radix", torch.tensor([prod(levels[:i]) for i in range(len(levels))]))  # (d,)

    def quantize(self, z: Tensor) -> Tensor:
        """The level of each entry, 0 to L - 1; the gradient skips the rounding: (B, d) -> (B, d)."""
        bounded = (self.levels - 1) * (z.tanh() + 1) / 2
        return bounded + (bounded.round() - bounded).detach()

    def _decode(self, obs: Tensor, level: Tensor) -> Tensor:
        return self.decoder(torch.cat([obs, 2 * level / (self.levels - 1) - 1], dim=1))  # over [-1, 1]

    @torch.no_grad()
    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The code of each action: (N, obs_dim), (N, action_dim) -> (N,) integers."""
        pairs = zip(obs.split(65_536), action.split(65_536), strict=True)
        levels = torch.cat([self.quantize(self.encoder(torch.cat(pair, dim=1))) for pair in pairs])
        return (levels.round().long() * self.radix).sum(1)

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The action that each code stands for in its state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self._decode(obs, code[:, None] // self.radix % self.levels)

    def loss(self, obs: Tensor, action: Tensor) -> Tensor:
        """Squared error summed over action dimensions, the mean over a batch."""
        level = self.quantize(self.encoder(torch.cat([obs, action], dim=1)))
        return (self._decode(obs, level) - action).pow(2).sum(1).mean()


class Bins(nn.Module):
    """Every action dimension cut into `count` equal bins over the data's range; no state, no training.

    There are count ** action_dim codes. Those that an action of `actions` (N, action_dim) falls into are
    numbered, all others cannot be encoded.
    """

    def __init__(self, actions: Tensor, count: int):
        super().__init__()
        self.count, self.low, self.high = count, actions.amin(0), actions.amax(0)
        self.occupied = torch.unique(self.bins(actions), dim=0)  # (codes in use, action_dim), sorted

    def bins(self, actions: Tensor) -> Tensor:
        """The bin in each dimension: (N, action_dim) -> (N, action_dim) integers from 0 to count - 1."""
        width = (self.high - self.low).clamp(min=1e-12) / self.count  # what never changes is in bin 0
        return ((actions - self.low) / width).long().clamp(0, self.count - 1)

    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The number of each action's combination of bins: (N, obs_dim), (N, action_dim) -> (N,)."""
        both = torch.cat([self.occupied, self.bins(action)])
        known, inverse = torch.unique(both, dim=0, return_inverse=True)
        if len(known) != len(self.occupied):
            raise ValueError("an action is in a combination of bins that no action had at the start")
        return inverse[len(self.occupied) :]

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The middle of the code's bins, in every state the same: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self.low + (self.occupied[code] + 0.5) * (self.high - self.low) / self.count


class Candidates(aquadem.Quantizer):
    """Aquadem's candidate actions with a VQ-VAE's interface."""

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The candidate of each state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self(obs)[torch.arange(len(code)), code]


def make(form: str, size: int, seed: int, width: int, data) -> tuple[nn.Module, Callable | None, int]:
    """A quantizer, its loss of a batch (None: it is not trained), and its number of codes.

    `width` is that of the hidden layers. Aquadem's K heads have a quarter of it: heads of full width would
    cost as much as K encoders.
    """
    obs_dim, action_dim = data.obs.shape[1], data.action.shape[1]
    if form == "bins":
        return Bins(data.action, size), None, size**action_dim
    if form == "Aquadem":
        args = aquadem.Args(seed=seed, num_candidates=size, hidden_dim=width // 4)
        quantizer = Candidates(args, obs_dim, action_dim)
        return quantizer, lambda batch: aquadem.quantizer_loss(args, quantizer, batch)[0], size
    if form == "FSQ":
        quantizer = FSQ(obs_dim, action_dim, LEVELS[size], width)
        return quantizer, lambda batch: quantizer.loss(batch.obs, batch.action), size
    width = width // 4 if form == "VQ-VAE, small" else width
    quantizer = VQVAE(obs_dim, action_dim, size, 16, width, condition_on_obs=form != "VQ-VAE, no state")

    def loss(batch) -> Tensor:
        loss, _, *chosen = quantizer.loss(batch.obs, batch.action)
        quantizer.chosen = chosen  # `fit` moves the codebook to these after its step
        return loss

    return quantizer, loss, size


# --- training and measuring ---
def load_data(dataset: str, seed: int):
    """saq_bc.py's arguments for the dataset, transitions, spaces, and the rows held out and not."""
    env_id, file = DATASETS[dataset]
    flags = ["--env-id", env_id, "--device", "cpu", "--seed", str(seed), "--acting", "sample"]  # as the paper
    if file:
        flags += ["--dataset-path", str(Path(os.environ["SAQ_STANDIN_DIR"], file))]
    args = saq_bc.parse_args(flags)
    data, spaces = saq_bc.load_data(args)
    order = torch.randperm(len(data.obs), generator=torch.Generator().manual_seed(seed))
    return args, data, spaces, *order.tensor_split([len(order) // 20 + 1])  # as the scripts: 5 % and 95 %


def fit(args, updates: int, model: nn.Module, data, rows: Tensor, loss: Callable) -> Iterator[int]:
    """Train as the scripts do, with their batches for this seed; yields the update's number ten times."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=args.lr, fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    for update in range(1, updates + 1):
        torch.manual_seed(args.seed * 10**6 + update)  # of Aquadem's dropout
        index = rows[torch.randint(len(rows), (args.batch_size,), generator=generator)]
        optimizer.zero_grad()
        loss(type(data)(*(array[index] for array in data))).backward()
        optimizer.step()
        if isinstance(model, VQVAE):
            model.move_codebook(*model.chosen)
        if update % max(1, updates // 10) == 0 or update == updates:
            yield update


@torch.no_grad()
def squared_error(quantizer: nn.Module, data, rows: Tensor) -> Tensor:
    """Mean squared error of the reconstruction per action dimension: (rows,) -> (action_dim,)"""
    obs, action = data.obs[rows], data.action[rows]
    return (quantizer.decode(obs, quantizer.encode(obs, action)) - action).pow(2).mean(0)


def classifier_loss(args, learner: nn.Module, batch) -> Tensor:
    return saq_bc.learner_loss(args, learner, batch)[0]


@torch.no_grad()
def predict(args, learner: nn.Module, data, rows: Tensor) -> dict[str, float]:
    """How well the classifier predicts the codes of the rows: share of hits, mean log p(code | state)."""
    log_policy, code = saq_bc.log_policy(args, learner, data.obs[rows]), data.code[rows]
    hits = (log_policy.argmax(1) == code).float().mean()
    return {"accuracy": hits.item(), "log_p_code": log_policy.gather(1, code[:, None]).mean().item()}


@torch.no_grad()
def decoded(dataset: str, args, quantizer: nn.Module, learner: nn.Module, data) -> list[dict]:
    """What all codes stand for in a few states, how likely each is, and actions of the nearest 60 rows."""
    states, (x, y), _ = PICTURED[dataset]
    pictures, every_code = [], torch.arange(args.codebook_size)
    for name, row in states:
        obs = data.obs[row].expand(len(every_code), -1)
        near = (data.obs - obs[0]).norm(dim=1).argsort()[:60]
        arrays = {"actions": quantizer.decode(obs, every_code)[:, [x, y]]}
        arrays["near"] = data.action[near][:, [x, y]]
        arrays["probability"] = saq_bc.log_policy(args, learner, obs[:1]).exp()[0]
        arrays = {key: np.round(value.numpy(), 4).tolist() for key, value in arrays.items()}
        pictures.append({"state": name} | arrays)
    return pictures


def run(options: Args, job: Job) -> dict:
    """Train what there is to train on one dataset and measure it: the line of the results."""
    dataset, form, size, seed = job
    start = time.process_time()  # the CPU's: other programs may hold the core in between
    torch.set_num_threads(1)
    args, data, spaces, heldout, train = load_data(dataset, seed)
    torch.manual_seed(seed)
    quantizer, loss, codes = make(form, size, seed, options.hidden_dim, data)
    line = {"study": "quantizers", "dataset": dataset, "form": form, "size": size, "seed": seed}
    line |= {"codes": codes, "rows": len(data.action)} | {name: getattr(options, name) for name in BUDGET}
    if loss:
        steps = fit(args, options.updates, quantizer, data, train, loss)
        line["curve"] = {step: squared_error(quantizer, data, heldout).sum().item() for step in steps}
    quantizer.eval()

    variance = data.action.var(0)
    varies = variance > 1e-8  # an entry that never changes has no error to normalise
    line["variance"] = variance.sum().item()
    errors = {"heldout": squared_error(quantizer, data, heldout)}
    errors["train"] = squared_error(quantizer, data, train[:10_000])
    for name, error in errors.items():
        line[f"{name}_error"] = error.sum().item()
        line[f"{name}_normalised"] = (error / variance)[varies].mean().item()
    data = data._replace(code=quantizer.encode(data.obs, data.action))
    share = torch.bincount(data.code) / len(data.code)
    line["codes_used"] = (share > 0).sum().item()
    line["perplexity"] = torch.special.entr(share).sum().exp().item()

    if form != "bins" or codes in CLASSIFIED:
        size = len(quantizer.occupied) if form == "bins" else codes
        args = replace(args, hidden_dim=options.hidden_dim, codebook_size=size)
        learner = saq_bc.Learner(args, data.obs.shape[1])
        loss = partial(classifier_loss, args, learner)
        # On little data the classifier is soon too sure: what counts is the best of its ten measurements.
        steps = fit(args, options.classifier_updates, learner, data, train, loss)
        measured = [predict(args, learner, data, heldout) for _ in steps]
        line |= max(measured, key=lambda numbers: numbers["log_p_code"])
        # log p(a|s) >= log p(k|s) + log N(a; d(s, e_k), diag(sigma^2)), sigma^2 from the training rows.
        sigma2, mse = errors["train"][varies].clamp(min=1e-8), errors["heldout"][varies]
        gaussian = -0.5 * (mse / sigma2 + (2 * torch.pi * sigma2).log()).sum().item()
        line["log_p_action"] = line["log_p_code"] + gaussian
        if dataset in PLAYED and options.episodes:
            args = replace(args, eval_episodes=options.episodes)
            act = saq_bc.make_act(args, quantizer, learner, spaces)
            line["score"] = saq_bc.evaluate(args, act)["eval/score"]
        if dataset in PICTURED and seed == 0 and (job[2] == 16 or form == "bins"):
            line["picture"] = decoded(dataset, args, quantizer, learner, data)
    return line | {"seconds": round(time.process_time() - start, 1)}


def jobs(options: Args) -> list[Job]:
    """What is to be done, the widest comparison first: all datasets with one form and K before the next."""
    todo = []
    for seed, form in product(options.seeds, options.forms):
        sizes = BINS if form == "bins" else options.sizes
        todo += [(dataset, form, size, seed) for size in sizes for dataset in options.datasets]
    return todo


# --- tables and pictures ---
MEASURES = {  # in the table: in a line
    "error": "heldout_normalised",
    "training error": "train_normalised",
    "squared error": "heldout_error",
    "codes used": "codes_used",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "log p(code)": "log_p_code",
    "log p(action) ≥": "log_p_action",
    "score": "score",
    "seconds": "seconds",
}


def mean(lines: list[dict], measure: str) -> float:
    """The mean of a measure over the lines (seeds) that have it; NaN where none does."""
    values = [line[measure] for line in lines if measure in line]
    return float(np.mean(values)) if values else float("nan")


def grouped(lines: list[dict]) -> dict[tuple[str, str, int], list[dict]]:
    """The lines of all seeds by (dataset, form, size), in this file's order, sizes ascending."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["dataset"], line["form"], line["size"]].append(line)
    order = [*DATASETS, *FORMS]
    return {key: groups[key] for key in sorted(groups, key=lambda k: (*map(order.index, k[:2]), k[2]))}


def measures_table(lines: list[dict]) -> str:
    """A row per dataset, form and number of codes: means over seeds."""
    rows = []
    for (dataset, form, _), group in grouped(lines).items():
        cells = [f"{mean(group, measure):.3g}".replace("nan", "") for measure in MEASURES.values()]
        rows.append([dataset, form, f"{group[0]['codes']:.3g}", *cells])
    return table(["data", "form", "codes", *MEASURES], rows)


STYLE = {  # form: colour, marker
    "VQ-VAE": ("#0a6e31", "o"),
    "VQ-VAE, no state": ("#b35900", "s"),
    "VQ-VAE, small": ("#6fbf8b", "o"),
    "Aquadem": ("#7a3e9d", "^"),
    "FSQ": (BLUE, "D"),
    "bins": (INK, "v"),
}


def draw_codes(lines: list[dict], dataset: str):
    """What the codes stand for: a row per state, a column per form. None without lines to draw."""
    drawn = {line["form"]: line for line in lines if line["dataset"] == dataset and "picture" in line}
    columns = [drawn[form] for form in FORMS if form in drawn and form != "VQ-VAE, small"]
    if not columns:
        return None
    states, _, (across, upwards) = PICTURED[dataset]
    look = dict(figsize=(1.75 * len(columns) + 0.5, 1.75 * len(states) + 0.75), squeeze=False)
    figure, axes = plt.subplots(len(states), len(columns), sharex=True, sharey=True, **look)
    for column, line in zip(axes.T, columns, strict=True):
        column[0].set_title(f"{line['form']}\n{line['codes']} codes", size=9.5, color=INK)
        column[-1].set_xlabel(across, size=8.5, color=INK)
        for panel, picture in zip(column, line["picture"], strict=True):
            panel.add_patch(plt.Rectangle((-1, -1), 2, 2, fc="none", ec=GREY, lw=0.7, ls=(0, (3, 3))))
            panel.plot(*np.array(picture["near"]).T, ".", color="#98a3ae", ms=3.2, mew=0, zorder=1)
            look = dict(s=6 + 240 * np.array(picture["probability"]), color=STYLE[line["form"]][0])
            panel.scatter(*np.array(picture["actions"]).T, **look, alpha=0.75, ec="white", lw=0.6, zorder=2)
            ticks = dict(xticks=[-1, 0, 1], yticks=[-1, 0, 1], aspect="equal")
            panel.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), **ticks)
            panel.tick_params(labelsize=7, length=0, colors=GREY)
            panel.spines[:].set_visible(False)
    for panel, (name, _) in zip(axes[:, 0], states, strict=True):
        panel.set_ylabel(f"state {name}\n{upwards}", size=8.5, color=INK)
    if upwards.endswith("down"):
        axes[0, 0].invert_yaxis()  # that of all panels
    figure.tight_layout(pad=0.4, w_pad=0.3, h_pad=0.4)
    return figure


def draw_errors(lines: list[dict]):
    """Held-out error over the number of codes, logarithmic, a panel per dataset."""
    groups = grouped(lines)
    datasets = list(dict.fromkeys(key[0] for key in groups))
    rows = -(-(len(datasets) + 1) // 4)  # one panel is the legend's
    figure, axes = plt.subplots(rows, 4, figsize=(10.2, 2.75 * rows), sharex=True, sharey=True, squeeze=False)
    handles = {}
    for panel, dataset in zip(axes.flat, datasets, strict=False):
        for form, (colour, marker) in STYLE.items():
            found = [group for key, group in groups.items() if key[:2] == (dataset, form)]
            look = dict(marker=marker, color=colour, ms=4.5, lw=1.1)
            error = [mean(group, "heldout_normalised") for group in found]
            codes = [min(float(group[0]["codes"]), 1e30) for group in found]  # more do not fit the axis
            if form == "bins":
                used = [mean(group, "codes_used") for group in found]
                label = "bins, occupied codes"
                handles[label] = panel.plot(used, error, **look | dict(ls=":", mfc="white"), label=label)[0]
            if found:
                label = "bins, all codes" if form == "bins" else form
                handles[label] = panel.plot(codes, error, **look, label=label)[0]
        panel.set_title(dataset, size=9, color=INK)
        panel.set_xlabel("codes", size=8.5, color=INK)
        panel.grid(color=PALE, lw=0.6)
        panel.tick_params(labelsize=7.5, colors=INK, length=2, labelbottom=True)
    panel = axes[0, 0]  # its scales are those of all panels
    panel.set(xscale="log", yscale="log", xlim=(3, 1.5e5), ylim=(3e-3, 1))
    panel.set_xticks([4, 16, 64, 256, 1024, 4096, 16384, 65536])
    panel.set_yticks([d * 10.0**e for e in (-2, -1) for d in (1, 2, 5)] + [0.005, 1])
    short = FuncFormatter(lambda value, _: f"{value:.0f}" if value < 1000 else f"{value / 1024:.0f}k")
    panel.xaxis.set_major_formatter(short)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    for panel in list(axes.flat)[len(datasets) :]:
        panel.axis("off")
    axes.flat[len(datasets)].legend(handles=handles.values(), loc="center", fontsize=9, frameon=False)
    for panel in axes[:, 0]:
        panel.set_ylabel("held-out error, share of variance", size=8.5, color=INK)
    figure.tight_layout(pad=0.5, w_pad=0.8)
    return figure


def draw(lines: list[dict], folder: str):
    """The pictures of docs/notes/quantizers.md."""
    figures = {"quantizers": draw_errors(lines)}
    for dataset in PICTURED:
        figures[f"quantizers_{dataset.split('-')[0].removesuffix('2d')}"] = draw_codes(lines, dataset)
    for name, figure in figures.items():
        if figure:
            save(figure, folder, name, dpi=170)


# --- command line ---
def work(options: Args, lines: list[dict]):
    """Run every job that has no line yet, and append its line. Lines of different budgets do not compare."""
    for line, name in product(lines, BUDGET):
        if line[name] != getattr(options, name):
            flag = f"--{name.replace('_', '-')} {line[name]}"
            stop(f"the lines in {options.out} have {flag}; give {flag}, or another --out.")
    done = {(line["dataset"], line["form"], line["size"], line["seed"]) for line in lines}
    for job in (job for job in jobs(options) if job not in done):
        line = run(options, job)
        append(options.out, line)
        print(*job, f"{line['heldout_error']:.4f}", line.get("score", ""), flush=True)


def main(argv: list[str] | None = None):
    options = tyro.cli(Args, args=argv)
    lines = read_lines(options.out, "quantizers")
    if options.table or options.plot:
        if not lines:
            stop(f"{options.out} has no results to show; run without --table and --plot, or change --out.")
        if options.table:
            print(measures_table(lines), end="")
        if options.plot:
            draw(lines, options.plot)
        return
    if "SAQ_STANDIN_DIR" not in os.environ and any(DATASETS[name][1] for name in options.datasets):
        stop("set SAQ_STANDIN_DIR to the folder of the stand-ins (docs/data.md), or name other --datasets.")
    work(options, lines)


if __name__ == "__main__":
    main()
