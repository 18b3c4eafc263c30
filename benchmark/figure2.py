"""The paper's Figure 2 on the bundled maze: return, and estimated beside exact penalty, over training.

    python benchmark/figure2.py
    python benchmark/figure2.py --plot

The first command trains baselines/cql.py and saq_cql.py, unchanged, at every setting of `RUNS`, and measures
both penalties at every evaluation; a finished run is skipped, a killed one goes on. The second command draws
the figure from the results alone. Explained in docs/notes/figure2.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import tyro
from matplotlib.colors import ListedColormap
from matplotlib.patches import Circle
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
from shared import BLUE, INK, ORANGE, append, load, plt, read_lines, save, stop, table  # noqa: E402

import d4rl  # noqa: E402
from d4rl import runs  # noqa: E402
from d4rl.environments import MAZES  # noqa: E402

SCRIPTS = {"cql": load("baselines/cql"), "saq_cql": load("saq_cql")}
cql, saq_cql = SCRIPTS.values()
ENV_ID = "maze2d-large-demos-v0"
RUNS = {  # flags beside the task's own settings: seeds of each script
    "": {"cql": (0, 1, 2), "saq_cql": (0, 1, 2)},
    "--num-actions 1": {"cql": (0, 1, 2)},
    "--num-actions 1 --batch-size 64 --reward-scale 100": {"cql": (0,)},
    "--num-actions 1 --batch-size 64 --conservatism 0.5": {"cql": (0,)},
    "--num-actions 1 --batch-size 64 --conservatism 30": {"cql": (0,)},
}
ROWS = (  # of the figure: title, flags of continuous CQL, flags of SAQ-CQL (it draws no actions)
    ("10 actions, the default", "", ""),
    ("1 action", "--num-actions 1", ""),
)
STATES, DRAWS = 32, 16  # states of the data that the penalties are measured on, estimates drawn for each
NUM_ACTIONS = (1, 2, 4, 10, 40)  # the estimate is also measured with these, whatever the training uses
SIDE = 101  # midpoints along each action dimension; with 401 the exact value changes by at most 0.01


@dataclass
class Args:
    out: str = "results/figure2.jsonl"  # one line per script, flags, seed and evaluation
    eval_every: int = 400  # updates between two evaluations
    eval_episodes: int = 10  # episodes per evaluation
    runs_dir: str = "runs/figure2"  # the runs' folders are made in here
    only: str = ""  # run only what contains this in "SCRIPT SEED FLAGS"
    plot: bool = False  # draw figure2.png and figure2.svg from what is there, run nothing
    figures: str = "docs/notes"  # the figure's folder
    table: bool = False  # print the table of what is there, run nothing


# --- penalties ---
def grid(side: int) -> Tensor:
    """Midpoints of side x side equal cells of the action square [-1, 1]^2: (side^2, 2)"""
    points = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.cartesian_prod(points, points)


def log_integral(q: Tensor) -> Tensor:
    """log int exp Q(s,a) da over [-1, 1]^2, by the midpoint rule on `grid`. (*, side^2) -> (*)"""
    return q.logsumexp(-1) + np.log(4 / q.shape[-1])  # a cell's area is 4 / side^2


@torch.no_grad()
def exact_integral(learner: nn.Module, obs: Tensor) -> Tensor:
    """log int exp Q(s,a) da of each critic at each state, but for the grid. (B, obs_dim) -> (critics, B)"""
    parts = grid(SIDE).to(obs).split(1024)  # so many rows stay in the processor's cache
    at = [torch.cat([cql.values(learner.q, one[None], part[None]) for part in parts], dim=2) for one in obs]
    return torch.cat([log_integral(q) for q in at], dim=1)


@torch.no_grad()
def estimated_penalty(learner: nn.Module, n: int, batch) -> Tensor:
    """An estimate of the penalty at each state (B,), with 3 n actions drawn as in baselines/cql.py."""
    gaussian, next_gaussian = learner.policy(batch.obs), learner.policy(batch.next_obs)
    x, next_x = cql.draw(gaussian, n), cql.draw(next_gaussian, n)  # (B, n, A)
    uniform = torch.empty_like(x).uniform_(-1, 1)
    densities = [torch.full(x.shape[:2], -x.shape[2] * np.log(2))]
    densities += [cql.log_density(gaussian[:, None], x), cql.log_density(next_gaussian[:, None], next_x)]
    actions = torch.cat([batch.action[:, None], uniform, x.tanh(), next_x.tanh()], dim=1)  # (B, 1 + 3 n, A)
    q = cql.values(learner.q, batch.obs, actions)  # (critics, B, 1 + 3 n)
    per_state = zip(q.split(1, dim=1), torch.cat(densities, dim=1).split(1), strict=True)
    return torch.stack([cql.conservative_loss(q[:, :, 1:], density, q[:, :, 0]) for q, density in per_state])


def chosen(data):
    """The transitions that the penalties are measured on, the same for both scripts: evenly spaced."""
    index = torch.linspace(0, len(data.obs) - 1, STATES).long()
    return type(data)(*(array[index] for array in data))


def summary(name: str, penalty: Tensor) -> dict[str, float]:
    """Mean and 10 % and 90 % quantiles over states (and draws)."""
    low, high = penalty.flatten().quantile(torch.tensor([0.1, 0.9])).tolist()
    return {name: penalty.mean().item(), f"{name}_low": low, f"{name}_high": high}


@torch.no_grad()
def cql_penalties(args, learner: nn.Module, data) -> dict[str, float]:
    """Continuous CQL's penalty on the chosen states now: estimated, exact, the difference."""
    batch, estimates = chosen(data), {}
    with torch.random.fork_rng():  # the training's random numbers stay what they are
        torch.manual_seed(0)
        for n in (args.num_actions, *NUM_ACTIONS):
            drawn = [estimated_penalty(learner, n, batch) for _ in range(DRAWS)]
            estimates[n] = torch.stack(drawn)  # (draws, B)
    estimated = estimates[args.num_actions]
    data_q = cql.values(learner.q, batch.obs, batch.action[:, None]).squeeze(2)  # (critics, B)
    exact = (exact_integral(learner, batch.obs) - data_q).mean(0)  # (B,)
    numbers = summary("estimated", estimated) | summary("exact", exact) | summary("error", estimated - exact)
    numbers["noise"] = estimated.std(0).mean().item()  # of one state's estimate, from draw to draw
    for n, several in estimates.items():
        numbers[f"error_{n}"] = (several - exact).mean().item()
        numbers[f"noise_{n}"] = several.std(0).mean().item()
    return numbers


