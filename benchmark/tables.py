"""Did discretising help? Tables and a plot: SAQ minus its continuous counterpart, seed by seed.

    python benchmark/tables.py                          # results/ -> results/tables.md, docs/images/results.*
    python benchmark/tables.py mine.jsonl --out mine    # other runs: lines that experiments.py collected

A run belongs to the set of its task, "stand-in" added if its data is a file of its own. All seeds of a method
on a set must have the same arguments, both sides of a pair the same number of updates. A pair that
results/long.jsonl holds after more updates is compared there.
"""

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import BLUE, GREY, INK, ORANGE, ROOT, plt, save, stop, table  # noqa: E402

import d4rl  # noqa: E402

SETS = {  # in the order of tables and plot
    "maze2d-large-demos-v0": "maze (bundled)",
    "hopper-medium-expert-v2 (stand-in)": "hopper, medium-expert",
    "hopper-medium-replay-v2 (stand-in)": "hopper, medium-replay",
    "halfcheetah-medium-expert-v2 (stand-in)": "half-cheetah, medium-expert",
    "pen-expert-v1 (stand-in)": "hand turns pen, expert",
    "door-human-v0 (stand-in)": "hand opens door, human",
    "robomimic/lift-ph (stand-in)": "arm lifts cube",
    "robomimic/can-ph (stand-in)": "arm moves can",
}
LEARNERS = ("BC", "CQL", "IQL", "BRAC")
METHODS = [kind + learner for learner in LEARNERS for kind in ("", "SAQ-")]
WHICH = {  # arguments that say which run, not how it was trained; "vqvae" is the old name of quantizer_from
    *"seed script env_id dataset_path runs_dir quantizer_from vqvae resume evaluate device threads".split(),
    *"track capture_video".split(),
}
Runs = dict[tuple[str, str], dict[int, dict]]  # by (set, method), then by seed


# --- runs ---
def read_line(text: str) -> tuple[str, str, dict]:
    """Its set, its method, the run. ValueError, KeyError, TypeError, AttributeError: it is no such run."""
    run = json.loads(text)
    args, script = {"weight_decay": 0.0} | run["args"], run["script"]  # old runs know none
    run["args"] = args
    if not math.isfinite(run["score"]):
        raise ValueError("a score is not a finite number")
    run |= {"seed": int(run["seed"]), "steps": int(args["steps"])}
    method = f"Aquadem-{args['learner'].upper()}" if script == "aquadem" else script.upper().replace("_", "-")
    if method not in METHODS and script != "aquadem":
        raise ValueError(f"the script {script!r} is none of those compared")
    method += " without the state" if args.get("condition_on_obs") is False else ""
    data = run.get("dataset", args.get("dataset_path", ""))
    run["data"] = "the task's own" if data in ("", "bundled") else Path(data).name
    return run["env_id"] + (" (stand-in)" if data not in ("", "bundled") else ""), method, run


def read(paths: list[Path]) -> Runs:
    """All runs. Stops at a damaged file, and at runs that must not be mixed."""
    groups = defaultdict(dict)
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            stop(f"{path} cannot be read ({error}); name files of finished runs.")
        for number, text in enumerate(lines, 1):
            try:
                set_name, method, run = read_line(text)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                why = f"it has no {error}" if isinstance(error, KeyError) else error
                stop(f"line {number} of {path} is not a finished run: {why}; collect it again.")
            if run["seed"] in groups[set_name, method]:
                stop(f"{method} on {set_name} has seed {run['seed']} twice (see {path}); keep one of them.")
            groups[set_name, method][run["seed"]] = run
    if not groups:
        stop("there are no runs; make some with benchmark/experiments.py and collect them.")
    check(groups)
    return {key: dict(sorted(seeds.items())) for key, seeds in groups.items()}


def longest(runs: Runs, more: Runs) -> Runs:
    """The runs, but of every pair that has both sides in `more` those."""
    return runs | {
        (name, method): more[name, method] for name, method in more if (name, other_side(method)) in more
    }


def other_side(method: str) -> str:
    return method.removeprefix("SAQ-") if method.startswith("SAQ-") else f"SAQ-{method}"


def read_ablations() -> list[dict]:
    """The runs of the paper's ablations on stand-ins; the comparison's count where nothing is left out."""
    paths = {name: ROOT / "results" / f"{name}.jsonl" for name in ("runs", "variants", "replays")}
    runs = [json.loads(text) for path in paths.values() for text in path.read_text().splitlines()]
    return [
        run
        for run in runs
        if run["study"] == "ablations"
        or run["env_id"].startswith("hopper-medium-replay")
        and run["study"] == "main"
    ]


