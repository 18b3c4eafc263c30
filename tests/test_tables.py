"""benchmark/tables.py: statistics by hand, what it refuses, and that results/ and docs/ are up to date."""

import csv
import json
import math

import numpy as np
import pytest
from common import ROOT, load
from scipy import stats

tables = load(ROOT / "benchmark" / "tables.py", "tables")
RUNS = ROOT / "results" / "runs.jsonl"


def line(script: str, seed: int, score: float, **changes) -> str:
    """A finished run on hopper-expert-v2; `changes` go to its arguments, those in capitals to the line."""
    args = {"steps": 100, "lr": 0.1, "dataset_path": ""} | {k: v for k, v in changes.items() if k.islower()}
    run = {"script": script, "seed": seed, "score": score, "env_id": "hopper-expert-v2", "versions": {}}
    return json.dumps(run | {"args": args} | {k.lower(): v for k, v in changes.items() if k.isupper()})


def save(path, *lines: str):
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


def pairs() -> list[str]:
    """SAQ-CQL minus CQL is 2, 9 and 6."""
    scores = {"saq_cql": (10, 20, 30), "cql": (8, 11, 24)}
    return [line(script, seed, x) for script, of in scores.items() for seed, x in enumerate(of)]


# --- statistics ---
def test_one_set_by_hand(tmp_path):
    runs = tables.read([save(tmp_path / "runs.jsonl", *pairs())])
    found = tables.differences(runs)["hopper-expert-v2", "CQL"]
    half = 4.302653 * math.sqrt(((2 - 17 / 3) ** 2 + (9 - 17 / 3) ** 2 + (6 - 17 / 3) ** 2) / 2 / 3)
    assert (found.mean, found.seeds) == (pytest.approx(17 / 3), 3)
    assert found.interval == pytest.approx((17 / 3 - half, 17 / 3 + half)) and tables.verdict(found) == 0


def test_sets_count_the_same():
    """Mean 2 on one set, -4 on the other with more seeds: together -1, its interval Welch's."""
    first, second = np.array([1.0, 3.0]), np.array([-3.0, -4.0, -5.0])
    found = tables.difference(first, second)
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval()
    assert (found.mean, found.seeds) == (-1, 5)
    assert found.interval == pytest.approx(np.array(welch) / 2)  # a mean of two is half of their sum


@pytest.mark.parametrize("values, verdict", [([3.0, 3], 1), ([-3.0, -3], -1), ([3.0], 0), ([-9.0, 1], 0)])
def test_verdict(values, verdict):
    found = tables.difference(np.array(values))
    assert tables.verdict(found) == verdict and (found.interval is None) == (len(values) == 1)


def test_episodes_bound_an_interval_from_below(tmp_path):
    """Seeds that agree to the point; an episode of hopper-expert is worth (return + 20.27) / 32.55 points."""
    scores = {"saq_bc": [0.0, 3254.57], "bc": [0.0, 0.0, 0.0, 3254.57]}  # 0 and 100 points apart
    lines = [line(script, seed, 5, RETURNS=returns) for script, returns in scores.items() for seed in (0, 1)]
    found = tables.differences(tables.read([save(tmp_path / "runs.jsonl", *lines)]))
    half = 1.959964 * math.sqrt((5000 / 2 + 2500 / 4) / 2)  # variances 5000 and 2500; two seeds
    for key in ("hopper-expert-v2", "mean"):
        assert found[key, "BC"].interval == pytest.approx((-half, half), rel=1e-4)


def test_only_common_seeds_count(tmp_path):
    lines = [line("saq_iql", 0, 5), line("saq_iql", 1, 7), line("iql", 1, 4), line("iql", 2, 90)]
    found = tables.differences(tables.read([save(tmp_path / "runs.jsonl", *lines)]))
    assert found == {("hopper-expert-v2", "IQL"): (3, None, 1)}


# --- runs ---
def test_sets_and_methods(tmp_path):
    lines = {
        line("saq_bc", 0, 1): ("hopper-expert-v2", "SAQ-BC"),
        line("saq_bc", 0, 1, dataset_path="hopper.hdf5"): ("hopper-expert-v2 (stand-in)", "SAQ-BC"),
        line("saq_bc", 0, 1, condition_on_obs=False): ("hopper-expert-v2", "SAQ-BC without the state"),
        line("aquadem", 0, 1, learner="iql"): ("hopper-expert-v2", "Aquadem-IQL"),
        line("brac", 0, 1, DATASET="hopper.hdf5"): ("hopper-expert-v2 (stand-in)", "BRAC"),
        line("brac", 0, 1, DATASET="bundled", ENV_ID="maze"): ("maze", "BRAC"),
    }
    assert set(tables.read([save(tmp_path / "runs.jsonl", *lines)])) == set(lines.values())


