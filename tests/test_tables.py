"""benchmark/tables.py: its statistics by hand, what it refuses, and that results/ is up to date."""

import csv
import json
import math

import numpy as np
import pytest
from common import ROOT, load
from scipy import stats

tables = load(ROOT / "benchmark" / "tables.py", "tables")
STEPS = 100


def line(script: str, seed: int, score: float, **changes) -> str:
    """A finished run on hopper-expert-v2; `changes` go to its arguments, those in capitals to the line."""
    args = {"steps": STEPS, "lr": 0.1, "eval_every": 50, "eval_episodes": 2, "dataset_path": ""}
    run = {"script": script, "seed": seed, "score": score, "best_score": score + 1, "env_id": "hopper-expert-v2"}
    run |= {"versions": {"torch": "1"}, "args": args | {k: v for k, v in changes.items() if k.islower()}}
    return json.dumps(run | {k.lower(): v for k, v in changes.items() if k.isupper()})


def save(path, *lines: str):
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


def pair(saq=(10, 20, 30), twin=(8, 11, 24)) -> list[str]:
    return [line("saq_cql", i, x) for i, x in enumerate(saq)] + [line("cql", i, y) for i, y in enumerate(twin)]


def numbers_of(tmp_path, *lines: str) -> dict:
    return tables.summarise(tables.read([save(tmp_path / "runs.jsonl", *lines)]))


def table_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines() if row.startswith("|")]


# --- statistics ---
def test_of_one_method(tmp_path):
    scores = (1, 2, 3, 4, 100)
    found = numbers_of(tmp_path, *(line("bc", i, x) for i, x in enumerate(scores)))[
        "hopper-expert-v2", "BC", "", "final"
    ]
    assert (found["seeds"], found["mean"], found["iqm"]) == (5, 22, 3)  # 25 % of 5 runs is one on each side
    low, high = found["mean 95 %"]
    assert 1 < low < 3 and 22 < high < 100


def test_of_a_pair(tmp_path):
    found = numbers_of(tmp_path, *pair())["hopper-expert-v2", "SAQ-CQL", "CQL", "final"]
    assert (found["seeds"], found["difference"]) == (3, pytest.approx(17 / 3))  # 2, 9, 6
    assert found["bootstrap 95 %"] == (2, 9)  # of 27 equally likely draws one is three times 2, one three times 9
    half = 4.302653 * math.sqrt(((2 - 17 / 3) ** 2 + (9 - 17 / 3) ** 2 + (6 - 17 / 3) ** 2) / 2 / 3)
    assert found["t 95 %"] == pytest.approx((17 / 3 - half, 17 / 3 + half))
    assert found["improvement"] == pytest.approx(6 / 9)  # 10 beats 8; 20 beats 8 and 11; 30 beats all
    assert found["difference >= -2"] and found["lower bootstrap bound > 0"] and not found["lower t bound > 0"]


def test_ties_count_half():
    assert tables.improvement(np.array([1.0, 2.0]), np.array([2.0, 2.0])) == 0.25


def test_improvement_is_mann_whitney():
    x, y = np.array([1.0, 5.0, 5.0, 7.0]), np.array([2.0, 5.0, 6.0])
    assert tables.improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / 12)


def test_sets_count_the_same():
    """Mean 2 on one set, -4 on the other with more seeds: together -1, its t interval by Welch and Satterthwaite."""
    first, second = (np.array([1.0, 3.0]), np.zeros(2)), (np.array([-3.0, -4.0, -5.0]), np.zeros(3))
    found = tables.compare([first, second])
    assert (found["difference"], found["seeds"], found["sets"], found["improvement"]) == (-1, 5, 2, 0.5)
    welch = stats.ttest_ind(first[0], -second[0], equal_var=False).confidence_interval()
    assert found["t 95 %"] == pytest.approx(np.array(welch) / 2)  # a mean of two is half of their sum
    # Each set by itself: both at their lowest, (1 - 5) / 2, in 1 of 108 draws; the next, (1 - 14 / 3) / 2, in 3 more.
    assert found["bootstrap 95 %"] == pytest.approx((-11 / 6, -1 / 6))


@pytest.mark.parametrize("shift, reached", [(-2, True), (-2.01, False)])
def test_the_bar_is_two_points(shift, reached):
    assert tables.compare([(np.full(3, 5.0 + shift), np.full(3, 5.0))])["difference >= -2"] is reached


