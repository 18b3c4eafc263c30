"""Compare ways to turn continuous actions into codes: reconstruction, use of the codes, how predictable they are.

    SAQ_STANDIN_DIR=path/to/files python benchmark/quantizers.py

One process, one thread. A (dataset, form, number of codes, seed) that is in --out is skipped and every line is written
when it is ready, so a killed run continues. `--table` prints the tables of docs/quantizers.md and `--plot FOLDER` draws
its pictures, both from the lines alone.
"""

import json
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

import numpy as np
import torch
import tyro
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "baselines")]  # the scripts are not a package
import aquadem  # noqa: E402

import saq_bc  # noqa: E402
from vqvae import VQVAE, mlp  # noqa: E402


@dataclass
class Dataset:
    """A task, its file in $SAQ_STANDIN_DIR (none: bundled), and whether SAQ-BC is played on the codes."""

    env_id: str
    file: str = ""
    breadth: str = "narrow"  # narrow: one way of acting; broad: several policies of different quality
    played: bool = False


DATASETS = {
    "maze2d-large-demos": Dataset("maze2d-large-demos-v0", played=True),
    "door-human": Dataset("door-human-v0", "door-human.hdf5"),
    "pen-expert": Dataset("pen-expert-v0", "pen-expert.hdf5", played=True),
    "lift-ph": Dataset("robomimic/lift-ph", "robomimic/lift/ph/low_dim_v15.hdf5"),
    "hopper-medium-expert": Dataset("hopper-medium-expert-v2", "hopper-medium-expert.hdf5", "broad", played=True),
    "hopper-medium-replay": Dataset("hopper-medium-replay-v2", "hopper-medium-replay.hdf5", "broad"),
    "halfcheetah-medium-expert": Dataset("halfcheetah-medium-expert-v2", "halfcheetah-medium-expert.hdf5", "broad"),
}
FORMS = ("VQ-VAE", "VQ-VAE, no state", "VQ-VAE, small", "Aquadem", "FSQ", "bins")
SIZES = (4, 8, 16, 32, 64, 128)  # numbers of codes
BINS = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # per dimension
LEVELS = {4: (2, 2), 8: (4, 2), 16: (4, 4), 32: (8, 4), 64: (4, 4, 4), 128: (8, 4, 4)}  # of FSQ, per dimension
CLASSIFIED = range(16, 33)  # the numbers of codes for which bins are given a classifier
PICTURED = {  # dataset: states in the first picture, as (name, row of the dataset); the two action dimensions it shows
    "maze2d-large-demos": ([("A", 60), ("B", 150), ("C", 330)], (1, 0), ("force to the right", "force downwards")),
    "hopper-medium-expert": ([("D", 20_100), ("E", 60_400), ("F", 120_500)], (0, 2), ("thigh", "foot")),
}
BUDGET = ("hidden_dim", "updates", "classifier_updates", "episodes")  # what all lines of a file have in common
Job = tuple[str, str, int, int]  # dataset, form, K (bins: per dimension), seed


@dataclass
class Args:
    out: str = "quantizers.jsonl"  # one line per finished job
    datasets: tuple[str, ...] = tuple(DATASETS)  # which datasets
    forms: tuple[str, ...] = FORMS  # which forms
    sizes: tuple[int, ...] = (16, 64, 4, 128)  # K of every form but the bins
    seeds: tuple[int, ...] = (0,)  # of weights, batches, the held-out rows and the episodes
    hidden_dim: int = 256  # width of the two hidden layers of every network
    updates: int = 5_000  # gradient updates of a quantizer
    classifier_updates: int = 5_000  # gradient updates of p(code | state)
    episodes: int = 20  # played by SAQ-BC on the datasets that are played; 0: none
    table: bool = False  # print the tables of what is there, run nothing
    plot: str = ""  # draw the pictures of what is there into this folder, run nothing


