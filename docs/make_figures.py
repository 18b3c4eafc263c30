"""Measure and draw the pictures of idea.md, quantizer.md and saq_*.md: docs/saq.svg and docs/images/.

    python docs/make_figures.py

Every picture is made from runs of the scripts on the bundled maze. A run that is in runs/figures is not made
again; all of them take about 20 minutes on one core. The numbers of the curves are written to
docs/images/*.csv, those of the example in docs/idea.md are printed. A folder as argument: the pictures are
written there as PNG as well, to look at.
"""

import csv
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import withStroke

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmark")]
from shared import BLUE, GREY, INK, ORANGE, PALE, load, plt  # noqa: E402

import saq_bc  # noqa: E402
from d4rl import runs  # noqa: E402

IMAGES = ROOT / "docs" / "images"
FIGURES = {"saq": ROOT / "docs"}  # where else than in IMAGES
STATE, CODE, BOX, DOT = "#0a6e31", "#b35900", "#eef2f6", "#7f8b97"
SEEDS = (0, 1, 2)
PLACES = {  # (row, column): the states shown are the data's nearest to these, at two corners of the way
    "A": (2.53, 0.94),
    "B": (3.02, 5.65),
}


# --- runs ---
def run(name: str, script: str, flags: str = "") -> Path:
    """The folder of a finished run, made now if it is not there."""
    folder = ROOT / "runs" / "figures" / name
    if not list(folder.glob("*/result.json")):
        module = load(script)
        module.main(module.parse_args(["--device", "cpu", "--runs-dir", str(folder), *shlex.split(flags)]))
    return next(folder.glob("*/result.json")).parent


def quantizer_run(name: str, flags: str = "") -> Path:
    """A run of which only the first stage is wanted."""
    return run(name, "saq_bc", f"--steps 1 --eval-episodes 1 {flags}")


def learner_run(script: str, seed: int) -> Path:
    """A run with the defaults, evaluated more often. The quantizer is the one that all scripts train."""
    flags = f"--seed {seed} --eval-every 250"
    if script != "saq_bc":
        flags += f" --quantizer-from {learner_run('saq_bc', seed)}"
    return run(f"{script}_{seed}", script, flags)


def read_metrics(folder: Path, stage: str) -> list[dict[str, float]]:
    """The rows of metrics.csv of one stage, as numbers."""
    rows = []
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row.pop("stage") == stage:
                rows.append({key: float(cell) for key, cell in row.items() if cell})
    return rows


def read_quantizer(folder: Path):
    """The quantizer of a run, its standardised data and the spaces."""
    saved = runs.read_run(folder, "saq_bc", saq_bc.Args, stage="quantizer")
    args = saq_bc.Args(**saved["args"])
    data, spaces = saq_bc.load_data(args)
    vqvae, _ = saq_bc.make_models(args, spaces)
    vqvae.load_state_dict(saved["stages"]["quantizer"]["model"])
    return vqvae, data, spaces


@torch.no_grad()
def decode_all(vqvae, obs) -> np.ndarray:
    """The action of every code in one state: (obs_dim,) -> (K, action_dim)"""
    size = len(vqvae.codebook)
    return vqvae.decode(obs.expand(size, -1), torch.arange(size)).numpy()


def find_states(data, spaces) -> dict[str, int]:
    """Row of the data nearest to each of PLACES, by name."""
    place = data.obs[:, :2] * spaces.obs_std[:2] + spaces.obs_mean[:2]  # (N, 2)
    return {name: (place - torch.tensor(at)).norm(dim=1).argmin().item() for name, at in PLACES.items()}


def write_csv(name: str, rows: list[dict]):
    with (IMAGES / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()})


# --- docs/saq.svg: the two stages, and eight codes in two states ---
def box(axes, x, y, width, height, text, colour=INK, fill=BOX, size=10.5, line=1.2):
    shape = FancyBboxPatch(
        (x, y), width, height, "round,pad=0,rounding_size=0.12", fc=fill, ec=colour, lw=line
    )
    axes.add_patch(shape)
    look = dict(ha="center", va="center", color=colour, size=size, linespacing=1.35)
    axes.text(x + width / 2, y + height / 2, text, **look)


def arrow(axes, start, end, colour=INK):
    look = dict(arrowstyle="-|>", mutation_scale=11, lw=1.3, color=colour, shrinkA=0, shrinkB=0)
    axes.add_patch(FancyArrowPatch(start, end, **look))