@torch.no_grad()
def saq_penalties(args, learner: nn.Module, data) -> dict[str, float]:
    """SAQ-CQL's penalty on the chosen states: an exact sum over its codes."""
    batch = chosen(data)
    per_state = zip(learner.q(batch.obs).split(1), batch.code.split(1), strict=True)
    return summary("exact", torch.stack([saq_cql.conservative_loss(*one) for one in per_state]))


# --- runs ---
def job(line: dict) -> tuple[str, str, int]:
    return line["script"], line["flags"], line["seed"]


def run(options: Args, name: str, flags: str, seed: int):
    """Train one script, or go on where a killed training stopped, and record its evaluations."""
    script, measure = SCRIPTS[name], {"cql": cql_penalties, "saq_cql": saq_penalties}[name]
    parent = Path(options.runs_dir, "_".join([name, str(seed), *flags.replace("--", "").split()]))
    argv = ["--env-id", ENV_ID, "--seed", str(seed), "--device", "cpu", "--runs-dir", str(parent)]
    argv += f"--eval-every {options.eval_every} --eval-episodes {options.eval_episodes} {flags}".split()
    for started in parent.glob("*/checkpoint*.pt"):
        argv = ["--resume", str(started.parent), "--device", "cpu"]
    args, train, evaluate, trained = script.parse_args(argv), script.train, script.evaluate, []

    def train_and_tell(*given):
        trained[:] = given[-2:]  # learner and data
        return train(*given)

    def evaluate_and_measure(args, *given, **more) -> dict:  # the training logs what its evaluation returns
        return evaluate(args, *given, **more) | measure(args, *trained)

    with patch.multiple(script, train=train_and_tell, evaluate=evaluate_and_measure):
        script.main(args)
    (checkpoint,) = parent.glob("*/checkpoint.pt")
    for row in runs.read_run(checkpoint.parent)["history"]:
        if row["stage"] == "learner":
            line = {"study": "figure2", "script": name, "flags": flags, "seed": seed, "steps": args.steps}
            for key, x in row.items():
                if key != "stage" and not key.startswith("time/"):
                    line[key.removeprefix("eval/")] = round(x, 4) if isinstance(x, float) else x
            append(options.out, line)


