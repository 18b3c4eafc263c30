"""Updates per second as K, the width, the batch, the action's dimensions, the data or CQL's samples grow.

    python benchmark/cost_curves.py --out docs/images/cost_curves.csv     # one CPU core: about ten minutes
    python benchmark/cost_curves.py --curves codes rows

Blocks of updates as in benchmark/speed.py, on random data: all points take turns, seconds are the process's
own, shown are medians of the rounds. One thing grows at a time; all else is hopper's or the scripts' default.
"""

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))
import speed  # noqa: E402
from shared import BLUE, GREY, INK, ORANGE, PALE, plt, save, stop  # noqa: E402


class Curve(NamedTuple):
    """What grows: its values, the scripts' default among them, and the flags that set it."""

    title: str
    values: tuple[int, ...]
    default: int
    flags: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ("quantizer", "SAQ-CQL", "SAQ-IQL")


CURVES = {
    "codes": Curve("codes K", (4, 16, 64, 256, 1024), 16, ("--codebook-size",)),
    "width": Curve("width of the hidden layers", (64, 128, 256, 512, 1024), 256, ("--hidden-dim",)),
    "batch": Curve("batch size", (32, 64, 256, 1024, 4096), 256, ("--batch-size",)),
    "actions": Curve("action dimensions", (1, 3, 10, 30, 100), 3),
    "rows": Curve("rows of data", (10_000, 100_000, 1_000_000, 10_000_000), 100_000),
    "samples": Curve("actions that CQL samples", (1, 4, 10, 30, 100), 10, ("--num-actions",), ("CQL",)),
}
COLUMNS = ("curve", "job", "value", "updates_per_second", "lowest", "highest")
COLOURS = {"quantizer": GREY, "SAQ-CQL": BLUE, "SAQ-IQL": ORANGE, "CQL": INK}


@dataclass
class Args:
    curves: list[str] = field(default_factory=lambda: list(CURVES))  # some of them
    rounds: int = 7  # blocks of each point
    seconds: float = 0.4  # of a block, about
    out: str = ""  # a CSV file for the numbers; the plot is beside it as .svg and .png
    plot: str = ""  # draw the plot of this CSV file, measure nothing


def script(job: str, name: str, value: int) -> speed.Script:
    """The job with one thing of another size."""
    curve = CURVES[name]
    flags = [f"{flag}={value}" for flag in curve.flags]
    if name == "width" and job == "quantizer":
        flags = [f"--vqvae-hidden-dim={value}"]
    rows = value if name == "rows" else CURVES["rows"].default
    action_dim = value if name == "actions" else CURVES["actions"].default
    return speed.Script(job, "eager", rows, "cpu", action_dim, flags)


def measure(args: Args) -> list[dict]:
    """A row of `COLUMNS` for each point; curves meet in the default, which is measured once."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    points, scripts = [], {}  # (curve, job, value, key), key -> what is measured
    for name in args.curves:
        curve = CURVES[name]
        for job in curve.jobs:
            for value in curve.values:
                key = (job, "default") if value == curve.default else (job, name, value)
                points.append((name, job, value, key))
                scripts[key] = scripts.get(key) or script(job, name, value)
    if "samples" in args.curves:  # the sum over codes beside the sampled integral
        key = ("SAQ-CQL", "default")
        scripts[key] = scripts.get(key) or script("SAQ-CQL", "codes", CURVES["codes"].default)
        points += [("samples", "SAQ-CQL", value, key) for value in CURVES["samples"].values]
    rates, rows = speed.take_turns(scripts, args.rounds, args.seconds), []
    for name, job, value, key in points:
        numbers = median(rates[key]), min(rates[key]), max(rates[key])
        rounded = [float(f"{number:.4g}") for number in numbers]
        rows.append(dict(zip(COLUMNS, [name, job, value, *rounded], strict=True)))
    return rows


def draw(path: Path):
    """A panel for each curve, logarithmic, with one scale of updates per second."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = list(dict.fromkeys(row["curve"] for row in rows))
    height = -(-len(names) // 3)  # rows of panels
    figure, panels = plt.subplots(
        height, min(3, len(names)), figsize=(9, 0.5 + 2.5 * height), sharey=True, squeeze=False
    )
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, names, strict=False):
        curve = CURVES[name]
        for job, colour in COLOURS.items():
            points = [row for row in rows if (row["curve"], row["job"]) == (name, job)]
            x = [int(point["value"]) for point in points]
            y, low, high = ([float(point[column]) for point in points] for column in COLUMNS[3:])
            dotted = name == "samples" and job != "CQL"  # it samples none
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            axes.plot(
                x, y, color=colour, lw=1.5, ls=":" if dotted else "-", marker="" if dotted else "o", ms=4
            )
        axes.axvline(curve.default, color=PALE, lw=4, zorder=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(curve.values, [short(value) for value in curve.values])
        axes.minorticks_off()
        axes.grid(axis="y", color=PALE)
        axes.set_xlabel(curve.title)
    for axes in panels[:, 0]:
        axes.set_yticks([10**k for k in range(4)], [f"{10**k:,}" for k in range(4)])
        axes.set_ylabel("updates per second")
    used = [job for job in COLOURS if any(row["job"] == job for row in rows)]
    handles = [plt.Line2D([], [], color=COLOURS[job], marker="o", ms=4) for job in used]
    labels = [{"CQL": "continuous CQL"}.get(job, job) for job in used]
    figure.legend(handles, labels, frameon=False, loc="upper center", ncols=len(used))
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.25 / (0.5 + 2.5 * height)))
    save(figure, path.parent, path.stem)


def short(value: int) -> str:
    """10k for 10,000."""
    if value >= 1_000_000:
        return f"{value // 1_000_000}M"
    return f"{value // 1000}k" if value >= 10_000 else str(value)


def main(args: Args):
    if args.plot:
        if not Path(args.plot).is_file():
            stop(f"{args.plot}: there is no such file; give a CSV file that --out has written.")
        return draw(Path(args.plot))
    for name in args.curves:
        if name not in CURVES:
            stop(f"no curve is called {name!r}; there are: {', '.join(CURVES)}.")
    if args.rounds < 1 or args.seconds <= 0:
        stop("--rounds is at least 1 and --seconds above 0.")
    rows = measure(args)
    for row in rows:
        point = f"{row['curve']:<8} {row['value']:>10,} {row['job']:<10}"
        spread = f"{row['updates_per_second']:>9,.1f} ({row['lowest']:,.1f} to {row['highest']:,.1f})"
        print(point, spread)
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
