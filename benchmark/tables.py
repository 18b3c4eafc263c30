"""Did discretising help? Tables and plots from single runs: SAQ minus its continuous twin, seed by seed.

    python benchmark/tables.py                          # results/ -> tables.md, tables.csv and two plots
    python benchmark/tables.py mine.jsonl --out mine    # other runs: lines as benchmark/experiments.py collects them

A run belongs to the set of its task, "stand-in" added if its dataset is a file of its own. All seeds of a method on a
set must have been run with the same arguments, both sides of a pair for the same number of updates.
"""

import argparse
import csv
import json
import math
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
SETS = {  # name of the set: its file in results/
    "maze2d-large-demos-v0": "maze2d-large-demos",
    "hopper-medium-expert-v2 (stand-in)": "standin-hopper-medium-expert",
    "hopper-medium-replay-v2 (stand-in)": "standin-hopper-medium-replay",
    "halfcheetah-medium-expert-v2 (stand-in)": "standin-halfcheetah-medium-expert",
    "door-human-v0 (stand-in)": "standin-door-human",
    "pen-expert-v1 (stand-in)": "standin-pen-expert",
    "robomimic/lift-ph (stand-in)": "standin-robomimic-lift",
    "robomimic/can-ph (stand-in)": "standin-robomimic-can",
}
LEARNERS = ("BC", "CQL", "IQL", "BRAC")
TWINS = [(f"SAQ-{name}", name) for name in LEARNERS]
PAIRS = TWINS + [(f"SAQ-{name}", f"Aquadem-{name}") for name in LEARNERS[:3]]
METHODS = [kind + name for name in LEARNERS for kind in ("", "Aquadem-", "SAQ-") if kind + name != "Aquadem-BRAC"]
SCORES = {"final": "score", "best": "best_score"}  # our word: the key in a line
WHICH = {*"seed script env_id dataset_path runs_dir vqvae resume evaluate device threads track capture_video".split()}
MACHINE = (
    "two cores of an AMD EPYC (Zen 4), or of an Intel Xeon with AMX where the line in results/ says so, "
    "no GPU, one thread per run, other runs on both cores at the same time"
)


class ResultsError(Exception):
    """What is wrong with the runs, and what to do, in one sentence."""


# --- runs ---
def read_line(text: str, path: Path) -> tuple[str, str, dict]:
    """A finished run: its set, its method, the run. ValueError, KeyError, TypeError, AttributeError: it is not one."""
    run = json.loads(text)
    if not all(math.isfinite(run[key]) for key in SCORES.values()):
        raise ValueError("a score is not a finite number")
    args, script = run["args"], run["script"]
    run |= {"file": path.name, "seed": int(run["seed"]), "steps": int(args["steps"])}
    method = f"Aquadem-{args['learner'].upper()}" if script == "aquadem" else script.upper().replace("_", "-")
    if method not in METHODS:
        raise ValueError(f"the script {script!r} is none of those compared")
    method += " without the state" if args.get("condition_on_obs") is False else ""
    data = run.get("dataset", args.get("dataset_path", "a file" if "standin" in path.name else ""))
    run["data"] = "the task's own" if data in ("", "bundled") else Path(data).name
    return run["env_id"] + (" (stand-in)" if data not in ("", "bundled") else ""), method, run