def check(groups: Runs):
    """Stop at runs that must not be compared: other arguments, data or numbers of updates."""
    data, steps, decays = defaultdict(set), defaultdict(dict), defaultdict(dict)
    for (set_name, method), seeds in groups.items():
        first, *others = seeds.values()
        for run in others:
            for name in sorted(first["args"].keys() & run["args"].keys() - WHICH):  # old runs know fewer
                told = [f"{name} {one['args'][name]} (seed {one['seed']})" for one in (first, run)]
                if first["args"][name] != run["args"][name]:
                    what = f"{method} on {set_name} was run with {told[0]} and with {told[1]}"
                    stop(f"{what}; name files with one setting per method.")
        data[set_name] |= {run["data"] for run in seeds.values()}
        pair = set_name, method.removeprefix("SAQ-").removeprefix("Aquadem-")
        steps[pair][method], decays[pair][method] = first["steps"], first["args"]["weight_decay"]
    for set_name, files in data.items():
        if len(files) > 1:
            told = " and ".join(sorted(files))
            stop(f"runs on {set_name} have the data {told}; name runs on the same data.")
    for (set_name, _), of in steps.items():
        if len(set(of.values())) > 1:
            told = " and ".join(f"{method} for {count}" for method, count in of.items())
            stop(f"on {set_name} {told} updates were made; run one of them again with the other's --steps.")
    for (set_name, _), of in decays.items():
        if len(set(of.values())) > 1:
            told = " and ".join(f"{method} {decay:g}" for method, decay in of.items())
            stop(f"on {set_name} weight decay differs ({told}); run one of them again with the other's.")


# --- statistics ---
class Difference(NamedTuple):
    """SAQ minus another method, paired by seed; the 95 % interval is Student's t, None with one seed."""

    mean: float
    interval: tuple[float, float] | None
    seeds: int


def difference(*sets: np.ndarray, noise: tuple[float, ...] = ()) -> Difference:
    """Of the differences (seeds,) on one set, or on several: every set counts the same.

    Several: degrees of freedom by Welch and Satterthwaite. `noise`: for each set the variance that episodes
    alone give a difference; seeds that agree by luck do not make an interval narrower than this one does.
    """
    sizes, mean = np.array([len(one) for one in sets]), float(np.mean([one.mean() for one in sets]))
    if min(sizes) < 2:
        return Difference(mean, None, sum(sizes))
    variances = np.array([one.var(ddof=1) for one in sets]) / sizes
    half = 0.0
    if variances.any():
        freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
        half = stats.t.ppf(0.975, freedom) * math.sqrt(variances.sum()) / len(sets)
    by_episodes = stats.norm.ppf(0.975) * math.sqrt((np.array(noise or 0.0) / sizes).sum()) / len(sets)
    half = float(max(half, by_episodes))
    return Difference(mean, (mean - half, mean + half), sum(sizes))


def noise_of(run: dict) -> float:
    """Variance of a run's score by its episodes: theirs / their number; 0 where they are not known."""
    if len(returns := run.get("returns", ())) < 2:
        return 0.0
    scores = 100 * d4rl.get_normalized_score(run["env_id"], np.array(returns))
    return float(np.var(scores, ddof=1) / len(scores))


def paired(runs: Runs, set_name: str, method: str, other: str) -> tuple[np.ndarray, float]:
    """method - other for the seeds that both have, (seeds,), perhaps none; mean variance by episodes."""
    ours, theirs = runs.get((set_name, method), {}), runs.get((set_name, other), {})
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    noise = float(np.mean([noise_of(one) + noise_of(two) for one, two in pairs])) if pairs else 0.0
    return np.array([one["score"] - two["score"] for one, two in pairs]), noise


def differences(runs: Runs, other: str = "") -> dict[tuple[str, str], Difference]:
    """SAQ minus `other` ("": the counterparts, or "Aquadem-") by (set, learner).

    The set "mean" is over the sets with two seeds or more.
    """
    found = {}
    for learner in LEARNERS:
        by_set = {name: paired(runs, name, f"SAQ-{learner}", other + learner) for name in sets_of(runs)}
        for name, (one, noise) in by_set.items():
            if len(one):
                found[name, learner] = difference(one, noise=(noise,))
        if enough := [pair for pair in by_set.values() if len(pair[0]) > 1]:
            sets, noise = zip(*enough, strict=True)
            found["mean", learner] = difference(*sets, noise=noise)
    return found


def scores_of(runs: Runs, set_name: str, method: str) -> list[float]:
    return [run["score"] for run in runs.get((set_name, method), {}).values()]