def test_equal_differences_have_a_point_as_interval():
    found = tables.compare([(np.array([3.0, 4.0]), np.array([1.0, 2.0]))])
    assert found["bootstrap 95 %"] == found["t 95 %"] == (2, 2)


def test_only_common_seeds_count(tmp_path):
    lines = [line("saq_iql", 0, 5), line("saq_iql", 1, 7), line("iql", 1, 4), line("iql", 2, 90)]
    found = numbers_of(tmp_path, *lines)["hopper-expert-v2", "SAQ-IQL", "IQL", "final"]
    assert (found["seeds"], found["difference"]) == (1, 3)
    assert found["bootstrap 95 %"] is found["t 95 %"] is found["lower t bound > 0"] is None


def test_best_scores_need_equal_evaluations(tmp_path):
    found = numbers_of(tmp_path, line("saq_bc", 0, 5), line("bc", 0, 4, eval_every=10))
    assert found["hopper-expert-v2", "SAQ-BC", "BC", "best"] == "not comparable: eval_every differs"
    assert found["hopper-expert-v2", "SAQ-BC", "BC", "final"]["difference"] == 1


# --- runs ---
def test_sets_and_methods(tmp_path):
    lines = [
        line("saq_bc", 0, 1),
        line("saq_bc", 0, 1, dataset_path="hopper.hdf5"),
        line("saq_bc", 0, 1, condition_on_obs=False),
        line("aquadem", 0, 1, learner="iql"),
        line("brac", 0, 1, DATASET="hopper.hdf5"),
        line("brac", 0, 1, DATASET="bundled", ENV_ID="maze2d-large-demos-v0"),
    ]
    assert set(tables.read([save(tmp_path / "runs.jsonl", *lines)])) == {
        ("hopper-expert-v2", "SAQ-BC"),
        ("hopper-expert-v2 (stand-in)", "SAQ-BC"),
        ("hopper-expert-v2", "SAQ-BC without the state"),
        ("hopper-expert-v2", "Aquadem-IQL"),
        ("hopper-expert-v2 (stand-in)", "BRAC"),
        ("maze2d-large-demos-v0", "BRAC"),
    }


