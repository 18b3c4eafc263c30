"""The paper's Figure 2 on the bundled maze: return, and the estimated beside the exact penalty, over training.

    python benchmark/figure2.py
    python benchmark/figure2.py --plot

The first command trains baselines/cql.py and saq_cql.py, unchanged, at every setting of `RUNS`, and measures both
penalties at every evaluation; a finished run is skipped, a killed one goes on. The second command draws the figure
from the results alone. Explained in docs/figure2.md.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.colors import ListedColormap
from matplotlib.patches import Circle
from torch import Tensor, nn

import d4rl
from d4rl.environments import MAZES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import saq_cql  # noqa: E402

spec = importlib.util.spec_from_file_location("continuous_cql", ROOT / "baselines" / "cql.py")
cql = sys.modules["continuous_cql"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cql)
SCRIPTS = {"cql": cql, "saq_cql": saq_cql}

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
STATES, DRAWS = 32, 16  # states of the dataset that the penalties are measured on, estimates drawn for each
NUM_ACTIONS = (1, 2, 4, 10, 40)  # the estimate is also measured with these, whatever the training uses
SIDE, FINE_SIDE = 101, 401  # midpoints along each action dimension, and once, after the last update


@dataclass
class Args:
    out: str = "results/figure2.jsonl"  # one line per script, flags, seed and evaluation
    eval_every: int = 400  # updates between two evaluations
    eval_episodes: int = 10  # episodes per evaluation
    runs_dir: str = "runs/figure2"  # the runs' folders are made in here
    only: str = ""  # run only what contains this in "SCRIPT SEED FLAGS"
    plot: bool = False  # draw figure2.png and figure2.svg from what is there, run nothing
    figures: str = "docs"  # the figure's folder
    table: bool = False  # print the table of what is there, run nothing


# --- penalties ---
def grid(side: int) -> Tensor:
    """Midpoints of side x side equal cells of the action square [-1, 1]^2: (side^2, 2)"""
    points = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.cartesian_prod(points, points)


def log_integral(q: Tensor) -> Tensor:
    """log int exp Q(s,a) da over [-1, 1]^2, by the midpoint rule on Q at `grid`'s points. (*, side^2) -> (*)"""
    return q.logsumexp(-1) + np.log(4 / q.shape[-1])  # a cell's area is 4 / side^2


@torch.no_grad()
def exact_integral(learner: nn.ModuleDict, obs: Tensor, side: int) -> Tensor:
    """log int exp Q(s,a) da of each critic at each state, up to the grid's error. (B, obs_dim) -> (critics, B)"""
    few = grid(side).to(obs).split(1024)  # so many rows stay in the processor's cache
    at = [torch.cat([cql.values(learner["q"], one[None], actions[None]) for actions in few], dim=2) for one in obs]
    return torch.cat([log_integral(q) for q in at], dim=1)