@pytest.mark.parametrize(
    "lines, error",
    [
        ([line("bc", 0, 1), line("bc", 1, 1, lr=0.2)], "lr 0.1 (seed 0) and with lr 0.2 (seed 1)"),
        ([line("cql", 0, 1), line("saq_cql", 0, 1, steps=99)], "CQL for 100 and SAQ-CQL for 99 updates"),
        ([line("bc", 0, 1), line("bc", 1, 1, weight_decay=1.0)], "weight_decay 0.0 (seed 0) and with"),
        ([line("cql", 0, 1), line("saq_cql", 0, 1, weight_decay=1.0)], "decay differs (CQL 0 and SAQ-CQL 1)"),
        ([line("aquadem", 0, 1, learner="bc"), line("saq_bc", 0, 1, steps=99)], "Aquadem-BC for 100"),
        ([line("bc", 3, 1), line("bc", 3, 2)], "seed 3 twice"),
        ([line("bc", 0, 1, DATASET="a"), line("cql", 0, 1, DATASET="x/b")], "have the data a and b"),
        ([], "there are no runs"),
        ([line("bc", 0, 1), '{"script": "bc"'], "line 2 of"),
        (["[]"], "is not a finished run"),
        ([line("bc", 0, math.nan)], "a score is not a finite number"),
        ([line("bc", 0, 1).replace('"score"', '"points"')], "it has no 'score'"),
        ([line("sac", 0, 1)], "the script 'sac' is none of those compared"),
        ([line("aquadem", 0, 1)], "it has no 'learner'"),
        (None, "cannot be read"),
    ],
)
def test_what_must_not_be_mixed_or_is_damaged(lines, error, tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    if lines is not None:
        save(path, *lines)
    with pytest.raises(SystemExit, match="2"):
        tables.main([str(path), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and error in told
    assert not (tmp_path / "out").exists()


# --- output ---
def test_output(tmp_path):
    """All files, the same bytes twice; what is missing is said."""
    path = save(tmp_path / "runs.jsonl", *pairs(), line("saq_bc", 0, 5), line("bc", 0, 6))
    for out in ("one", "two"):
        assert tables.main([str(path), "--out", str(tmp_path / out)]) == 0
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"tables.md", "results.png", "results.svg"}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file
    text = (tmp_path / "one" / "tables.md").read_text()
    assert "| hopper-expert-v2 | −1.0 (1 seed) | +5.7 (−3.1 to +14.4) |" in text
    assert "| hopper-expert-v2 | 6.0 (1) | 5.0 (1) | 14.3 ± 6.9 (3) | 20.0 ± 8.2 (3) | not run |" in text
    assert "| hopper-expert-v2 | ours | not run" in text and "| antmaze-large-play-v2 | paper |" in text


def test_intervals_wider_than_the_plot_are_arrows_at_its_edge():
    axis = tables.plt.figure().add_subplot()
    tables.draw(axis, 0, tables.Difference(5.0, (-300.0, 310.0), 2), -40, 90)
    assert [x for drawn in axis.lines for x in drawn.get_xdata() if not -40 < x < 90] == []
    assert {drawn.get_marker() for drawn in axis.lines} >= {"<", ">"}


def test_the_paper_is_copied_whole():
    """Five tables; what tables.md says about their averages holds for the rows."""
    with open(ROOT / "benchmark" / "paper_tables.csv", newline="") as file:
        rows = [(*list(row.values())[:3], float(row["score"])) for row in csv.DictReader(file)]
    assert [sum(row[0] == name for row in rows) for name in "12345"] == [4 * 8, 6 * 8, 3 * 6, 4 * 3, 27 * 11]
    locomotion = ("halfcheetah", "hopper", "walker2d")
    for method, expected in (("SAQ-IQL", 72.62), ("IQL", 75.14), ("Aquadem-IQL", 68.25)):
        mine = [row for row in rows if (row[0], row[2]) == ("5", method)]
        scores = [row[3] for row in mine if row[1].startswith(locomotion)]
        assert len(scores) == 12 and np.mean(scores) == pytest.approx(expected, abs=0.006)
    printed = {row[:3]: row[3] for row in rows}
    for task in ("halfcheetah-medium-replay-v2", "hopper-medium-replay-v2", "walker2d-medium-replay-v2"):
        assert printed["3", task, "SAQ-CQL"] == printed["5", task, "CQL"]


def test_results_are_up_to_date():
    runs = tables.read([RUNS])
    compared = tables.longest(runs, tables.read([RUNS.with_name("long.jsonl")]))
    told = "not what results/*.jsonl give; run python benchmark/tables.py"
    made = tables.markdown(runs, compared, tables.read_ablations())
    assert made == (ROOT / "results" / "tables.md").read_text(), told


def test_a_pair_is_compared_after_more_updates_only_if_both_sides_are_there():
    runs = {("maze", method): {0: {"steps": 1}} for method in ("IQL", "SAQ-IQL", "Aquadem-IQL", "BC", "SAQ-BC")}
    more = {("maze", method): {0: {"steps": 9}} for method in ("IQL", "SAQ-IQL", "BC")}
    found = tables.longest(runs, more)
    assert {method for (_, method), of in found.items() if of[0]["steps"] == 9} == {"IQL", "SAQ-IQL"}


def test_every_study_is_explained():
    texts = [text for path in RUNS.parent.glob("*.jsonl") for text in path.read_text().splitlines()]
    rows = (ROOT / "docs" / "notes" / "studies.md").read_text().splitlines()
    explained = {row.split("`")[1] for row in rows if row.startswith("| `")}
    assert {json.loads(text)["study"] for text in texts} == explained