@pytest.mark.parametrize(
    "lines, error",
    [
        ([line("bc", 0, 1), line("bc", 1, 1, lr=0.2)], "lr 0.1 .seed 0 in runs.jsonl. and with lr 0.2 .seed 1"),
        ([line("cql", 0, 1), line("saq_cql", 0, 1, steps=99)], "SAQ-CQL was trained for 99 updates and CQL for 100"),
        ([line("aquadem", 0, 1, learner="bc"), line("saq_bc", 0, 1, steps=99)], "Aquadem-BC for 100"),
        ([line("bc", 3, 1), line("bc", 3, 2)], "seed 3 twice, in runs.jsonl and runs.jsonl"),
        ([line("bc", 0, 1, DATASET="a.hdf5"), line("cql", 0, 1, DATASET="x/b.hdf5")], "the data a.hdf5 and b.hdf5"),
        ([], "runs.jsonl is empty"),
        ([line("bc", 0, 1), '{"script": "bc"'], "line 2 of .*runs.jsonl is not a finished run"),
        (["[]"], "line 1 of .*runs.jsonl is not a finished run"),
        ([""], "line 1 of .*runs.jsonl is not a finished run"),
        ([line("bc", 0, math.nan)], "a score is not a finite number"),
        ([line("bc", 0, 1).replace('"score"', '"points"')], "it has no 'score'"),
        ([line("sac", 0, 1)], "the script 'sac' is none of those compared"),
        ([line("aquadem", 0, 1)], "it has no 'learner'"),
    ],
)
def test_what_must_not_be_mixed_or_is_damaged(lines, error, tmp_path, capsys):
    path = save(tmp_path / "runs.jsonl", *lines)
    with pytest.raises(tables.ResultsError, match=error):
        tables.read([path])
    assert tables.main([str(path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_unreadable_files(content, tmp_path):
    path = tmp_path / "runs.jsonl"
    if content:
        path.write_bytes(content)
    with pytest.raises(tables.ResultsError, match="runs.jsonl cannot be read"):
        tables.read([path])


def test_no_runs():
    with pytest.raises(tables.ResultsError, match="there are no runs"):
        tables.read([])


def test_a_variant_beside_the_defaults_is_refused():
    """The files of results/ that the command leaves out by itself."""
    files = [ROOT / "results" / f"standin-hopper-medium-replay{variant}.jsonl" for variant in ("", "-mean")]
    with pytest.raises(tables.ResultsError, match="SAQ-BC on hopper-medium-replay-v2 .* with acting greedy"):
        tables.read(files)


# --- output ---
def test_output(tmp_path, monkeypatch):
    """All files, the same bytes twice, and "not run" wherever something is missing."""
    monkeypatch.setattr(tables, "SETS", {})  # fewer panels to draw
    lines = pair() + [line("saq_bc", 0, 5), line("bc", 0, 6)]
    path = save(tmp_path / "runs.jsonl", *lines)
    for out in ("one", "two"):
        assert tables.main([str(path), "--out", str(tmp_path / out)]) == 0
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {"tables.md", "tables.csv"} | {
        f"{p}.{kind}" for p in ("scores", "differences") for kind in ("png", "svg")
    }
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    text = (tmp_path / "one" / "tables.md").read_text()
    rows = table_rows(text)
    assert all(cell for row in rows for cell in row)
    by_name, name = {tuple(row[:2]): row[2:] for row in reversed(rows)}, "hopper-expert-v2"  # the first of each
    cells = ["3", "+5.7", "[+2.0, +9.0]", "[−3.1, +14.4]", "0.67 [0.11, 1.00]", "yes", "yes / no", "+9.4"]
    assert by_name["SAQ-CQL − CQL", name] == cells
    assert by_name["SAQ-BC − BC", name][1:3] == ["−1.0", "no interval: 1 seed"]
    assert (
        by_name["SAQ-IQL − IQL", name][0] == "not run: SAQ-IQL, IQL" and by_name["SAQ-IQL − IQL", name][1] == "not run"
    )
    assert by_name["hopper-expert-v2", "ours"][2] == "not run"  # IQL, in Table 5
    assert by_name["hopper-expert-v2", "ours"][5] == "14.3"  # CQL: 8, 11 and 24
    assert by_name["antmaze-large-play-v2", "paper; ours: not run"]
    with open(tmp_path / "one" / "tables.csv", newline="") as file:
        values = {tuple(row[:5]): row[5] for row in csv.reader(file)}
    assert values[name, "SAQ-CQL", "CQL", "final", "difference"] == "5.6667"
    assert values[name, "SAQ-CQL", "CQL", "final", "bootstrap 95 % low"] == "2.0000"
    assert values[name, "SAQ-BC", "BC", "final", "t 95 %"] == "no interval: 1 seed"
    assert values[name, "IQL", "", "best", "seeds"] == "not run"


def test_the_paper_is_copied_whole():
    """Five tables; what tables.md says about their averages holds for the rows."""
    with open(ROOT / "benchmark" / "paper_tables.csv", newline="") as file:
        rows = [(row["table"], row["task"], row["method"], float(row["score"])) for row in csv.DictReader(file)]
    assert [sum(row[0] == name for row in rows) for name in "12345"] == [4 * 8, 6 * 8, 3 * 6, 4 * 3, 27 * 11]
    locomotion = ("halfcheetah", "hopper", "walker2d")
    for method, expected in (("SAQ-IQL", 72.62), ("IQL", 75.14), ("Aquadem-IQL", 68.25)):
        scores = [row[3] for row in rows if row[0] == "5" and row[1].startswith(locomotion) and row[2] == method]
        assert len(scores) == 12 and np.mean(scores) == pytest.approx(expected, abs=0.006)
    printed = {row[:3]: row[3] for row in rows}
    for task in ("halfcheetah-medium-replay-v2", "hopper-medium-replay-v2", "walker2d-medium-replay-v2"):
        assert printed["3", task, "SAQ-CQL"] == printed["5", task, "CQL"]


@pytest.mark.parametrize("name", ["tables.md", "tables.csv"])
def test_results_are_up_to_date(name, regenerated):
    told = f"results/{name} is not what results/*.jsonl give; run python benchmark/tables.py"
    assert (regenerated / name).read_text() == (ROOT / "results" / name).read_text(), told


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    assert tables.main(["--out", str(out), "--no-plots"]) == 0
    return out
