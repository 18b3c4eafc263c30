"""Draw docs/saq.svg: the two stages of SAQ, and what eight codes mean in two states of the bundled maze.

    python docs/make_picture.py

The arrows are real: a quantizer with K = 8 is trained on the bundled demonstrations, and its codes are decoded in two
states. Two runs on one machine write the same file. A folder as argument: write there, and a PNG to look at as well.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.patheffects import withStroke

sys.path.insert(0, str(Path(__file__).parents[1]))
import saq_bc  # noqa: E402
from vqvae import VQVAE  # noqa: E402

K, UPDATES = 8, 2_000
PLACES = {  # (row, column): the states shown are the data's nearest to these, at two corners of the way
    "A": (2.53, 0.94),
    "B": (3.02, 5.65),
}
INK, GREY, STATE, CODE, BOX = "#1b1f24", "#8c959f", "#0a6e31", "#b35900", "#eef2f6"
COLOURS = plt.get_cmap("tab10").colors


def train_quantizer() -> tuple[VQVAE, dict]:
    """A quantizer of the bundled task's actions, and the data it was trained on."""
    args = saq_bc.parse_args(["--device", "cpu"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = saq_bc.load_data(args)
    vqvae = VQVAE(4, 2, codebook_size=K, embedding_dim=16)
    optimizer = torch.optim.Adam([p for p in vqvae.parameters() if p.requires_grad], lr=args.lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        index = data["train"][torch.randint(len(data["train"]), (args.batch_size,), generator=generator)]
        loss, _ = saq_bc.quantizer_loss(vqvae, data, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vqvae, data


def box(axes, x, y, width, height, text, colour=INK, fill=BOX, size=10.5, line=1.2):
    shape = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.12", fc=fill, ec=colour, lw=line)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=colour, size=size, linespacing=1.35)


def arrow(axes, start, end, colour=INK, bend=0.0):
    style = f"arc3,rad={bend}"
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.3, color=colour,
                                   connectionstyle=style, shrinkA=0, shrinkB=0))  # fmt: skip


def draw_stages(axes):
    """The boxes and arrows of both stages, in a field of 16 x 6.2 units."""
    axes.set(xlim=(-0.1, 16), ylim=(0, 6.2))
    axes.axis("off")

    # Stage 1
    axes.text(0, 5.95, "Stage 1: learn the quantizer", weight="bold", size=11.5, va="center", color=INK)
    y = 4.35
    axes.text(0.55, y + 0.45, "action $a$", ha="center", va="center", size=11, color=INK)
    axes.text(0.55, y - 0.45, "state $s$", ha="center", va="center", size=11, color=STATE)
    arrow(axes, (1.3, y + 0.4), (2.0, y + 0.25))
    arrow(axes, (1.25, y - 0.4), (2.0, y - 0.25), STATE)
    box(axes, 2.0, y - 0.6, 1.8, 1.2, "encoder\n$e(s, a)$")
    arrow(axes, (3.8, y), (4.5, y))
    box(axes, 4.5, y - 0.95, 3.1, 1.9, "", fill="white")
    axes.text(6.05, y + 0.68, "nearest of $K$ codes", ha="center", va="center", size=10.5, color=INK)
    points = np.array([[4.9, -0.55], [5.3, 0.2], [5.75, -0.3], [6.35, 0.15], [6.9, -0.45], [7.25, 0.25], [6.25, -0.65]])
    for x, dy in points:
        axes.add_patch(Circle((x, y + dy), 0.09, fc=GREY, ec="none"))
    axes.add_patch(Circle((6.35, y + 0.15), 0.12, fc=CODE, ec="none"))
    axes.plot([6.68], [y + 0.02], marker="x", color=INK, ms=6, mew=1.6)
    axes.plot([6.68, 6.46], [y + 0.02, y + 0.11], color=INK, lw=1)
    arrow(axes, (7.6, y), (8.6, y), CODE)
    axes.text(9.15, y, "code $k$", ha="center", va="center", size=11.5, color=CODE, weight="bold")
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
    box(axes, 0.0, y - 0.7, 3.3, 1.4, "dataset, encoded once\n$(s,\\ k,\\ r,\\ s')$")
    arrow(axes, (3.3, y), (4.5, y))
    box(axes, 4.5, y - 0.7, 3.9, 1.4, "discrete learner\nCQL, IQL, BRAC or BC\nexact sums over $K$ codes", size=10)
    arrow(axes, (8.4, y), (9.1, y))
    axes.text(9.2, y, r"$k \sim \pi(\cdot\,|\,s)$", ha="left", va="center", size=11.5, color=CODE)
    arrow(axes, (10.75 - 0.1, y), (11.25, y), CODE)
    box(axes, 11.25, y - 0.6, 1.8, 1.2, "decoder\n$d(s, e_k)$")
    axes.text(12.15, y + 1.27, "current state $s$", ha="center", va="center", size=10.5, color=STATE)
    arrow(axes, (12.15, y + 1.05), (12.15, y + 0.6), STATE)
    arrow(axes, (13.05, y), (13.7, y))
    axes.text(13.8, y, "environment", ha="left", va="center", size=11, color=INK)


def draw_maze(axes, data, states):
    """The maze from above, the demonstrations' way through it and the two states."""
    axes.imshow(np.array(LARGE_MAZE, float), cmap="Greys", vmin=0, vmax=2.2)
    way = (data["observations"] * data["obs_std"] + data["obs_mean"])[:799, :2].numpy() + 0.2
    axes.plot(way[:, 1], way[:, 0], color=GREY, lw=1.2)
    for name, state in states.items():
        axes.add_patch(Circle((state[1] + 0.2, state[0] + 0.2), 0.42, fc=STATE, ec="none", zorder=3))
        axes.text(state[1] + 0.2, state[0] + 0.22, name, color="white", weight="bold", size=8.5, ha="center",
                  va="center_baseline", zorder=4)  # fmt: skip
    axes.set_title("two states of the maze", size=10, color=INK)
    axes.set(xticks=[], yticks=[])


def draw_codes(axes, vqvae, data, state, name):
    """The actions that all codes stand for in one state, as arrows from the centre."""
    obs = (state - data["obs_mean"]) / data["obs_std"]
    with torch.no_grad():
        actions = vqvae.decode(obs.expand(K, -1), torch.arange(K)).numpy()  # (K, 2): force down and to the right
    near = (data["observations"] - obs).norm(dim=1).argsort()[:40]
    axes.plot(*data["actions"][near].numpy().T[::-1], ".", color="#c4ccd4", ms=3.5, zorder=0)
    reach = 1.1
    axes.add_patch(plt.Rectangle((-1, -1), 2, 2, fc="none", ec=GREY, lw=0.8, ls=(0, (3, 3))))
    for k, (down, right) in enumerate(actions):
        axes.annotate("", (right, down), (0, 0), arrowprops={"arrowstyle": "-|>", "color": COLOURS[k], "lw": 1.6,
                                                             "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        direction = np.array([right, down]) / np.hypot(right, down)
        place = np.array([right, down]) + 0.14 * direction
        axes.text(*place, str(k), size=10, ha="center", va="center", color=COLOURS[k], weight="bold",
                  path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
    axes.plot(0, 0, marker="o", color=STATE, ms=5)
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach), xticks=[], yticks=[], aspect="equal")
    axes.set_title(f"the {K} codes, decoded in {name}", size=10, color=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def main():
    vqvae, data = train_quantizer()
    observations = data["observations"] * data["obs_std"] + data["obs_mean"]
    states = {}
    for name, place in PLACES.items():
        states[name] = observations[(observations[:, :2] - torch.tensor(place)).norm(dim=1).argmin()]

    plt.rcParams.update({"svg.hashsalt": "saq", "font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans"})
    figure = plt.figure(figsize=(9.2, 6.35), facecolor="white")
    draw_stages(figure.add_axes((0.02, 0.445, 0.97, 0.549)))
    figure.text(
        0.025, 0.408, "One code is another action in another state", weight="bold", size=11.5, va="center", color=INK
    )
    draw_maze(figure.add_axes((0.02, 0.02, 0.36, 0.32)), data, states)
    for i, (name, state) in enumerate(states.items()):
        draw_codes(figure.add_axes((0.4 + 0.3 * i, 0.02, 0.28, 0.32)), vqvae, data, state, name)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    figure.savefig(folder / "saq.svg", metadata={"Date": None})
    if len(sys.argv) > 1:
        figure.savefig(folder / "saq.png", dpi=90)


if __name__ == "__main__":
    main()
