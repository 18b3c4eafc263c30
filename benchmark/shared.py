"""What the modules of benchmark/ share: scripts as modules, lines of results, errors, how pictures look."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
INK, GREY, PALE = "#1b1f24", "#767c84", "#e3e6ea"
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's: apart for the colour-blind too
STYLE = {"font.family": "DejaVu Sans", "svg.hashsalt": "saq", "axes.axisbelow": True}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
plt.rcParams.update(STYLE)


def load(script: str) -> ModuleType:
    """A script as a module, by its name in the repository: "saq_cql" or "baselines/cql"."""
    name = script.replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / f"{script}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)  # tyro and dataclasses look classes up here
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def stop(problem: str):
    """Bad input: one sentence that says what is wrong and what to do, exit code 2."""
    print(f"error: {problem}", file=sys.stderr)
    raise SystemExit(2)


def read_lines(path: str | Path, study: str = "") -> list[dict]:
    """The lines of a file, of one study or (without a name) all; none if there is no file."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []
    return [line for line in lines if line.get("study", study) == study or not study]


def append(path: str | Path, line: dict):
    with Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def save(figure: plt.Figure, folder: str | Path, name: str, dpi: int = 200):
    """As SVG and PNG; the same figure gives the same files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None})
    figure.savefig(Path(folder, f"{name}.png"), dpi=dpi)
    plt.close(figure)