def read(paths: list[Path]) -> dict[tuple[str, str], dict[int, dict]]:
    """The runs by (set, method), then by seed. ResultsError: a damaged file, or runs that must not be mixed."""
    groups = defaultdict(list)
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ResultsError(f"{path} cannot be read ({error}); name files of finished runs.") from None
        if not lines:
            raise ResultsError(f"{path} is empty; collect its runs again, or do not name it.")
        for number, text in enumerate(lines, 1):
            try:
                set_name, method, run = read_line(text, path)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                what = f"line {number} of {path} is not a finished run: {why}"
                raise ResultsError(f"{what}; collect it again.") from None
            groups[set_name, method].append(run)
    if not groups:
        raise ResultsError("there are no runs; make some with benchmark/experiments.py and collect them.")
    for (set_name, method), group in groups.items():
        first, seeds = group[0], {}
        for run in group:
            for name in sorted(first["args"].keys() & run["args"].keys() - WHICH):  # an older run knows fewer flags
                if first["args"][name] != run["args"][name]:
                    told = [f"{name} {r['args'][name]} (seed {r['seed']} in {r['file']})" for r in (first, run)]
                    what = f"{method} on {set_name} was run with {told[0]} and with {told[1]}"
                    raise ResultsError(f"{what}; name files with one setting per method.")
            if run["seed"] in seeds:
                what = f"{method} on {set_name} has seed {run['seed']} twice, in {seeds[run['seed']]['file']}"
                raise ResultsError(f"{what} and {run['file']}; keep one of them.")
            seeds[run["seed"]] = run
    for set_name in dict.fromkeys(name for name, _ in groups):
        files = sorted({run["data"] for (name, _), group in groups.items() if name == set_name for run in group})
        if len(files) > 1:
            raise ResultsError(
                f"runs on {set_name} have the data {files[0]} and {files[1]}; name runs on the same data."
            )
    for set_name, saq, other in ((set_name, *pair) for set_name, _ in groups for pair in PAIRS):
        steps = [groups[set_name, method][0]["steps"] for method in (saq, other) if (set_name, method) in groups]
        if len(set(steps)) > 1:
            what = f"on {set_name} {saq} was trained for {steps[0]} updates and {other} for {steps[1]}"
            raise ResultsError(f"{what}; run one of them again with the other's --steps.")
    by_seed = {key: sorted(group, key=lambda run: run["seed"]) for key, group in groups.items()}
    return {key: {run["seed"]: run for run in group} for key, group in by_seed.items()}


# --- statistics ---
def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the samples' means: every set counts the same."""
    return np.mean([sample.mean(axis) for sample in samples], axis=0)


