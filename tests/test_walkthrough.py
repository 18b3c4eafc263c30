"""docs/walkthrough.ipynb runs, and the outputs stored in it are those of its code.

After a change of the notebook: jupyter execute --inplace docs/walkthrough.ipynb
"""

import re
import shutil

import nbformat
import pytest
from common import ROOT
from nbclient import NotebookClient

PATH = ROOT / "docs" / "walkthrough.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CELLS = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
FASTER = [("UPDATES, RATE = 1500", "UPDATES, RATE = 40"), ('steps", "1500"', 'steps", "40"')]


def shown(cells) -> list[tuple[str, str]]:
    """What each cell prints, without numbers and the spaces beside them, and the kinds of its pictures."""
    found = []
    for cell in cells:
        text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        kinds = [
            kind for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image")
        ]
        text = re.sub(": little, so .*", "", text)  # of codes that learned for a few updates
        found.append((re.sub(r" *-?\d[\d.,-]* *", "#", text), " ".join(kinds)))
    return found


def test_stored_outputs():
    """Run from top to bottom in one go, without errors or warnings, and small enough to read on GitHub."""
    assert [cell.execution_count for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8
    assert all("plt.show()" not in cell.source or "image/png" in shown([cell])[0][1] for cell in CELLS)
    assert PATH.stat().st_size < 700_000


def test_links():
    text = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert len(links) > 10
    assert [link for link in links if not (PATH.parent / link).exists()] == []


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_runs(full, tmp_path, monkeypatch):
    """In a fresh copy, on one core; a minute in full, a few seconds with few updates."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "docs").mkdir()
    for path in [ROOT / "vqvae.py", *ROOT.glob("saq_*.py")]:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "results" / "policies", tmp_path / "results" / "policies")
    copy = nbformat.read(PATH, as_version=4)
    cells = [cell for cell in copy.cells if cell.cell_type == "code"]
    for old, new in [] if full else FASTER:
        assert sum(cell.source.count(old) for cell in cells) > 0, old
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    resources = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(
        copy, timeout=1800, kernel_name="python3", resources=resources
    ).execute()  # raises what a cell does
    assert shown(cells) == shown(CELLS)