def sets_of(runs: Runs) -> list[str]:
    names = {set_name for set_name, _ in runs}
    return [name for name in SETS if name in names] + sorted(names - SETS.keys())


# --- tables ---
def show(value: float, sign: str = "") -> str:
    return f"{value:{sign}.1f}".replace("-", "−")


def scores_table(runs: Runs) -> str:
    """Mean ± standard deviation over seeds, in brackets their number; SAQ beside its counterpart."""
    rows = []
    for set_name in sets_of(runs):
        row = [SETS.get(set_name, set_name)]
        for method in METHODS:
            scores = scores_of(runs, set_name, method)
            spread = f" ± {show(np.std(scores))}" if len(scores) > 1 else ""
            row.append(f"{show(np.mean(scores))}{spread} ({len(scores)})" if scores else "not run")
        rows.append(row)
    return table(["data", *METHODS], rows)


def differences_table(runs: Runs, other: str = "") -> str:
    """Mean difference and its 95 % interval; bold if the interval leaves out 0."""
    found, rows = differences(runs, other), []
    learners = [learner for learner in LEARNERS if any(key[1] == learner for key in found)]
    for set_name in [*sets_of(runs), "mean"]:
        cells = []
        for learner in learners:
            one = found.get((set_name, learner))
            cell = "not run" if one is None else show(one.mean, "+")
            if one and one.interval:
                cell += f" ({show(one.interval[0], '+')} to {show(one.interval[1], '+')})"
                cell = f"**{cell}**" if verdict(one) else cell
            cells.append(cell + (" (1 seed)" if one and not one.interval else ""))
        if set(cells) != {"not run"}:
            rows.append(["mean over sets" if set_name == "mean" else SETS.get(set_name, set_name), *cells])
    return table(["data", *(f"SAQ-{learner} − {other}{learner}" for learner in learners)], rows)


def verdict(one: Difference) -> int:
    """1: SAQ is better, -1: worse, 0: the interval holds 0, or there is none."""
    return 0 if not one.interval else int(one.interval[0] > 0) - int(one.interval[1] < 0)


def paper() -> dict[str, dict[str, dict[str, float]]]:
    """The paper's tables: number -> task -> method -> score."""
    tables = defaultdict(lambda: defaultdict(dict))
    with open(ROOT / "benchmark" / "paper_tables.csv", newline="") as file:
        for row in csv.DictReader(file):
            tables[row["table"]][row["task"]][row["method"]] = float(row["score"])
    return tables


def paper_table(tasks: dict[str, dict[str, float]], runs: Runs) -> str:
    """A table of the paper; below each task that was run here, our final means."""
    methods, rows = list(next(iter(tasks.values()))), []
    for task, scores in tasks.items():
        rows.append([task, "paper", *(f"{scores[method]:g}".replace("-", "−") for method in methods)])
        env_id, _, codes = task.partition(", ")  # Table 4 has "hopper-expert-v2, 16 codes"
        for whose, set_name in (("ours", env_id), ("ours, stand-in", f"{env_id} (stand-in)")):
            cells = []
            for method in methods:
                group = list(runs.get((set_name, method), {}).values())
                known = group and (not codes or codes == f"{group[0]['args'].get('codebook_size')} codes")
                cells.append(show(np.mean(scores_of(runs, set_name, method))) if known else "not run")
            rows += [[task, whose, *cells]] if set(cells) != {"not run"} else []
    return table(["task", "whose", *methods], rows)