def main(options: Args):
    lines = read_lines(options.out)
    if options.plot or options.table:
        if not lines:
            stop(f"there are no results in {options.out}; run figure2.py without --plot and --table first.")
        if options.table:
            print(runs_table(lines), end="")
        if options.plot:
            save(plot(lines), options.figures, "figure2")
        return
    for flags, scripts in RUNS.items():
        for name, seed in ((name, seed) for name, seeds in scripts.items() for seed in seeds):
            finished = (name, flags, seed) in map(job, lines)
            if options.only in f"{name} {seed} {flags}" and not finished:
                run(options, name, flags, seed)


def runs_table(lines: list[dict]) -> str:
    """The table of docs/notes/figure2.md: each run's last evaluation, its best return in brackets."""
    rows = []
    for name, flags, seed in dict.fromkeys(map(job, lines)):
        mine = [line for line in lines if job(line) == (name, flags, seed)]
        last, best = mine[-1], max(line["return"] for line in mine)
        row = [name, f"`{flags}`" if flags else "default", seed, last["step"]]
        row.append(f"{last['return']:.0f} ({best:.0f})")
        keys = ("estimated", "exact", "error", "noise")
        rows.append(row + [f"{last[key]:.2f}".replace("-", "−") if key in last else "" for key in keys])
    header = ["script", "flags", "seed", "updates", "return (best)", "estimated", "exact", "error", "noise"]
    return table(header, rows)


# --- figure ---
LOOKS = {"cql": dict(color=ORANGE, marker="o"), "saq_cql": dict(color=BLUE, marker="s")}


def draw_maze(axes):
    """The maze from above with the demonstrations' paths, start and goal."""
    dataset, (walls, goal) = d4rl.get_dataset(ENV_ID), MAZES["large"]
    axes.imshow(walls, cmap=ListedColormap(["white", "#d5dae0"]))
    ends = np.flatnonzero(dataset["timeouts"])[:-1] + 1
    paths = np.split(dataset["observations"][:, :2] + 0.2, ends)  # cell (i, j): centre (i - 0.2, j - 0.2)
    for path, (width, colour) in zip(paths, ((4.5, "#b3bcc6"), (2.4, "#6f7984"), (0.8, INK)), strict=True):
        axes.plot(path[:, 1], path[:, 0], color=colour, lw=width, solid_capstyle="round")  # all are seen
    (row, column), (start_row, start_column) = np.array(goal) + 0.2, paths[0][0]
    axes.add_patch(Circle((column, row), 0.5, fc="none", ec=INK, lw=1.2, zorder=3))  # reward within
    axes.plot(start_column, start_row, "o", color=INK, ms=6)
    axes.annotate("start", (start_column, start_row), (8, -3), textcoords="offset points")
    axes.annotate("goal", (column + 0.6, row), (3, -3), textcoords="offset points")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def curves(lines: list[dict], script: str, flags: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) that every seed has, and the column's values (seeds, T)."""
    by_seed = {}
    for line in lines:
        if (line["script"], line["flags"]) == (script, flags) and key in line:
            by_seed.setdefault(line["seed"], {})[line["step"]] = line[key]
    if not by_seed:
        stop(f"there is no run of {script} with '{flags}'; run figure2.py without --plot first.")
    steps = sorted(set.intersection(*map(set, by_seed.values())))
    return np.array(steps), np.array([[values[step] for step in steps] for values in by_seed.values()])