# --- forms ---
class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505), encoder and decoder as the VQ-VAE's.

    The encoder's d outputs are bounded by tanh and rounded, the i-th to one of `levels[i]` values. All combinations are
    the codes: there is no codebook to learn, and nothing but the reconstruction to minimise.
    """

    def __init__(self, obs_dim: int, action_dim: int, levels: tuple[int, ...], hidden_dim: int = 256):
        super().__init__()
        self.encoder = mlp(obs_dim + action_dim, hidden_dim, hidden_dim, len(levels))
        self.decoder = mlp(obs_dim + len(levels), hidden_dim, hidden_dim, action_dim)
        self.register_buffer("levels", torch.tensor(levels))  # (d,)
        self.register_buffer("radix", torch.tensor([prod(levels[:i]) for i in range(len(levels))]))  # (d,)

    def quantize(self, z: Tensor) -> Tensor:
        """The level of each entry, 0 to L - 1, with the gradient of the value before rounding: (B, d) -> (B, d)."""
        bounded = (self.levels - 1) * (z.tanh() + 1) / 2
        return bounded + (bounded.round() - bounded).detach()

    def _decode(self, obs: Tensor, level: Tensor) -> Tensor:
        return self.decoder(torch.cat([obs, 2 * level / (self.levels - 1) - 1], dim=1))  # levels spread over [-1, 1]

    @torch.no_grad()
    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The code of each action: (N, obs_dim), (N, action_dim) -> (N,) integers."""
        pairs = zip(obs.split(65_536), action.split(65_536), strict=True)
        levels = torch.cat([self.quantize(self.encoder(torch.cat(pair, dim=1))) for pair in pairs])
        return (levels.round().long() * self.radix).sum(1)

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The action that each code stands for in its state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self._decode(obs, code[:, None] // self.radix % self.levels)

    def loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error summed over action dimensions, the mean over a batch -> (scalar, it by name)."""
        level = self.quantize(self.encoder(torch.cat([obs, action], dim=1)))
        error = (self._decode(obs, level) - action).pow(2).sum(1).mean()
        return error, {"fsq/reconstruction": error}


class Bins(nn.Module):
    """Every action dimension cut into `count` equal bins over the range of the actions given; no state, no training.

    There are count ** action_dim codes. Those that an action of `actions` (N, action_dim) falls into are numbered, all
    others cannot be encoded.
    """

    def __init__(self, actions: Tensor, count: int):
        super().__init__()
        self.count, self.low, self.high = count, actions.amin(0), actions.amax(0)
        self.occupied = torch.unique(self.bins(actions), dim=0)  # (codes in use, action_dim), in lexical order

    def bins(self, actions: Tensor) -> Tensor:
        """The bin in each dimension: (N, action_dim) -> (N, action_dim) integers from 0 to count - 1."""
        width = (self.high - self.low).clamp(min=1e-12) / self.count  # an entry that never changes is in bin 0
        return ((actions - self.low) / width).long().clamp(0, self.count - 1)

    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """The number of each action's combination of bins: (N, obs_dim), (N, action_dim) -> (N,)."""
        both, inverse = torch.unique(torch.cat([self.occupied, self.bins(action)]), dim=0, return_inverse=True)
        if len(both) != len(self.occupied):
            raise ValueError("an action is in a combination of bins that the actions given at the start never had")
        return inverse[len(self.occupied) :]

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The middle of the code's bins, in every state the same: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self.low + (self.occupied[code] + 0.5) * (self.high - self.low) / self.count


class Candidates(aquadem.Quantizer):
    """Aquadem's candidate actions with a VQ-VAE's interface."""

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The candidate of each state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self(obs)[torch.arange(len(code)), code]


def make(
    form: str, size: int, seed: int, width: int, data: dict[str, Tensor]
) -> tuple[nn.Module, Callable | None, int]:
    """A quantizer, its loss of the rows at an index (None: it is not trained), and its number of codes.

    `width` is that of the hidden layers. Aquadem's K heads have a quarter of it: sixteen of them weigh as much as one
    layer of the others, where heads of full width would weigh, and cost, as much as K encoders.
    """
    obs_dim, action_dim = data["observations"].shape[1], data["actions"].shape[1]
    if form == "bins":
        return Bins(data["actions"], size), None, size**action_dim
    if form == "Aquadem":
        args = aquadem.Args(seed=seed, num_candidates=size, hidden_dim=width // 4)
        quantizer = Candidates(args, obs_dim, action_dim)
        return quantizer, partial(aquadem.quantizer_loss, args, quantizer, data), size
    if form == "FSQ":
        quantizer = FSQ(obs_dim, action_dim, LEVELS[size], width)
    else:
        width = width // 4 if form == "VQ-VAE, small" else width
        quantizer = VQVAE(obs_dim, action_dim, size, 16, width, condition_on_obs=form != "VQ-VAE, no state")
    return quantizer, partial(saq_bc.quantizer_loss, quantizer, data), size


# --- training and measuring ---
def load(dataset: str, seed: int) -> tuple[saq_bc.Args, dict[str, Tensor]]:
    """The arguments of saq_bc.py for the dataset, and its transitions."""
    flags, file = ["--env-id", DATASETS[dataset].env_id, "--device", "cpu", "--seed", str(seed)], DATASETS[dataset].file
    if file:
        flags += ["--dataset-path", str(Path(os.environ["SAQ_STANDIN_DIR"], file))]
    args = replace(saq_bc.parse_args(flags), acting="sample")  # as the paper; the domains differ in their default
    return args, saq_bc.load_data(args)


def fit(args: saq_bc.Args, updates: int, model: nn.Module, rows: Tensor, loss: Callable) -> Iterator[int]:
    """Train as the scripts do, with their batches for this seed; yields the update's number ten times on the way."""
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=args.lr, fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    for update in range(1, updates + 1):
        value, _ = loss(rows[torch.randint(len(rows), (args.batch_size,), generator=generator)])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if update % max(1, updates // 10) == 0 or update == updates:
            yield update


@torch.no_grad()
def squared_error(quantizer: nn.Module, data: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Mean squared error of the reconstruction per action dimension: (rows,) -> (action_dim,)"""
    obs, action = data["observations"][rows], data["actions"][rows]
    return (quantizer.decode(obs, quantizer.encode(obs, action)) - action).pow(2).mean(0)


@torch.no_grad()
def predict(args: saq_bc.Args, learner: nn.ModuleDict, data: dict[str, Tensor]) -> dict[str, float]:
    """How well the classifier predicts the codes of the held-out rows: share of hits, mean log p(code | state)."""
    rows = data["heldout"]
    log_policy, code = saq_bc.policy(args, learner, data["observations"][rows]), data["codes"][rows]
    hits = (log_policy.argmax(1) == code).float().mean()
    return {"accuracy": hits.item(), "log_p_code": log_policy.gather(1, code[:, None]).mean().item()}


@torch.no_grad()
def decoded(dataset: str, args: saq_bc.Args, quantizer: nn.Module, learner: nn.ModuleDict, data: dict) -> list[dict]:
    """What all codes stand for in a few states, how likely each is there, and the actions of the nearest 60 rows."""
    states, (x, y), _ = PICTURED[dataset]
    pictures, every_code = [], torch.arange(args.codebook_size)
    for name, row in states:
        obs = data["observations"][row].expand(len(every_code), -1)
        near = (data["observations"] - obs[0]).norm(dim=1).argsort()[:60]
        arrays = {"actions": quantizer.decode(obs, every_code)[:, [x, y]], "near": data["actions"][near][:, [x, y]]}
        arrays["probability"] = saq_bc.policy(args, learner, obs[:1]).exp()[0]
        pictures.append({"state": name} | {key: np.round(value.numpy(), 4).tolist() for key, value in arrays.items()})
    return pictures


def run(options: Args, job: Job) -> dict:
    """Train what there is to train on one dataset and measure it: the line of the results."""
    dataset, form, size, seed = job
    start = time.process_time()  # the CPU's: other programs may hold the core in between
    torch.set_num_threads(1)
    args, data = load(dataset, seed)
    torch.manual_seed(seed)
    quantizer, loss, codes = make(form, size, seed, options.hidden_dim, data)
    line = {"dataset": dataset, "form": form, "size": size, "seed": seed, "codes": codes, "rows": len(data["actions"])}
    train, heldout = data["train"], data["heldout"]
    line |= {name: getattr(options, name) for name in BUDGET}
    if loss:
        steps = fit(args, options.updates, quantizer, train, loss)
        line["curve"] = {step: squared_error(quantizer, data, heldout).sum().item() for step in steps}
    quantizer.eval()

    variance = data["actions"].var(0)
    varies = variance > 1e-8  # an entry that never changes has no error to normalise
    line["variance"] = variance.sum().item()
    errors = {
        "heldout": squared_error(quantizer, data, heldout),
        "train": squared_error(quantizer, data, train[:10_000]),
    }
    for name, error in errors.items():
        line[f"{name}_error"] = error.sum().item()
        line[f"{name}_normalised"] = (error / variance)[varies].mean().item()
    data["codes"] = quantizer.encode(data["observations"], data["actions"])
    share = torch.bincount(data["codes"]) / len(data["codes"])
    line |= {"codes_used": (share > 0).sum().item(), "perplexity": torch.special.entr(share).sum().exp().item()}

    if form != "bins" or codes in CLASSIFIED:
        args.hidden_dim = options.hidden_dim
        args.codebook_size = len(quantizer.occupied) if form == "bins" else codes
        learner = saq_bc.make_learner(args, data["observations"].shape[1])
        steps = fit(args, options.classifier_updates, learner, train, partial(saq_bc.learner_loss, args, learner, data))
        # On little data the classifier is soon too sure: what counts is the best of its ten measurements.
        line |= max((predict(args, learner, data) for _ in steps), key=lambda numbers: numbers["log_p_code"])
        # log p(a|s) >= log p(k|s) + log N(a; d(s, e_k), diag(sigma^2)), sigma^2 from the training rows.
        sigma2, mse = errors["train"][varies].clamp(min=1e-8), errors["heldout"][varies]
        gaussian = -0.5 * (mse / sigma2 + (2 * torch.pi * sigma2).log()).sum().item()
        line["log_p_action"] = line["log_p_code"] + gaussian
        if DATASETS[dataset].played and options.episodes:
            args.eval_episodes = options.episodes
            line["score"] = saq_bc.evaluate(args, quantizer, learner, data)["eval/score"]
        if dataset in PICTURED and seed == 0 and (size == 16 or form == "bins"):
            line["picture"] = decoded(dataset, args, quantizer, learner, data)
    return line | {"seconds": round(time.process_time() - start, 1)}


def jobs(options: Args) -> list[Job]:
    """What is to be done, the widest comparison first: all datasets with one form and K before the next."""
    todo = []
    for seed in options.seeds:
        for size in options.sizes:
            trained = [form for form in options.forms if form != "bins"]
            todo += [(dataset, form, size, seed) for form in trained for dataset in options.datasets]
        if "bins" in options.forms:
            todo += [(dataset, "bins", count, seed) for dataset in options.datasets for count in BINS]
    return todo


# --- tables ---
def mean(lines: list[dict], measure: str) -> float:
    """The mean of a measure over the lines (seeds) that have it; NaN where none does."""
    values = [line[measure] for line in lines if measure in line]
    return float(np.mean(values)) if values else float("nan")


def grouped(lines: list[dict]) -> dict[tuple[str, str, int], list[dict]]:
    """The lines of all seeds by (dataset, form, size), datasets and forms in this file's order, sizes ascending."""
    groups = defaultdict(list)
    for line in lines:
        groups[line["dataset"], line["form"], line["size"]].append(line)
    order = [*DATASETS, *FORMS]
    return dict(sorted(groups.items(), key=lambda item: (order.index(item[0][0]), order.index(item[0][1]), item[0][2])))


def markdown(title: str, header: list[str], rows: list[list]) -> str:
    """A Markdown table; floats with three significant digits, NaN as an empty cell."""

    def cell(value) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.1e}"
        return (
            f"{value:,}"
            if isinstance(value, int) and value < 10**6
            else f"{value:.1e}"
            if isinstance(value, int)
            else value
        )

    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def forms_table(lines: list[dict], title: str, measure: str) -> str:
    """A measure of every form with 16 codes; of the bins with as few codes above that as CLASSIFIED allows."""
    groups, rows = grouped(lines), []
    for dataset in dict.fromkeys(key[0] for key in groups):
        row = [dataset]
        for form in FORMS:
            wanted = CLASSIFIED if form == "bins" else [16]
            found = [g for (d, f, _), g in groups.items() if (d, f) == (dataset, form) and g[0]["codes"] in wanted]
            row.append(mean(found[0], measure) if found else float("nan"))
        rows.append(row)
    return markdown(title, ["data", *FORMS], rows)


def sizes_table(lines: list[dict]) -> str:
    """The VQ-VAE by number of codes."""
    measures = ["heldout_error", "heldout_normalised", "train_normalised", "codes_used", "perplexity", "accuracy"]
    measures += ["log_p_code", "log_p_action", "score"]
    header = [
        "data",
        "K",
        "seeds",
        "held-out error",
        "of variance",
        "training, of variance",
        "codes used",
        "perplexity",
    ]
    header += ["accuracy", "log p(k\\|s)", "log p(a\\|s) ≥", "SAQ-BC"]
    groups = {key: group for key, group in grouped(lines).items() if key[1] == "VQ-VAE"}
    rows = [[d, k, len(group), *(mean(group, name) for name in measures)] for (d, _, k), group in groups.items()]
    return markdown("The VQ-VAE by number of codes", header, rows)


def bins_table(lines: list[dict], size: int = 16) -> str:
    """The fewest bins per dimension whose held-out error is not above that of the VQ-VAE with `size` codes."""
    groups, rows = grouped(lines), []
    for (dataset, form, k), group in groups.items():
        if (form, k) != ("VQ-VAE", size):
            continue
        target = mean(group, "heldout_error")
        bins = [g for (d, f, _), g in groups.items() if (d, f) == (dataset, "bins")]
        enough = next((g for g in bins if mean(g, "heldout_error") <= target), None)
        if enough:
            line = enough[0]
            row = [line["size"], line["codes"], int(line["codes_used"]), line["rows"], mean(enough, "heldout_error")]
            rows.append([dataset, target, *row])
    header = ["data", f"error, {size} codes of the VQ-VAE", "bins per dimension", "codes", "of them occupied"]
    return markdown("Bins that reconstruct as well", [*header, "rows of data", "error of the bins"], rows)


# --- rules for the number of codes ---
def near_floor(curve: dict[int, dict], slack: float = 1.1) -> int:
    """The fewest codes whose held-out error is within 10 % of the lowest."""
    floor = min(point["heldout_error"] for point in curve.values())
    return min(size for size, point in curve.items() if point["heldout_error"] <= slack * floor)


def elbow(curve: dict[int, dict]) -> int:
    """The number of codes farthest below the straight line between the ends of log error over log K, or the first."""
    x, y = np.log([*curve]), np.log([point["heldout_error"] for point in curve.values()])
    chord = y[0] + (x - x[0]) / (x[-1] - x[0]) * (y[-1] - y[0])
    return [*curve][int(np.argmax(chord - y))]


def likeliest(curve: dict[int, dict]) -> int:
    """The number of codes under which the held-out actions are likeliest: code and Gaussian reconstruction together."""
    return max(curve, key=lambda size: curve[size]["log_p_action"])


RULES = {"within 10 % of the lowest error": near_floor, "elbow": elbow, "likeliest actions": likeliest}


def rules_table(lines: list[dict]) -> str:
    """What each rule chooses among the numbers of codes tried, and the score there, beside the best score."""
    curves = defaultdict(dict)
    for (dataset, form, size), group in grouped(lines).items():
        if form == "VQ-VAE":
            measures = ("heldout_error", "log_p_action", "score")
            curves[dataset][size] = {name: mean(group, name) for name in measures}
    rows = []
    for dataset, curve in curves.items():
        if len(curve) > 2:
            scores = {size: point["score"] for size, point in curve.items() if not np.isnan(point["score"])}
            told = {size: f"{size} ({scores[size]:.1f})" if size in scores else str(size) for size in curve}
            row = [dataset, ", ".join(map(str, curve)), *(told[rule(curve)] for rule in RULES.values())]
            rows.append([*row, told[max(scores, key=scores.get)] if scores else ""])
    return markdown("K that a rule chooses (SAQ-BC's score there)", ["data", "tried", *RULES, "best score"], rows)


def tables(lines: list[dict]) -> str:
    """All tables of docs/quantizers.md."""
    parts = [
        forms_table(lines, "Held-out error, share of the variance, 16 codes", "heldout_normalised"),
        forms_table(lines, "Training error, share of the variance, 16 codes", "train_normalised"),
        forms_table(lines, "Perplexity, 16 codes", "perplexity"),
        forms_table(lines, "Held-out accuracy of p(code | state), 16 codes", "accuracy"),
        forms_table(lines, "log p(action | state) ≥, held out, in nats, 16 codes", "log_p_action"),
        forms_table(lines, "Score of SAQ-BC, 16 codes", "score"),
        forms_table(lines, "CPU seconds, 16 codes", "seconds"),
        sizes_table(lines),
        bins_table(lines),
        rules_table(lines),
    ]
    return "\n".join(parts)


# --- pictures ---
INK, GREY = "#1b1f24", "#8c959f"
STYLE = {  # form: colour, marker
    "VQ-VAE": ("#0a6e31", "o"),
    "VQ-VAE, no state": ("#b35900", "s"),
    "VQ-VAE, small": ("#6fbf8b", "o"),
    "Aquadem": ("#7a3e9d", "^"),
    "FSQ": ("#1f6fb2", "D"),
    "bins": (INK, "v"),
}


def draw_codes(lines: list[dict], dataset: str):
    """A figure of what the codes stand for: a row per state, a column per form. None without lines to draw."""
    import matplotlib.pyplot as plt

    shown = ("VQ-VAE", "VQ-VAE, no state", "Aquadem", "FSQ", "bins")
    drawn = {line["form"]: line for line in lines if line["dataset"] == dataset and "picture" in line}
    columns = [drawn[form] for form in shown if form in drawn]
    if not columns:
        return None
    states = columns[0]["picture"]
    size = (1.75 * len(columns) + 0.5, 1.75 * len(states) + 0.75)
    figure, axes = plt.subplots(len(states), len(columns), figsize=size, sharex=True, sharey=True, squeeze=False)
    for j, line in enumerate(columns):
        colour = STYLE[line["form"]][0]
        axes[0, j].set_title(f"{line['form']}\n{line['codes']} codes", size=9.5, color=INK)
        for i, picture in enumerate(line["picture"]):
            panel, actions = axes[i, j], np.array(picture["actions"])
            panel.add_patch(plt.Rectangle((-1, -1), 2, 2, fc="none", ec=GREY, lw=0.7, ls=(0, (3, 3))))
            panel.plot(*np.array(picture["near"]).T, ".", color="#98a3ae", ms=3.2, mew=0, zorder=1)
            area = 6 + 240 * np.array(picture["probability"])
            panel.scatter(*actions.T, s=area, color=colour, alpha=0.75, ec="white", lw=0.6, zorder=2)
            panel.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            panel.tick_params(labelsize=7, length=0, colors=GREY)
            for side in panel.spines.values():
                side.set_visible(False)
    (across, upwards), names = PICTURED[dataset][2], [name for name, _ in PICTURED[dataset][0]]
    for i, name in enumerate(names):
        axes[i, 0].set_ylabel(f"state {name}\n{upwards}", size=8.5, color=INK)
    if upwards.endswith("downwards"):
        axes[0, 0].invert_yaxis()  # that of all panels
    for panel in axes[-1]:
        panel.set_xlabel(across, size=8.5, color=INK)
    figure.tight_layout(pad=0.4, w_pad=0.3, h_pad=0.4)
    return figure


def draw_errors(lines: list[dict]):
    """A figure of held-out error over the number of codes, logarithmic, a panel per dataset. None without lines."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    groups = grouped(lines)
    datasets = list(dict.fromkeys(key[0] for key in groups))
    if not datasets:
        return None
    rows = -(-(len(datasets) + 1) // 4)  # one panel is the legend's
    figure, axes = plt.subplots(rows, 4, figsize=(10.2, 2.75 * rows), squeeze=False)
    handles = {}
    for panel, dataset in zip(axes.flat, datasets, strict=False):
        for form in FORMS:
            points = [(g[0]["codes"], mean(g, "heldout_normalised"), mean(g, "codes_used"))
                      for (d, f, _), g in groups.items() if (d, f) == (dataset, form)]  # fmt: skip
            if not points:
                continue
            (x, y, used), (colour, marker) = zip(*points, strict=True), STYLE[form]
            x = [min(float(codes), 1e30) for codes in x]  # 32 bins in 28 dimensions: more than fits a picture
            style = dict(marker=marker, color=colour, ms=4.5, lw=1.1)
            handles[form] = panel.plot(x, y, **style, label=form)[0]
            if form == "bins":
                handles[form].set_label("bins, all codes")
                dotted = panel.plot(used, y, **style | dict(ls=":", mfc="white"), label="bins, occupied codes")
                handles["occupied"] = dotted[0]
        breadth = DATASETS[dataset].breadth
        panel.set_title(f"{dataset} ({breadth})", size=9, color=INK)
        panel.set(xscale="log", yscale="log", xlim=(3, 1.5e5), ylim=(3e-3, 1))
        panel.xaxis.set_major_locator(FixedLocator([4, 16, 64, 256, 1024, 4096, 16384, 65536]))
        panel.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0f}" if value < 1000 else f"{value / 1024:.0f}k")
        )
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(FixedLocator([d * 10.0**e for e in (-4, -3, -2, -1) for d in (1, 2, 5)] + [1]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_locator(NullLocator())
        panel.grid(color="#e3e7eb", lw=0.6)
        panel.tick_params(labelsize=7.5, colors=INK, length=2)
        for side in panel.spines.values():
            side.set_color(GREY)
    for panel in list(axes.flat)[len(datasets) :]:
        panel.axis("off")
    axes.flat[len(datasets)].legend(handles=handles.values(), loc="center", fontsize=9, frameon=False)
    for row in axes:
        row[0].set_ylabel("held-out error, share of variance", size=8.5, color=INK)
    for panel in list(axes.flat)[max(0, len(datasets) - 4) : len(datasets)]:
        panel.set_xlabel("codes", size=8.5, color=INK)
    figure.tight_layout(pad=0.5, w_pad=0.8)
    return figure


def draw(lines: list[dict], folder: Path):
    """Write the pictures of docs/quantizers.md as SVG and PNG; the same lines give the same files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "quantizers", "font.family": "DejaVu Sans"})
    figures = {"quantizers": draw_errors(lines)}
    figures |= {
        f"quantizers_{dataset.split('-')[0].removesuffix('2d')}": draw_codes(lines, dataset) for dataset in PICTURED
    }
    for name, figure in figures.items():
        if figure:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", dpi=170)
            print(folder / f"{name}.svg")


# --- command line ---
def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def check_budget(options: Args, out: Path, lines: list[dict]):
    """Lines of different budgets do not compare."""
    for line, name in product(lines, BUDGET):
        if line[name] != getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            stop(f"the lines in {out} have {flag} {line[name]}; give {flag} {line[name]}, or another file as --out.")


def work(options: Args, out: Path, lines: list[dict]):
    """Run every job that has no line yet, and append its line."""
    done = {(line["dataset"], line["form"], line["size"], line["seed"]) for line in lines}
    for job in jobs(options):
        if job not in done:
            lines.append(run(options, job))
            with out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(*job, f"{lines[-1]['heldout_error']:.4f}", lines[-1].get("score", ""), flush=True)


def main(argv: list[str] | None = None):
    options = tyro.cli(Args, args=argv)
    for name, known in (("datasets", DATASETS), ("forms", FORMS), ("sizes", SIZES)):
        for value in getattr(options, name):
            if value not in known:
                stop(f"--{name} has no {value!r}; choose from {', '.join(map(str, known))}.")
    out = Path(options.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if options.table or options.plot:
        if not lines:
            stop(f"{out} has no results to show; run without --table and --plot first, or name another file in --out.")
        if options.table:
            print(tables(lines), end="")
        if options.plot:
            draw(lines, Path(options.plot))
        return
    if "SAQ_STANDIN_DIR" not in os.environ and any(DATASETS[name].file for name in options.datasets):
        stop("set SAQ_STANDIN_DIR to the folder of the stand-in datasets (docs/data.md), or name others in --datasets.")
    check_budget(options, out, lines)
    work(options, out, lines)


if __name__ == "__main__":
    main()