def ablation_tables(runs: list[dict]) -> str:
    """The paper's ablations on stand-ins: mean ± deviation over seeds, beside the paper's figures."""
    replay, expert, printed = "hopper-medium-replay-v2", "hopper-medium-expert-v2", paper()

    def ours(task: str, method: str, **setting) -> str:
        of = [
            run for run in runs if (run["env_id"], run["script"]) == (task, method.lower().replace("-", "_"))
        ]
        scores = [run["score"] for run in of if setting.items() <= run["args"].items()]
        return f"{show(np.mean(scores))} ± {show(np.std(scores))} ({len(scores)})" if scores else "not run"

    def theirs(number: str, task: str, method: str) -> str:
        score = printed[number][task].get(method)
        return "not printed" if score is None else f"{score:g}".replace("-", "−")

    state, sizes, weights = [], [], []
    for method in ("SAQ-BC", "SAQ-CQL", "SAQ-IQL", "SAQ-BRAC"):
        row = [ours(replay, method, condition_on_obs=seen) for seen in (False, True)]
        state.append(
            [method, *row, *(theirs("3", replay, method + end) for end in (" without the state", ""))]
        )
    for size in (16, 32, 64, 128):
        row = [ours(expert, "SAQ-BC", codebook_size=size)]
        row += [ours(expert, "SAQ-CQL", codebook_size=size, conservatism=10.0)]
        sizes.append([str(size), *row, theirs("4", f"hopper-expert-v2, {size} codes", "SAQ-CQL")])
    for a, b in zip((0.0, 0.3, 1.0, 3.0, 10.0, 30.0), (0.03, 0.1, 0.3, 1.0, 10.0, 100.0), strict=True):
        row = [f"{a:g}", ours(expert, "SAQ-CQL", codebook_size=16, conservatism=a)]
        weights.append([*row, f"{b:g}", ours(expert, "SAQ-IQL", codebook_size=16, temperature=b)])
    return f"""### Table 3: the quantizer without and with the state

{table(["", "without", "with", "paper, without", "paper, with"], state)}
### Table 4: number of codes

{table(["K", "SAQ-BC", "SAQ-CQL", "paper, SAQ-CQL"], sizes)}
### Figure 5: weight of the constraint

The paper's figure has no numbers: too small a weight fails, then scores rise and stay.

{table(["α", "SAQ-CQL", "λ", "SAQ-IQL"], weights)}"""


def markdown(runs: Runs, compared: Runs, ablations: list[dict]) -> str:
    """The whole of tables.md; `compared`: the runs after as many updates as there are."""
    every = [run for seeds in [*runs.values(), *compared.values()] for run in seeds.values()]
    versions = sorted({f"{package} {number}" for run in every for package, number in run["versions"].items()})
    aquadem = differences_table(runs, "Aquadem-") if differences(runs, "Aquadem-") else "not run\n"
    long = short = ""
    if more := {run["steps"] for key, of in compared.items() if of != runs[key] for run in of.values()}:
        told = " and ".join(f"{steps:,}" for steps in sorted(more))
        long = f" IQL's and BRAC's pair on\nhopper, half-cheetah and pen made {told} updates."
        short = f"""
The same with 30,000 updates at most, as everything below:

{scores_table(runs)}
{differences_table(runs)}"""
    parts = [f"### Table {number}\n\n{paper_table(tasks, runs)}\n" for number, tasks in paper().items()]
    return f"""# All tables

Made by `python benchmark/tables.py`; do not edit. What they say: [docs/results.md](../docs/results.md).

Stand-ins have the benchmarks' formats but are not their files ([docs/data.md](../docs/data.md)): no figure
here is a D4RL or robomimic score. Scores are normalized, 0 is random and 100 an expert (on the maze the
demonstrations); on robomimic (the arm) they are the success in %. All are of the last update.

Versions: {", ".join(versions)}.

## Scores

Mean ± standard deviation over seeds, in brackets their number.

{scores_table(compared)}
## SAQ minus its continuous counterpart

Mean over the seeds that both have, with its 95 % interval by Student's t, never narrower than the episodes
alone would make it; bold if it leaves out 0. With two seeds it reaches 12.7 standard errors to each side,
with three 4.3. The mean is over sets with two seeds or more, each counting the same. Nothing is corrected
for looking at many pairs.{long}

{differences_table(compared)}{short}
## SAQ minus Aquadem with the same learner

{aquadem}
{
        f'''## The paper's ablations on stand-ins

Table 3 on hopper-medium-replay, Table 4 and Figure 5 on hopper-medium-expert (the paper: hopper-expert);
mean ± standard deviation over seeds, in brackets their number.

{ablation_tables(ablations)}
'''
        if ablations
        else ""
    }## The paper's tables

The paper's figures are from D4RL and robomimic with the full recipe, ours from stand-ins with a small budget.
**They cannot be compared**, except for the sign of a difference. 1: averages by domain; 2: robomimic,
success in %; 3: the quantizer without and with the state; 4: number of codes; 5: all tasks of D4RL.

{"".join(parts)}The paper's figures do not agree with each other everywhere. They are copied as printed:

- BC's averages for locomotion and kitchen are 38.86 and 17.22 in Table 1, 59.39 and 38.12 in Table 5.
- Table 3's column SAQ-CQL is Table 5's column CQL, its SAQ-BRAC is Table 5's SAQ-CQL: one of them is shifted.
- Some averages are not the mean of their rows: SAQ-IQL on locomotion has 76.67, but its rows have a mean of
  72.62, which is below IQL's 75.14; Aquadem-IQL has 71.01, its rows 68.25.
- Aquadem-CQL's averages are above SAQ-CQL's on locomotion (82.58, 77.35) and Adroit (23.67, 21.37).
- SAQ-BC's halfcheetah rows (108.4 on expert, 3.76 on medium-replay) and SAQ-CQL's kitchen rows (complete,
  partial) look exchanged.
- Some continuous figures are low: 32.85 for IQL on hopper-medium-expert and 50.32 for CQL on
  halfcheetah-medium-expert, where CORL reports 107.4 and 95.6.
"""