def draw_line(axes, steps: np.ndarray, values: np.ndarray, label: str, **look):
    """Every seed thin, their mean thick."""
    for one in values if len(values) > 1 else []:
        axes.plot(steps, one, color=look["color"], ls=look.get("ls", "-"), lw=0.7, alpha=0.6)
    axes.plot(steps, values.mean(0), lw=1.8, ms=4.5, label=label, **look)


def draw_return(axes, lines: list[dict], flags: str, saq_flags: str):
    codes, continuous = curves(lines, "saq_cql", saq_flags, "return"), curves(lines, "cql", flags, "return")
    draw_line(axes, *codes, "SAQ-CQL", **LOOKS["saq_cql"])
    draw_line(axes, *continuous, "continuous CQL", **LOOKS["cql"])
    seeds = f"seeds: SAQ-CQL {len(codes[1])}, continuous CQL {len(continuous[1])}"
    axes.set(ylim=(-15, 470), xlim=(0, None), xlabel=f"updates ({seeds})", ylabel="return")


def draw_penalty(axes, lines: list[dict], flags: str, saq_flags: str):
    codes = curves(lines, "saq_cql", saq_flags, "exact")
    draw_line(axes, *codes, "SAQ-CQL; penalty: sum over codes", **LOOKS["saq_cql"])
    draw_line(axes, *curves(lines, "cql", flags, "exact"), "continuous CQL; penalty: exact", **LOOKS["cql"])
    steps, estimated = curves(lines, "cql", flags, "estimated")
    dashed = LOOKS["cql"] | {"ls": (0, (3, 1.2)), "mfc": "white"}
    draw_line(axes, steps, estimated, "penalty: estimated, band: from draw to draw", **dashed)
    noise, middle = curves(lines, "cql", flags, "noise")[1].mean(0), estimated.mean(0)
    axes.fill_between(steps, middle - noise, middle + noise, color=ORANGE, alpha=0.15, lw=0)
    axes.set(xlim=(0, None), xlabel="updates", ylabel="penalty, mean over states")


def draw_error(axes, lines: list[dict], flags: str):
    """Error and noise of the estimate by the number of actions, with the networks of the last evaluation."""
    last = {  # mean over seeds, (numbers of actions,)
        key: np.array([curves(lines, "cql", flags, f"{key}_{n}")[1][:, -1].mean() for n in NUM_ACTIONS])
        for key in ("error", "noise")
    }
    axes.axhline(0, color=INK, lw=0.8)
    look = dict(color=ORANGE, fmt="o", mfc="white", ms=5, capsize=3, lw=1.3)
    axes.errorbar(NUM_ACTIONS, last["error"], last["noise"], **look)
    axes.set_xscale("log")
    axes.set_xticks(NUM_ACTIONS, [str(n) for n in NUM_ACTIONS], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="actions drawn from each of three densities", ylabel="estimated $-$ exact")


def plot(lines: list[dict]) -> plt.Figure:
    """The maze and the error of the estimate, then a row of panels per setting."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold"})
    figure, panels = plt.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    draw_maze(panels[0, 0])
    draw_error(panels[1, 0], lines, ROWS[0][1])
    panels[0, 0].set_title("a  Three demonstrations", loc="left")
    panels[1, 0].set_title("d  One critic, more or fewer actions", loc="left")
    for letters, row, (title, *flags) in zip(("bc", "ef"), panels[:, 1:], ROWS, strict=True):
        draw_return(row[0], lines, *flags)
        draw_penalty(row[1], lines, *flags)
        row[0].set_title(f"{letters[0]}  Return: {title}", loc="left")
        row[1].set_title(f"{letters[1]}  Penalty: {title}", loc="left")
    panels[1, 2].sharey(panels[0, 2])
    panels[1, 2].autoscale(axis="y")
    labels = panels[0, 2].get_legend_handles_labels()
    figure.legend(*labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Args))