def draw_stages(axes):
    """The boxes and arrows of both stages, in a field of 16 x 6.2 units."""
    axes.set(xlim=(-0.1, 16), ylim=(0, 6.2))
    axes.axis("off")
    middle = dict(ha="center", va="center")

    # Stage 1
    axes.text(0, 5.95, "Stage 1: learn the quantizer", weight="bold", size=11.5, va="center", color=INK)
    y = 4.35
    axes.text(0.55, y + 0.45, "action $a$", size=11, color=INK, **middle)
    axes.text(0.55, y - 0.45, "state $s$", size=11, color=STATE, **middle)
    arrow(axes, (1.3, y + 0.4), (2.0, y + 0.25))
    arrow(axes, (1.25, y - 0.4), (2.0, y - 0.25), STATE)
    box(axes, 2.0, y - 0.6, 1.8, 1.2, "encoder\n$e(s, a)$")
    arrow(axes, (3.8, y), (4.5, y))
    box(axes, 4.5, y - 0.95, 3.1, 1.9, "", fill="white")
    axes.text(6.05, y + 0.68, "nearest of $K$ codes", size=10.5, color=INK, **middle)
    dots = [[4.9, -0.55], [5.3, 0.2], [5.75, -0.3], [6.35, 0.15], [6.9, -0.45], [7.25, 0.25], [6.25, -0.65]]
    for x, dy in dots:
        axes.add_patch(Circle((x, y + dy), 0.09, fc=GREY, ec="none"))
    axes.add_patch(Circle((6.35, y + 0.15), 0.12, fc=CODE, ec="none"))
    axes.plot([6.68], [y + 0.02], marker="x", color=INK, ms=6, mew=1.6)
    axes.plot([6.68, 6.46], [y + 0.02, y + 0.11], color=INK, lw=1)
    arrow(axes, (7.6, y), (8.6, y), CODE)
    axes.text(9.15, y, "code $k$", size=11.5, color=CODE, weight="bold", **middle)
    arrow(axes, (9.75, y), (10.75, y), CODE)
    box(axes, 10.75, y - 0.6, 1.8, 1.2, "decoder\n$d(s, e_k)$")
    arrow(axes, (12.55, y), (13.4, y))
    axes.text(13.5, y, r"action $\tilde{a} \approx a$", ha="left", va="center", size=11, color=INK)
    # The state reaches the decoder below the codebook.
    axes.plot([0.55, 0.55, 11.65], [y - 0.75, y - 1.35, y - 1.35], color=STATE, lw=1.3, solid_capstyle="butt")
    arrow(axes, (11.65, y - 1.35), (11.65, y - 0.6), STATE)

    # Stage 2
    axes.text(0, 2.25, "Stage 2: learn and act with codes", weight="bold", size=11.5, va="center", color=INK)
    y = 0.95
    box(axes, 0.0, y - 0.7, 3.3, 1.4, "data set, encoded once\n$(s,\\ k,\\ r,\\ s')$")
    arrow(axes, (3.3, y), (4.5, y))
    box(
        axes,
        4.5,
        y - 0.7,
        3.9,
        1.4,
        "discrete learner\nBC, CQL, IQL or BRAC\nexact sums over $K$ codes",
        size=10,
    )
    arrow(axes, (8.4, y), (9.1, y))
    axes.text(9.2, y, r"$k \sim \pi(\cdot\,|\,s)$", ha="left", va="center", size=11.5, color=CODE)
    arrow(axes, (10.65, y), (11.25, y), CODE)
    box(axes, 11.25, y - 0.6, 1.8, 1.2, "decoder\n$d(s, e_k)$")
    axes.text(12.15, y + 1.27, "current state $s$", size=10.5, color=STATE, **middle)
    arrow(axes, (12.15, y + 1.05), (12.15, y + 0.6), STATE)
    arrow(axes, (13.05, y), (13.7, y))
    axes.text(13.8, y, "environment", ha="left", va="center", size=11, color=INK)