# --- plot ---
LOOKS = {  # verdict: colour, marker, its fill, label
    1: (BLUE, "o", BLUE, "SAQ better"),
    -1: (ORANGE, "s", ORANGE, "SAQ worse"),
    0: (GREY, "o", "white", "undecided: the interval holds 0"),
    None: (GREY, "X", GREY, "one seed, no interval"),
}


def plot(runs: Runs) -> plt.Figure:
    """A panel per learner, a row per set: mean difference and interval, arrows where it leaves the panel."""
    found, rows = differences(runs), [*sets_of(runs), "mean"]
    means = [0.0, *(one.mean for one in found.values())]
    room = 0.3 * max(np.ptp(means), 10)
    low, high = min(means) - room, max(means) + room
    figure, axes = plt.subplots(1, 4, figsize=(7, 2.3 + 0.32 * len(rows)), sharey=True, layout="constrained")
    for axis, learner in zip(axes, LEARNERS, strict=True):
        axis.set_title(f"SAQ-{learner}\n− {learner}", size=12, weight="bold", color=INK)
        axis.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.6))
        axis.axvspan(0, high, color="#e8f2f9", lw=0)
        axis.axvspan(low, 0, color="#fdf1e9", lw=0)
        axis.axvline(0, color=INK, lw=1)
        axis.axhline(len(rows) - 1.5, color=INK, lw=0.6)
        axis.xaxis.set_major_locator(plt.MaxNLocator(4, steps=[1, 2, 4, 10]))
        axis.tick_params(labelsize=11, length=0, colors=INK)
        for y, set_name in enumerate(rows):
            if one := found.get((set_name, learner)):
                draw(axis, y, one, low, high)
        for side in axis.spines.values():
            side.set_visible(False)
    names = ["mean over the sets" if name == "mean" else SETS.get(name, name) for name in rows]
    axes[0].set_yticks(range(len(rows)), names, size=11.5)
    axes[0].get_yticklabels()[-1].set_weight("bold")
    counts = [one.seeds for (set_name, _), one in found.items() if set_name != "mean"]
    data = "stand-in data, " if any("stand-in" in name for name in rows) else ""
    told = f"Difference of final scores: {data}{min(counts)} to {max(counts)} seeds, 95 % intervals"
    figure.suptitle(told, size=11.5, color=INK)
    used = {look(one) for one in found.values()}
    handles = []
    for key in (key for key in LOOKS if key in used):
        colour, marker, fill, label = LOOKS[key]
        line = dict(color=colour, lw=0 if key is None else 1.6, label=label)
        handles.append(plt.Line2D([], [], marker=marker, mfc=fill, ms=7, **line))
    words = dict(title="←  counterpart better      points of score      SAQ better  →", title_fontsize=12)
    figure.legend(handles=handles, ncols=2, loc="outside lower center", frameon=False, fontsize=11, **words)
    return figure


def look(one: Difference) -> int | None:
    return verdict(one) if one.interval else None


def draw(axis, y: float, one: Difference, low: float, high: float):
    colour, marker, fill, _ = LOOKS[look(one)]
    if one.interval:
        edge = 0.03 * (high - low)  # room for the arrow
        inside = np.clip(one.interval, low + edge, high - edge)
        axis.plot(inside, [y, y], color=colour, lw=1.8, solid_capstyle="butt")
        for end, clipped, arrow in zip(one.interval, inside, "<>", strict=True):
            if end != clipped:
                axis.plot(clipped, y, arrow, color=colour, ms=6)
    axis.plot(one.mean, y, marker, color=colour, mfc=fill, mew=1.6, ms=7, zorder=3)


# --- command line ---
def main(argv: list[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="runs, instead of those in results/")
    parser.add_argument("--out", type=Path, help="folder of table and plot, not results/ and docs/images/")
    args = parser.parse_args(argv)
    runs = read(args.files or [ROOT / "results" / "runs.jsonl"])
    compared = runs if args.files else longest(runs, read([ROOT / "results" / "long.jsonl"]))
    out = args.out or ROOT / "results"
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(markdown(runs, compared, [] if args.out else read_ablations()))
    save(plot(compared), args.out or ROOT / "docs" / "images", "results", dpi=300)
    return 0


if __name__ == "__main__":
    sys.exit(main())