@torch.no_grad()
def estimated_penalty(learner: nn.ModuleDict, n: int, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """An estimate of the penalty at each state, mean over critics. (B, obs_dim), (B, A), (B, obs_dim) -> (B,)

    It takes 3 n actions, drawn as learner_loss of baselines/cql.py draws them, in the same order.
    """
    gaussian, next_gaussian = learner["policy"](obs), learner["policy"](next_obs)
    x, next_x = cql.draw(gaussian, n), cql.draw(next_gaussian, n)  # (B, n, A)
    uniform = torch.empty_like(x).uniform_(-1, 1)
    densities = [torch.full(x.shape[:2], -action.shape[1] * np.log(2))]
    densities += [cql.log_density(gaussian[:, None], x), cql.log_density(next_gaussian[:, None], next_x)]
    actions = torch.cat([action[:, None], uniform, x.tanh(), next_x.tanh()], dim=1)  # (B, 1 + 3 n, A)
    q = cql.values(learner["q"], obs, actions)  # (critics, B, 1 + 3 n)
    densities = torch.cat(densities, dim=1)  # (B, 3 n)
    per_state = zip(q.split(1, dim=1), densities.split(1), strict=True)
    return torch.stack([cql.conservative_loss(one[:, :, 1:], density, one[:, :, 0]) for one, density in per_state])


def chosen(data: dict[str, Tensor]) -> Tensor:
    """The transitions that the penalties are measured on, the same for both scripts: evenly spaced in the dataset."""
    return torch.linspace(0, len(data["actions"]) - 1, STATES).long()


def summary(name: str, penalty: Tensor) -> dict[str, float]:
    """Mean and 10 % and 90 % quantiles over states (and draws)."""
    low, high = penalty.flatten().quantile(torch.tensor([0.1, 0.9])).tolist()
    return {name: penalty.mean().item(), f"{name}_low": low, f"{name}_high": high}


@torch.no_grad()
def cql_penalties(args, learner: nn.ModuleDict, data: dict[str, Tensor]) -> dict[str, float]:
    """Continuous CQL's penalty on the chosen states with the current networks: estimated, exact, the difference."""
    index = chosen(data)
    obs, action, next_obs = (data[name][index] for name in ("observations", "actions", "next_observations"))
    with torch.random.fork_rng():  # the training's random numbers stay what they are
        torch.manual_seed(0)
        estimates = {  # (draws, B) by number of actions
            n: torch.stack([estimated_penalty(learner, n, obs, action, next_obs) for _ in range(DRAWS)])
            for n in (args.num_actions, *NUM_ACTIONS)
        }
    estimated = estimates[args.num_actions]
    data_q = cql.values(learner["q"], obs, action[:, None]).squeeze(2)  # (critics, B)
    exact = (exact_integral(learner, obs, SIDE) - data_q).mean(0)  # (B,)
    numbers = summary("estimated", estimated) | summary("exact", exact) | summary("error", estimated - exact)
    numbers["noise"] = estimated.std(0).mean().item()  # of one state's estimate, from draw to draw
    for n, several in estimates.items():
        numbers |= {f"error_{n}": (several - exact).mean().item(), f"noise_{n}": several.std(0).mean().item()}
    if learner.updates == args.steps:
        fine = (exact_integral(learner, obs[::8], FINE_SIDE) - data_q[:, ::8]).mean(0)
        numbers["grid_error"] = (exact[::8] - fine).abs().max().item()
    return numbers


@torch.no_grad()
def saq_penalties(args, vqvae: nn.Module, learner: nn.ModuleDict, data: dict[str, Tensor]) -> dict[str, float]:
    """SAQ-CQL's penalty on the chosen states: an exact sum over its codes."""
    index = chosen(data)
    q, codes = learner["q"](data["observations"][index]), data["codes"][index]
    per_state = zip(q.split(1), codes.split(1), strict=True)
    return summary("exact", torch.stack([saq_cql.conservative_loss(one, code) for one, code in per_state]))


# --- runs ---
def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def job(line: dict) -> tuple[str, str, int]:
    return line["script"], line["flags"], line["seed"]


def finished(lines: list[dict], name: str, flags: str, seed: int) -> bool:
    return any(job(line) == (name, flags, seed) and line["step"] == line["steps"] for line in lines)


def record(out: Path, args, name: str, flags: str, history: list[dict]):
    """Replace a run's lines in the results by its history so far: a line per evaluation."""
    lines = [line for line in read(out) if job(line) != (name, flags, args.seed)]
    for row in (row for row in history if row["stage"] == "learner"):
        line = {"script": name, "flags": flags, "seed": args.seed, "step": row["step"], "steps": args.steps}
        line |= {key.removeprefix("eval/"): x for key, x in row.items() if key != "stage" and key[:5] != "time/"}
        lines.append({key: round(x, 4) if isinstance(x, float) else x for key, x in line.items()})
    saq_cql.write(out, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def run(options: Args, name: str, flags: str, seed: int):
    """Train one script, or go on where a killed training stopped; the results are recorded at every evaluation."""
    script: ModuleType = SCRIPTS[name]
    parent = Path(options.runs_dir, "_".join([name, str(seed), *flags.replace("--", "").split()]))
    argv = ["--env-id", ENV_ID, "--seed", str(seed), "--device", "cpu", "--runs-dir", str(parent)]
    argv += ["--eval-every", str(options.eval_every), "--eval-episodes", str(options.eval_episodes), *flags.split()]
    for started in parent.glob("*/checkpoint.pt"):
        argv = ["--resume", str(started.parent), "--device", "cpu"]
    args, evaluate, save = script.parse_args(argv), script.evaluate, script.save
    penalties = {"cql": cql_penalties, "saq_cql": saq_penalties}[name]

    def evaluate_and_measure(*given, **options) -> dict:  # the training logs what its evaluation returns
        return evaluate(*given, **options) | penalties(*given)

    def save_and_record(run: dict):
        save(run)
        record(Path(options.out), args, name, flags, run["history"])

    with patch.multiple(script, evaluate=evaluate_and_measure, save=save_and_record):
        script.main(args)


def main(options: Args):
    if options.plot:
        return plot(read(Path(options.out)), Path(options.figures))
    if options.table:
        return table(read(Path(options.out)))
    for flags, scripts in RUNS.items():
        for name, seed in ((name, seed) for name, seeds in scripts.items() for seed in seeds):
            wanted = options.only in f"{name} {seed} {flags}"
            if wanted and not finished(read(Path(options.out)), name, flags, seed):
                run(options, name, flags, seed)


def table(lines: list[dict]):
    """Print the Markdown table of docs/figure2.md: each run's last evaluation, its best return in brackets."""
    print("| script | flags | seed | updates | return (best) | estimated | exact | error | noise |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, flags, seed in dict.fromkeys(map(job, lines)):
        rows = [line for line in lines if job(line) == (name, flags, seed)]
        last, best = rows[-1], max(row["return"] for row in rows)
        cells = [name, f"`{flags}`" if flags else "default", seed, last["step"], f"{last['return']:.0f} ({best:.0f})"]
        cells += [f"{last[key]:.2f}" if key in last else "" for key in ("estimated", "exact", "error", "noise")]
        print(f"| {' | '.join(map(str, cells))} |")


# --- figure ---
INK, WALL = "#1b1f24", "#d5dae0"
CONTINUOUS, CODES = "#d9660a", "#0b3c75"  # apart in colour, to the colour-blind, and in grey
LOOKS = {"cql": dict(color=CONTINUOUS, marker="o"), "saq_cql": dict(color=CODES, marker="s")}


def draw_maze(axes):
    """The maze from above with the demonstrations' paths, start and goal."""
    dataset, (walls, goal) = d4rl.get_dataset(ENV_ID), MAZES["large"]
    axes.imshow(walls, cmap=ListedColormap(["white", WALL]))
    ends = np.flatnonzero(dataset["timeouts"])[:-1] + 1
    paths = np.split(dataset["observations"][:, :2] + 0.2, ends)  # cell (i, j) is centred at (i - 0.2, j - 0.2)
    for path, (width, colour) in zip(paths, ((4.5, "#b3bcc6"), (2.4, "#6f7984"), (0.8, INK)), strict=True):
        axes.plot(path[:, 1], path[:, 0], color=colour, lw=width, solid_capstyle="round")  # all three can be seen
    (row, column), (start_row, start_column) = np.array(goal) + 0.2, paths[0][0]
    axes.add_patch(Circle((column, row), 0.5, fc="none", ec=INK, lw=1.2, zorder=3))  # reward within
    axes.plot(start_column, start_row, "o", color=INK, ms=6)
    axes.annotate("start", (start_column, start_row), (8, -3), textcoords="offset points")
    axes.annotate("goal", (column + 0.6, row), (3, -3), textcoords="offset points")
    axes.set(xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)


def curves(lines: list[dict], script: str, flags: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (T,) that every seed has, and the column's values (seeds, T)."""
    rows = [line for line in lines if (line["script"], line["flags"]) == (script, flags)]
    by_seed = {seed: {} for seed in sorted({x["seed"] for x in rows})}
    for row in (row for row in rows if key in row):
        by_seed[row["seed"]][row["step"]] = row[key]
    if not by_seed:
        stop(f"there is no run of {script} with '{flags}' in the results; run figure2.py without --plot first.")
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
    axes.fill_between(steps, middle - noise, middle + noise, color=CONTINUOUS, alpha=0.15, lw=0)
    axes.set(xlim=(0, None), xlabel="updates", ylabel="penalty, mean over states")


def draw_error(axes, lines: list[dict], flags: str):
    """Error and noise of the estimate by the number of actions, with the networks of the last evaluation."""
    last = {  # mean over seeds, (numbers of actions,)
        key: np.array([curves(lines, "cql", flags, f"{key}_{n}")[1][:, -1].mean() for n in NUM_ACTIONS])
        for key in ("error", "noise")
    }
    axes.axhline(0, color=INK, lw=0.8)
    axes.errorbar(
        NUM_ACTIONS, last["error"], last["noise"], color=CONTINUOUS, fmt="o", mfc="white", ms=5, capsize=3, lw=1.3
    )
    axes.set_xscale("log")
    axes.set_xticks(NUM_ACTIONS, [str(n) for n in NUM_ACTIONS], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="actions drawn from each of three densities", ylabel="estimated $-$ exact")


def plot(lines: list[dict], folder: Path):
    """Write figure2.png and figure2.svg: the maze and the error of the estimate, then a row of panels per setting."""
    style = {"svg.hashsalt": "saq", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold"}
    plt.rcParams.update(style | {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"})
    figure, panels = plt.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    draw_maze(panels[0, 0])
    panels[0, 0].set_title("a  Three demonstrations")
    draw_error(panels[1, 0], lines, ROWS[0][1])
    panels[1, 0].set_title("d  One critic, more or fewer actions")
    for letters, row, (title, *flags) in zip(("bc", "ef"), panels[:, 1:], ROWS, strict=True):
        for letter, axes, draw, what in zip(
            letters, row, (draw_return, draw_penalty), ("Return", "Penalty"), strict=True
        ):
            draw(axes, lines, *flags)
            axes.set_title(f"{letter}  {what}: {title}")
    panels[1, 2].sharey(panels[0, 2])
    panels[1, 2].autoscale(axis="y")
    figure.legend(*panels[0, 2].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(folder / "figure2.png", dpi=200)
    figure.savefig(folder / "figure2.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