def draw_maze(axes, data, spaces, states):
    """The maze from above, the demonstrations' way through it and the two states."""
    axes.imshow(np.array(LARGE_MAZE, float), cmap="Greys", vmin=0, vmax=2.2)
    place = (data.obs * spaces.obs_std + spaces.obs_mean)[:, :2].numpy() + 0.2  # cells start at (-0.2, -0.2)
    axes.plot(place[:799, 1], place[:799, 0], color=GREY, lw=1.2)
    for name, row in states.items():
        x, y = place[row][::-1]
        axes.add_patch(Circle((x, y), 0.42, fc=STATE, ec="none", zorder=3))
        look = dict(color="white", weight="bold", size=8.5, ha="center", va="center_baseline", zorder=4)
        axes.text(x, y + 0.02, name, **look)
    axes.set_title("two states of the maze", size=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_field(axes, data, obs):
    """The square of all actions, force to the right by force upwards, and the data's actions near a state."""
    near = (data.obs - obs).norm(dim=1).argsort()[:60]
    axes.add_patch(plt.Rectangle((-1, -1), 2, 2, fc="none", ec=GREY, lw=0.8, ls=(0, (3, 3))))
    axes.plot(*data.action[near].numpy().T[::-1], ".", color=DOT, ms=4, mew=0, zorder=0)
    axes.set(xlim=(-1.15, 1.15), ylim=(1.15, -1.15), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)


def draw_arrows(axes, actions):
    """The action of each code as an arrow with the code's number."""
    for k, (down, right) in enumerate(actions):
        colour = plt.get_cmap("tab10").colors[k]
        look = dict(arrowstyle="-|>", color=colour, lw=1.6, shrinkA=0, shrinkB=0)
        axes.annotate("", (right, down), (0, 0), arrowprops=look)
        place = np.array([right, down]) * (1 + 0.14 / np.hypot(right, down))
        look = dict(size=10, ha="center", va="center", color=colour, weight="bold")
        axes.text(*place, str(k), path_effects=[withStroke(linewidth=2, foreground="white")], **look)
    axes.plot(0, 0, marker="o", color=STATE, ms=5)


def overview():
    """docs/saq.svg, and the numbers of the example in docs/idea.md."""
    vqvae, data, spaces = read_quantizer(quantizer_run("eight_codes", "--codebook-size 8"))
    states = find_states(data, spaces)
    figure = plt.figure(figsize=(9.2, 6.35), facecolor="white")
    draw_stages(figure.add_axes((0.02, 0.445, 0.97, 0.549)))
    title = "One code is another action in another state"
    figure.text(0.025, 0.408, title, weight="bold", size=11.5, va="center", color=INK)
    draw_maze(figure.add_axes((0.02, 0.02, 0.36, 0.32)), data, spaces, states)
    for i, (name, row) in enumerate(states.items()):
        axes = figure.add_axes((0.4 + 0.3 * i, 0.02, 0.28, 0.32))
        draw_field(axes, data, data.obs[row])
        draw_arrows(axes, decode_all(vqvae, data.obs[row]))
        axes.set_title(f"the 8 codes, decoded in {name}", size=10, color=INK)

    for name, row in states.items():
        code = vqvae.encode(data.obs[[row]], data.action[[row]]).item()
        embedding = vqvae.encoder(torch.cat([data.obs[row], data.action[row]]))
        distance = (embedding - vqvae.codebook).norm(dim=1)
        print(f"state {name}: action {data.action[row].numpy().round(2)} (down, right)")
        print(f"  distances {distance.detach().numpy().round(2)}, code {code}")
        for other, there in states.items():
            print(f"  code {code} in {other}: {decode_all(vqvae, data.obs[there])[code].round(2)}")
    return {"saq": figure}


# --- docs/images/states.svg: bins, codes that do not see the state, codes that do ---
def states():
    """Sixteen codes of three quantizers, decoded in the states A and B."""
    vqvae, data, spaces = read_quantizer(learner_run("saq_bc", 0))
    blind, _, _ = read_quantizer(quantizer_run("no_state", "--no-condition-on-obs"))
    middles = np.arange(-0.75, 1, 0.5)
    bins = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)
    columns = {
        "4 × 4 bins": (lambda obs: bins, INK),
        "16 codes,\nstate unseen": (lambda obs: decode_all(blind, obs), BLUE),
        "16 codes,\nstate seen (SAQ)": (lambda obs: decode_all(vqvae, obs), ORANGE),
    }
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 5.2))
    for panels, (title, (decode, colour)) in zip(axes.T, columns.items(), strict=True):
        panels[0].set_title(title, size=11, color=INK)
        for panel, (name, row) in zip(panels, find_states(data, spaces).items(), strict=True):
            draw_field(panel, data, data.obs[row])
            panel.plot(*decode(data.obs[row]).T[::-1], "o", color=colour, ms=7, mec="white", mew=0.8)
            if panel in axes[:, 0]:
                panel.set_ylabel(f"state {name}\nforce up", size=10, color=INK)
        panels[-1].set_xlabel("force right", size=10, color=INK)
    figure.tight_layout(pad=0.4)
    return {"states": figure}


# --- docs/images/collapse.svg ---
FORMS = {  # flags: name, colour
    "": ("default", BLUE),
    "--codebook-form paper": ("Eq. 11 as printed, with revival", GREY),
    "--codebook-form paper --no-revive": ("Eq. 11 as printed", ORANGE),
}