def iqm(sample: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean: without the lowest and the highest quarter, rounded down (Agarwal et al. 2021)."""
    return stats.trim_mean(sample, 0.25, axis)


def improvement(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
    """P(a run of SAQ scores more than one of its twin) + P(the same) / 2, mean over sets; samples x1, y1, x2, y2, ...

    Per set Mann-Whitney's U over the number of pairs of runs, whatever their seeds (Agarwal et al. 2021).
    """
    signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in zip(samples[::2], samples[1::2], strict=True)]
    return np.mean([(1 + sign.mean((-2, -1))) / 2 for sign in signs], axis=0)


def bootstrap(statistic, *samples: np.ndarray) -> tuple[float, float] | None:
    """95 % percentile interval, each sample (a stratum) resampled by itself; None if one has fewer than two values."""
    if min(map(len, samples)) < 2:
        return None
    settings = dict(n_resamples=10_000, method="percentile", vectorized=True, rng=np.random.default_rng(0))
    return tuple(stats.bootstrap(samples, statistic, **settings).confidence_interval)


def student(*samples: np.ndarray) -> tuple[float, float] | None:
    """95 % t interval of `mean`, degrees of freedom by Welch and Satterthwaite; None as above."""
    if min(map(len, samples)) < 2:
        return None
    sizes = np.array([len(sample) for sample in samples])
    variances = np.array([sample.var(ddof=1) for sample in samples]) / sizes
    centre, error = mean(*samples), math.sqrt(variances.sum()) / len(samples)
    if error == 0:
        return centre, centre
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    return stats.t.interval(0.95, freedom, centre, error)


def describe(values: np.ndarray) -> dict:
    """A method's scores on one set, a number per seed."""
    numbers = {"seeds": len(values), "mean": values.mean(), "mean 95 %": bootstrap(mean, values)}
    return numbers | {"iqm": iqm(values), "iqm 95 %": bootstrap(iqm, values)}


def compare(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """SAQ minus its twin, (n,) and (n,) of the same seeds on one set or, every set counting the same, on several."""
    differences, both = [x - y for x, y in pairs], [sample for pair in pairs for sample in pair]
    numbers = {"seeds": sum(map(len, differences)), "sets": len(pairs), "difference": mean(*differences)}
    numbers |= {"bootstrap 95 %": bootstrap(mean, *differences), "t 95 %": student(*differences)}
    numbers |= {"improvement": improvement(*both), "improvement 95 %": bootstrap(improvement, *both)}
    numbers["difference >= -2"] = bool(numbers["difference"] >= -2)
    for kind in ("bootstrap", "t"):
        bounds = numbers[f"{kind} 95 %"]
        numbers[f"lower {kind} bound > 0"] = None if bounds is None else bool(bounds[0] > 0)
    return numbers


def both_sides(runs: dict, set_name: str, saq: str, other: str, score: str) -> tuple[np.ndarray, np.ndarray] | str:
    """The scores of the seeds that both have, or why there are none."""
    if missing := [method for method in (saq, other) if (set_name, method) not in runs]:
        return f"not run: {', '.join(missing)}"
    groups = runs[set_name, saq], runs[set_name, other]
    if not (seeds := sorted(groups[0].keys() & groups[1].keys())):
        return "not run: no seed in common"
    for name in ("eval_every", "eval_episodes"):  # the best of more evaluations, or of noisier ones, is higher
        if score == "best" and len({group[seeds[0]]["args"].get(name) for group in groups}) > 1:
            return f"not comparable: {name} differs"
    return tuple(np.array([group[seed][SCORES[score]] for seed in seeds]) for group in groups)


def summarise(runs: dict) -> dict[tuple[str, str, str, str], dict | str]:
    """By (set, method, "", score) what `describe` says, by (set, saq, other, score) what `compare` says.

    Instead of numbers there may be the reason why there are none. The set "all sets" is all with two seeds or more.
    """
    numbers, sets = {}, [*SETS, *sorted({set_name for set_name, _ in runs} - SETS.keys())]
    for score, key in SCORES.items():
        for set_name in sets:
            for method in [*METHODS, *sorted({method for name, method in runs if name == set_name} - set(METHODS))]:
                values = np.array([run[key] for run in runs.get((set_name, method), {}).values()])
                numbers[set_name, method, "", score] = describe(values) if len(values) else "not run"
        for pair in PAIRS:
            found = {set_name: both_sides(runs, set_name, *pair, score) for set_name in sets}
            enough = [sides for sides in found.values() if not isinstance(sides, str) and len(sides[0]) > 1]
            for set_name, sides in found.items():
                numbers[set_name, *pair, score] = sides if isinstance(sides, str) else compare([sides])
            numbers["all sets", *pair, score] = compare(enough) if enough else "not run on two seeds of any set"
    return numbers


# --- tables ---
def shown(numbers: dict) -> tuple[list[str], list[tuple[str, str]]]:
    """The sets and pairs that tables and plots go through: Aquadem only if it was run."""
    sets = [name for name in dict.fromkeys(key[0] for key in numbers) if name != "all sets"]
    return sets, TWINS + [p for p in PAIRS[len(TWINS) :] if isinstance(numbers["all sets", *p, "final"], dict)]


def show(value, digits: int = 1, sign: str = "") -> str:
    """A number, an interval, a yes or no, or the words that stand for a missing one."""
    if isinstance(value, tuple):
        return f"[{show(value[0], digits, sign)}, {show(value[1], digits, sign)}]"
    if isinstance(value, bool | str | None):
        return {None: "no interval: 1 seed", True: "yes", False: "no"}.get(value, value)
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def table(header: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *rows])


def differences(numbers: dict, pairs: list, sets: list[str], score: str, paper: dict | None = None) -> str:
    """A line per pair and set, with `paper` beside it the paper's difference on the task of the same name."""
    header = ["pair", "set", "seeds", "difference", "95 % bootstrap", "95 % Student t", "P(SAQ better)"]
    header += ["difference ≥ −2", "lower 95 % bound > 0 (bootstrap / t)"] + ["paper's difference"] * bool(paper)
    rows = []
    for (saq, other), set_name in ((pair, set_name) for pair in pairs for set_name in sets):
        found, task = numbers[set_name, saq, other, score], set_name.removesuffix(" (stand-in)")
        cells = [found, *["not run" if "not run" in found else "none"] * 6]
        if isinstance(found, dict):
            bounds = [show(found[f"lower {kind} bound > 0"]) for kind in ("bootstrap", "t")]
            cells = [str(found["seeds"]) + (f" on {found['sets']} sets" if set_name == "all sets" else "")]
            cells += [show(found[name], sign="+") for name in ("difference", "bootstrap 95 %", "t 95 %")]
            cells += [f"{show(found['improvement'], 2)} {show(found['improvement 95 %'], 2)}"]
            cells += [show(found["difference >= -2"]), " / ".join(dict.fromkeys(bounds))]
        if paper:
            theirs = paper["5"].get(task) or paper["2"].get(task) or {}
            known = {saq, other} <= theirs.keys()
            cells += [show(theirs[saq] - theirs[other], sign="+") if known else "not in the paper"]
        rows.append([f"{saq} − {other}", set_name, *cells])
    return table(header, rows)


def paper_table(tasks: dict[str, dict], runs: dict, numbers: dict) -> str:
    """A table of the paper; below each task that was run here, our final means."""
    methods, rows = list(next(iter(tasks.values()))), []
    for task, scores in tasks.items():
        env_id, _, codes = task.partition(", ")  # Table 4 has "hopper-expert-v2, 16 codes"
        mine = []
        for whose, set_name in (("ours", env_id), ("ours, stand-in", f"{env_id} (stand-in)")):
            cells = ["not run"] * len(methods)
            for i, method in enumerate(methods):
                group = list(runs.get((set_name, method), {}).values())
                if group and (not codes or codes == f"{group[0]['args'].get('codebook_size')} codes"):
                    cells[i] = show(numbers[set_name, method, "", "final"]["mean"])
            mine += [[task, whose, *cells]] if set(cells) != {"not run"} else []
        whose = "paper" if mine else "paper; ours: not run"
        rows += [[task, whose, *(f"{scores[method]:g}".replace("-", "−") for method in methods)], *mine]
    return table(["task", "whose", *methods], rows)


def budget(runs: dict, sets: list[str]) -> str:
    """What the runs of every set were trained on, and for how long."""
    rows = []
    for set_name in sets:
        group = [run for (name, _), seeds in runs.items() if name == set_name for run in seeds.values()]
        columns = [{run["data"] for run in group}]
        for key in ("vqvae_steps", "steps", "eval_episodes"):
            columns.append({run["args"].get(key) for run in group} - {None})
        columns += [{run["seed"] for run in group}]
        rows.append([set_name, *(", ".join(map(str, sorted(column))) or "not run" for column in columns)])
    return table(["set", "data", "quantizer updates", "learner updates", "episodes", "seeds"], rows)


def markdown(runs: dict, numbers: dict, command: str, machine: str) -> str:
    """The whole of tables.md."""
    paper = defaultdict(lambda: defaultdict(dict))  # table -> task -> method -> score
    for row in csv.DictReader((ROOT / "benchmark" / "paper_tables.csv").read_text().splitlines()):
        paper[row["table"]][row["task"]][row["method"]] = float(row["score"])
    sets, pairs = shown(numbers)
    done = [numbers[set_name, *pair, "final"] for set_name in sets for pair in TWINS]
    total, done = len(done), [found for found in done if isinstance(found, dict) and found["seeds"] > 1]
    bars = ("difference >= -2", "lower bootstrap bound > 0", "lower t bound > 0")
    bars = [sum(found[bar] for found in done) for bar in bars]
    versions = sorted({f"{k} {v}" for g in runs.values() for r in g.values() for k, v in r["versions"].items()})
    means, every = [], []
    for set_name in sets:
        found = {method: numbers[set_name, method, "", "final"] for method in METHODS}
        cells = [f if isinstance(f, str) else f"{show(f['mean'])} ({f['seeds']})" for f in found.values()]
        means.append([set_name, *cells])
        for method in (method for method in METHODS if isinstance(found[method], dict)):
            both = [numbers[set_name, method, "", score] for score in SCORES]
            cells = [f"{show(f[name])} {show(f[f'{name} 95 %'])}" for f in both for name in ("mean", "iqm")]
            every.append([set_name, method, str(both[0]["seeds"]), *cells])
    return f"""# Did discretising help?

Every SAQ script against its continuous twin, seed by seed, final score. Of {total} pairs of a set and a learner,
{len(done)} were run with two seeds or more. In {bars[0]} of these SAQ is ahead or at most 2 points behind.
The lower end of the 95 % interval is above 0 in {bars[1]} by the bootstrap, in {bars[2]} by Student's t.

{differences(numbers, PAIRS, ["all sets"], "final")}
"All sets" is the mean over those sets that have two seeds or more.

![Scores of every seed](scores.png)

![Paired differences](differences.png)

Every panel of scores has its own axis, which need not begin at 0. An interval of a difference that reaches the edge of
its panel goes on beyond it.

**Data.** Stand-ins have the benchmarks' formats but are not their files
([docs/data.md](../docs/data.md#stand-in-data)): no figure here is a D4RL or robomimic score. Scores are normalized, 0
is random and 100 an expert (on the maze the demonstrations); on robomimic they are the success in %.

{budget(runs, sets)}
**Machine.** {machine[0].upper()}{machine[1:]}. Versions: {", ".join(versions)}.

**Command.** `{command}`

**How to read the intervals.** A difference is between two runs with the same seed. With 3 seeds the bootstrap can only
draw these 3 differences again: its interval is at most as wide as their range, and too narrow. Student's t allows for
the seeds that were not run, if differences are about normal; it reaches 4.3 standard errors to each side with 3 seeds
and 12.7 with 2. Where the two disagree, believe t. Over all sets both are stratified: every set is resampled by itself
and counts the same. P(SAQ better) is the probability that a run of SAQ scores more than one of its twin, ties counting
half, with a bootstrap interval; [1, 1] says no more than that all runs of SAQ are above all of its twin. IQM is the
mean without the highest and the lowest quarter, rounded down: with 3 seeds that removes nobody, with 5 one on each
side. Nothing is corrected for looking at many pairs.

## Final scores

Mean, in brackets the number of seeds.

{table(["set", *METHODS], means)}
## Differences, final score

The paper's differences are from D4RL and robomimic with the full recipe: compare the sign, not the size.

{differences(numbers, pairs, [*sets, "all sets"], "final", paper)}
## Differences, best score

The best of a run's evaluations flatters noisy learners and those that are evaluated often.

{differences(numbers, pairs, [*sets, "all sets"], "best")}
## Every method that was run

With 95 % bootstrap intervals.

{table(["set", "method", "seeds", "final, mean", "final, IQM", "best, mean", "best, IQM"], every)}
## The paper's tables

The paper's figures are from D4RL and robomimic with the full recipe. Ours are final means on stand-ins with the small
budget above. **They cannot be compared**, except for the sign of a difference. Our averages are "not run" because not
all of their tasks are.

### Table 1: averages by domain

{paper_table(paper["1"], runs, numbers)}
### Table 2: robomimic, proficient human, success in %

{paper_table(paper["2"], runs, numbers)}
### Table 3: the quantizer without and with the state as input

{paper_table(paper["3"], runs, numbers)}
### Table 4: number of codes

{paper_table(paper["4"], runs, numbers)}
### Table 5: all tasks of D4RL

{paper_table(paper["5"], runs, numbers)}
The paper's figures do not agree with each other everywhere. They are copied as printed:

- BC's averages for locomotion and kitchen are 38.86 and 17.22 in Table 1, 59.39 and 38.12 in Table 5.
- Table 3's column SAQ-CQL is Table 5's column CQL, and its SAQ-BRAC is Table 5's SAQ-CQL: one of them is shifted.
- Some averages are not the mean of their rows: SAQ-IQL on locomotion has 76.67, but its rows have a mean of 72.62,
  which is below IQL's 75.14; Aquadem-IQL has 71.01, its rows 68.25.
- Aquadem-CQL's averages are above SAQ-CQL's on locomotion (82.58, 77.35) and Adroit (23.67, 21.37).
- SAQ-BC's halfcheetah rows (108.4 on expert, 3.76 on medium-replay) and SAQ-CQL's kitchen rows (complete, partial) look
  exchanged.
- Some continuous figures are low: 32.85 for IQL on hopper-medium-expert and 50.32 for CQL on halfcheetah-medium-expert,
  where CORL reports 107.4 and 95.6.
"""


def long_form(numbers: dict) -> list[tuple]:
    """Every number in a line of its own: set, method, against, score, statistic, value."""
    lines = [("set", "method", "against", "score", "statistic", "value")]
    for key, found in numbers.items():
        for name, value in (found if isinstance(found, dict) else {"seeds": found}).items():
            ends = zip(("low", "high"), value, strict=True) if isinstance(value, tuple) else [("", value)]
            for end, x in ends:
                lines.append((*key, f"{name} {end}".strip(), f"{x:.4f}" if isinstance(x, float) else show(x, 0)))
    return lines


# --- plots ---
INK, GREY, PALE = "#1b1f24", "#767c84", "#e3e6ea"
KINDS = {  # marker, its fill, its edge (Okabe and Ito's colours), place beside the learner's tick
    "": ("s", "white", "#d55e00", -0.2, "continuous twin"),
    "Aquadem-": ("D", "white", GREY, 0.0, "Aquadem"),
    "SAQ-": ("o", "#0072b2", "#0072b2", 0.2, "SAQ"),
}
STYLE = {"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
STYLE |= {"figure.constrained_layout.use": True, "svg.hashsalt": "saq", "xtick.major.size": 0, "ytick.major.size": 0}


def add_legend(figure: plt.Figure, looks: list[dict]):
    handles = [plt.Line2D([], [], **look) for look in looks]
    figure.legend(handles=handles, ncols=len(looks), loc="outside lower center", frameon=False)


def plot_scores(runs: dict, numbers: dict) -> plt.Figure:
    """One panel per set: every seed a marker, mean and interval beside them, SAQ beside its twin."""
    sets, _ = shown(numbers)
    rows = math.ceil(len(sets) / 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11, 3 * rows), squeeze=False)
    kinds = [kind for kind in KINDS if kind != "Aquadem-" or any(method.startswith(kind) for _, method in runs)]
    for axis, set_name in zip(axes.flat, sets, strict=False):
        axis.set_title(set_name.replace(" (", "\n("), size=9)
        axis.set(xlim=(-0.5, 3.6), xticks=range(4), xticklabels=LEARNERS)
        axis.grid(axis="y", color=PALE, lw=0.7)
        text = dict(color=GREY, size=7.5, ha="center", transform=axis.get_xaxis_transform())
        if not any(name == set_name for name, _ in runs):
            axis.text(1.5, 0.5, "not run", **text)
            axis.set(yticks=[])
            continue
        for x, learner, kind in ((x, learner, kind) for x, learner in enumerate(LEARNERS) for kind in kinds):
            marker, fill, edge, shift, _ = KINDS[kind]
            found = numbers.get((set_name, kind + learner, "", "final"))
            if isinstance(found, dict):
                values, place = [run["score"] for run in runs[set_name, kind + learner].values()], x + shift + 0.11
                axis.plot([x + shift] * len(values), values, marker, mfc=fill, mec=edge, ms=4.5, alpha=0.75)
                axis.plot([place] * 2, found["mean 95 %"] or [found["mean"]] * 2, color=edge, lw=1.2)
                axis.plot([place - 0.06, place + 0.06], [found["mean"]] * 2, color=edge, lw=2.2)
            elif found and kind != "Aquadem-":
                axis.text(x + shift, 0.02, found, rotation=90, va="bottom", **text)
    for axis in axes[:, 0]:
        axis.set_ylabel("final score")
    for axis in axes.flat[len(sets) :]:
        axis.axis("off")
    looks = [dict(zip(("marker", "mfc", "mec", "label"), (*KINDS[k][:3], KINDS[k][4]), strict=True)) for k in kinds]
    looks = [look | {"ls": ""} for look in looks] + [dict(color=INK, marker="_", mew=2.2, label="mean, 95 % bootstrap")]
    add_legend(figure, looks)
    return figure


def plot_differences(runs: dict, numbers: dict) -> plt.Figure:
    """One panel per pair, one row per set: every seed's difference, their mean, bootstrap and t intervals."""
    sets, pairs = shown(numbers)
    rows = math.ceil(len(pairs) / 4)
    figure, axes = plt.subplots(rows, 4, figsize=(11.6, 0.4 + 3.8 * rows), sharex=True, sharey=True, squeeze=False)
    seen = [0.0]  # the panels are as wide as the seeds and some more: with two seeds t reaches far
    seed = dict(marker="o", mfc="white", mec=GREY, ms=3.2, mew=0.8, ls="", label="a seed")
    wide = dict(color="#7fb8dc", lw=4.5, solid_capstyle="butt", label="95 % bootstrap")
    lines = {"bootstrap 95 %": wide, "t 95 %": dict(color=INK, lw=1, label="95 % Student t")}
    minus_two = dict(color=INK, lw=0.9, ls=(0, (3, 2)), label="−2")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        axis.set_title(f"{pair[0]} − {pair[1]}", size=9)
        axis.set(yticks=range(len(sets) + 1), yticklabels=[*sets, "all sets"], ylim=(len(sets) + 0.5, -0.6))
        axis.set_xlabel("points")
        axis.xaxis.set_major_locator(plt.MaxNLocator(5))
        axis.tick_params(labelbottom=True)
        axis.axhspan(len(sets) - 0.5, len(sets) + 0.5, color="#eef1f4", lw=0)
        axis.axvline(0, color=INK, lw=0.9)
        axis.axvline(-2, **minus_two)
        axis.grid(axis="x", color=PALE, lw=0.7)
        for y, set_name in enumerate([*sets, "all sets"]):
            found = numbers[set_name, *pair, "final"]
            if isinstance(found, str):
                text = dict(color=GREY, size=7.5, ha="right", va="center", transform=axis.get_yaxis_transform())
                axis.text(0.98, y, "not run", **text)
                continue
            if set_name in sets:
                x, twin = both_sides(runs, set_name, *pair, "final")
                axis.plot(x - twin, [y + 0.27] * len(x), **seed)
                seen += [*(x - twin)]
            for name, look in lines.items():
                axis.plot(found[name] or [], [y, y] if found[name] else [], **look)
            axis.plot(found["difference"], y, "D" if set_name == "all sets" else "o", color="#0072b2", ms=5, zorder=3)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    room = 0.2 * max(np.ptp(seen), 5)
    axes[0, 0].set_xlim(min(seen) - room, max(seen) + room)
    looks = [dict(marker="o", color="#0072b2", ls="", label="mean"), seed]
    add_legend(figure, looks + [*lines.values(), minus_two])
    return figure


# --- command line ---
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", type=Path, nargs="*", help="runs; default: every set's file and twins-* in results/")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder to write to")
    parser.add_argument("--machine", default=MACHINE, help="where the runs were made, for the text")
    parser.add_argument("--no-plots", action="store_true", help="the tables only")
    args = parser.parse_args(argv)

    results = ROOT / "results"  # other files there hold variants: argmax, reward scales, grids
    defaults = [path for stem in SETS.values() if (path := results / f"{stem}.jsonl").exists()]
    try:
        runs = read(args.files or [*defaults, *sorted(results.glob("twins-*.jsonl"))])
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    numbers = summarise(runs)
    args.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "benchmark/tables.py", *map(str, args.files)])
    (args.out / "tables.md").write_text(markdown(runs, numbers, command, args.machine))
    with open(args.out / "tables.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(long_form(numbers))
    for name, plot in {} if args.no_plots else {"scores": plot_scores, "differences": plot_differences}.items():
        with plt.rc_context(STYLE):
            figure = plot(runs, numbers)
            figure.savefig(args.out / f"{name}.png", dpi=200)
            figure.savefig(args.out / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