def collapse():
    """Codes used over the updates, and all codes decoded in one state."""
    rows, ends = [], {}
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), width_ratios=[1.4, 1, 1], layout="constrained")
    for flags, (name, colour) in FORMS.items():
        for seed in SEEDS:
            run_name = f"collapse{flags.replace('--', '').replace(' ', '_')}_{seed}"
            folder = quantizer_run(run_name, f"{flags} --seed {seed} --eval-every 100")
            ends[name] = ends.get(name, folder)  # of the first seed
            metrics = read_metrics(folder, "quantizer")
            for row in metrics:
                numbers = {key.split("/")[1]: row[key] for key in row if key.startswith("vqvae/")}
                rows.append({"flags": flags, "seed": seed, "update": int(row["step"]), **numbers})
            steps = [row["step"] for row in metrics]
            label = name if seed == SEEDS[0] else None
            axes[0].plot(
                steps, [row["vqvae/perplexity"] for row in metrics], color=colour, lw=1.3, label=label
            )
    write_csv("collapse", rows)
    axes[0].set(xlim=(0, 3000), ylim=(0, 16.5), xticks=[0, 1000, 2000, 3000], yticks=[1, 4, 8, 12, 16])
    axes[0].set_xlabel("updates", size=9.5)
    axes[0].set_title("vqvae/perplexity", size=10, color=INK)
    axes[0].legend(fontsize=8, frameon=False)
    for panel, name in zip(axes[1:], ("default", "Eq. 11 as printed"), strict=True):
        vqvae, data, spaces = read_quantizer(ends[name])
        obs = data.obs[find_states(data, spaces)["A"]]
        draw_field(panel, data, obs)
        look = dict(color=dict(FORMS.values())[name], ms=7)
        used = torch.bincount(vqvae.encode(data.obs, data.action), minlength=16) > 0  # (K,)
        actions = decode_all(vqvae, obs)
        panel.plot(*actions[~used].T[::-1], "o", mfc="white", mew=1, **look)
        panel.plot(*actions[used].T[::-1], "o", mec="white", mew=0.8, **look)
        panel.set_title(name, size=10, color=INK)
        panel.set_xlabel("16 codes, decoded in A", size=9.5)
    return {"collapse": figure}


# --- docs/images/curves_*.svg: one per learner ---
CURVES = {  # script: (column, its title), and for comparison (script, column, label)
    "saq_bc": ("losses/policy", "cross-entropy of the code", None),
    "saq_cql": ("losses/penalty", "penalty", ("saq_bc", "losses/policy", "SAQ-BC: cross-entropy")),
    "saq_iql": ("charts/q", "mean Q of the data's codes", None),
    "saq_brac": (
        "charts/entropy",
        "entropy of the policy",
        ("saq_brac", "losses/behaviour", r"cross-entropy of $\pi_\beta$"),
    ),
}


def read_lines(script: str, column: str) -> tuple[list[float], np.ndarray]:
    """Updates, and the column of all seeds: (seeds, evaluations)."""
    metrics = [read_metrics(learner_run(script, seed), "learner") for seed in SEEDS]
    return [row["step"] for row in metrics[0]], np.array([[row[column] for row in one] for one in metrics])


def curves():
    """Score and one other metric over the updates, a line per seed and their mean."""
    figures, rows = {}, []
    for script, (column, title, other) in CURVES.items():
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6))
        for panel, key, name in zip(axes, ("eval/score", column), ("score", title), strict=True):
            steps, lines = read_lines(script, key)
            panel.plot(steps, lines.T, color=BLUE, lw=0.9, alpha=0.4)
            panel.plot(steps, lines.mean(0), color=BLUE, lw=2, label=title)
            panel.set_title(name, size=10, color=INK)
            panel.set_xlabel("updates of the learner", size=9.5)
            panel.set(xlim=(0, 4000), xticks=[0, 1000, 2000, 3000, 4000])
            panel.grid(axis="y", color=PALE, lw=0.8)
            for seed, line in zip(SEEDS, lines, strict=True):
                for step, number in zip(steps, line, strict=True):
                    where = {"script": script, "seed": seed, "update": int(step), "column": key}
                    rows.append({**where, "value": float(number)})
        axes[0].set(ylim=(0, 108), yticks=[0, 25, 50, 75, 100])
        if other:
            steps, lines = read_lines(*other[:2])
            axes[1].plot(steps, lines.mean(0), color=ORANGE, lw=1.6, ls="--", label=other[2])
            axes[1].legend(fontsize=8.5, frameon=False)
        figure.tight_layout(pad=0.4, w_pad=1.5)
        figures[f"curves_{script.removeprefix('saq_')}"] = figure
    write_csv("curves", rows)
    return figures


def main():
    for draw in (overview, states, collapse, curves):
        for name, figure in draw().items():
            figure.savefig(FIGURES.get(name, IMAGES) / f"{name}.svg", metadata={"Date": None})
            if len(sys.argv) > 1:
                figure.savefig(Path(sys.argv[1], f"{name}.png"), dpi=97)
            plt.close(figure)


if __name__ == "__main__":
    main()
