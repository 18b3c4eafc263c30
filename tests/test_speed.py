"""--bf16, which trades exactness for speed; benchmark/speed.py and cost_curves.py, which measure."""

import copy
import csv
import os
import subprocess
import sys

import pytest
import torch
from common import PATHS, ROOT, SCRIPTS, checkpoint, load, run, same, tiny

NONE = "--bf16 changes nothing here"


def has_units() -> bool:
    return torch.cpu.get_capabilities().get("amx_bf16", False)


def weights(folder):
    return checkpoint(folder)["stages"]["learner"]["model"]


def in_a_process(folder, *flags, **variables):
    """What a run of SAQ-BC printed, and its weights."""
    command = [sys.executable, PATHS["saq_bc"], *tiny("saq_bc"), "--runs-dir", folder, *flags]
    environment = os.environ | variables
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return done.stdout, weights(path)


@pytest.fixture(autouse=True)
def exact_products():
    yield
    torch.set_float32_matmul_precision("highest")


def test_a_processor_without_units_is_told(tmp_path):
    """The run is the same as without the flag, and a sentence says so."""
    printed, plain = in_a_process(tmp_path / "plain", ONEDNN_MAX_CPU_ISA="AVX2")
    assert NONE not in printed
    printed, bf16 = in_a_process(tmp_path / "bf16", "--bf16", ONEDNN_MAX_CPU_ISA="AVX2")
    assert NONE in printed and same(plain, bf16)


@pytest.mark.skipif(not has_units(), reason="needs a processor with units for bfloat16")
@pytest.mark.parametrize("script", PATHS)
def test_bf16_is_nearly_the_same_run(script, tmp_path):
    """Weights are near, float32, and the same in a second run; without the flag they are exact again."""
    plain = weights(run(script, tmp_path / "plain"))
    bf16 = weights(run(script, tmp_path / "bf16", "--bf16"))
    assert same(bf16, weights(run(script, tmp_path / "again", "--bf16")))
    assert not same(bf16, plain) and all(weight.dtype == torch.float32 for weight in bf16.values())
    for name, weight in plain.items():
        assert (weight - bf16[name]).abs().mean() < 0.01, name
    assert same(plain, weights(run(script, tmp_path / "exact")))


def test_a_run_stays_bf16(tmp_path):
    folder = run("saq_bc", tmp_path, "--bf16")
    assert SCRIPTS["saq_bc"].parse_args(["--evaluate", str(folder)]).bf16


# --- benchmark/speed.py ---
speed = load(ROOT / "benchmark" / "speed.py", "speed")
curves = load(ROOT / "benchmark" / "cost_curves.py", "cost_curves")


@pytest.fixture(scope="module")
def rows():
    """Of two jobs, hardly measured."""
    args = speed.Args(["SAQ-BC", "BRAC, behaviour"], ["eager", "bf16"], rounds=2, seconds=0.01, rows=100)
    threads = torch.get_num_threads()
    rows = speed.measure(args)
    torch.set_num_threads(threads)
    return rows


def test_all_jobs_and_modes_are_measured(rows, capsys):
    names = [(row["job"], row["mode"]) for row in rows]
    jobs = [(job, mode) for job in ("SAQ-BC", "BRAC, behaviour") for mode in ("eager", "bf16")]
    assert names == [(speed.CORL, "eager"), *jobs]
    for row in rows:
        assert tuple(row) == speed.COLUMNS
        assert 0 < row["lowest"] <= row["updates_per_second"] <= row["highest"]
        assert 0 < row["share_of_peak"] < 1.5
    assert rows[0]["times_corl"] == 1
    speed.show(rows)
    assert "BRAC, behaviour" in capsys.readouterr().out


def test_operations_are_counted():
    """SAQ-BC: forward, and backward but for the gradient of the observations."""
    weights = [11 * 256, 256 * 256, 256 * 16]
    flop = 2 * 256 * (3 * sum(weights) - weights[0])
    assert speed.gflop(speed.Script("SAQ-BC", "eager", 100, "cpu")) == pytest.approx(flop / 1e9)


@pytest.mark.parametrize("job", speed.JOBS)
def test_a_block_is_as_many_updates_of_the_script(job):
    """Of the stage that it says, and they train it."""
    script = speed.Script(job, "eager", 100, "cpu")
    before = [copy.deepcopy(model.state_dict()) for model in script.models]
    assert script.block(1) > 0
    after = [model.state_dict() for model in script.models]
    moved = [not same(old, new) for old, new in zip(before, after, strict=True)]
    stage_comes_first = len(moved) == 1 or script.stage == "quantizer"
    assert moved == ([True] if len(moved) == 1 else [stage_comes_first, not stage_comes_first])


def test_random_data_fits_the_scripts():
    for job, (name, _, _) in speed.JOBS.items():
        script = speed.Script(job, "eager", 50, "cpu")
        assert all(len(array) == 50 for array in script.data)
        assert script.data._fields[:2] == ("obs", "action"), name


def test_the_plot_has_a_bar_for_each_row(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda args: rows)
    speed.main(speed.Args(out=str(tmp_path / "new" / "speed.csv")))
    text = (tmp_path / "new" / "speed.csv").read_text()
    assert text.count("\n") == 6 and text.startswith(",".join(speed.COLUMNS))
    first = (tmp_path / "new" / "speed.svg").read_bytes()
    speed.main(speed.Args(plot=str(tmp_path / "new" / "speed.csv")))
    assert (tmp_path / "new" / "speed.svg").read_bytes() == first
    assert (tmp_path / "new" / "speed.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"jobs": ["SAQ"]}, "no job is called 'SAQ'"),
        ({"modes": ["fast"]}, "no mode is called 'fast'"),
        ({"modes": ["eager", "graph"]}, "needs --device cuda"),
        ({"plot": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_bad_flags_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.main(speed.Args(**flags))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and sentence in error


# --- benchmark/cost_curves.py ---
GROWS = {"codes": "codebook_size", "width": "hidden_dim", "batch": "batch_size", "samples": "num_actions"}


@pytest.mark.parametrize("name", curves.CURVES)
def test_one_thing_grows_at_a_time(name):
    """From what benchmark/speed.py measures."""
    curve = curves.CURVES[name]
    for job in curve.jobs:
        usual = speed.Script(job, "eager", curves.CURVES["rows"].default, "cpu")
        point, other = (curves.script(job, name, value) for value in (curve.default, curve.values[0]))
        usual, point, other = (
            vars(one.args) | {"rows": len(one.data.obs), "actions": one.data.action.shape[1]}
            for one in (usual, point, other)
        )
        grows = "vqvae_hidden_dim" if (job, name) == ("quantizer", "width") else GROWS.get(name, name)
        assert point == usual and other == usual | {grows: curve.values[0]}


def test_curves_from_measuring_to_the_picture(tmp_path, monkeypatch, capsys):
    """The default is measured once for all curves; SAQ-CQL stands beside CQL, and samples nothing."""
    for name, changes in {"actions": [(3, 9), 3], "samples": [(1, 2), 2]}.items():
        changes = dict(zip(("values", "default"), changes, strict=True))
        monkeypatch.setitem(curves.CURVES, name, curves.CURVES[name]._replace(**changes))
    monkeypatch.setitem(curves.CURVES, "rows", curves.CURVES["rows"]._replace(default=100))
    curves.main(curves.Args(["actions", "samples"], 2, 0.001, str(tmp_path / "new" / "curves.csv")))
    with (tmp_path / "new" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = {(row["curve"], row["job"], row["value"]): float(row["updates_per_second"]) for row in rows}
    wanted = [("actions", job, value) for job in curves.CURVES["actions"].jobs for value in "39"]
    wanted += [("samples", job, value) for job in ("CQL", "SAQ-CQL") for value in "12"]
    assert list(points) == wanted
    alone = points["actions", "SAQ-CQL", "3"]
    assert alone == points["samples", "SAQ-CQL", "1"] == points["samples", "SAQ-CQL", "2"]
    for row in rows:
        assert 0 < float(row["lowest"]) <= float(row["updates_per_second"]) <= float(row["highest"])
    assert capsys.readouterr().out.count("samples           2") == 2
    first = (tmp_path / "new" / "curves.svg").read_bytes()
    curves.main(curves.Args(plot=str(tmp_path / "new" / "curves.csv")))
    assert (tmp_path / "new" / "curves.svg").read_bytes() == first
    assert (tmp_path / "new" / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("value, label", [(100, "100"), (4096, "4096"), (10_000, "10k"), (10**6, "1M")])
def test_short_labels(value, label):
    assert curves.short(value) == label


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"curves": ["code"]}, "no curve is called 'code'"),
        ({"rounds": 0}, "--rounds is at least 1"),
        ({"plot": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_bad_flags_of_curves_are_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        curves.main(curves.Args(**flags))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and sentence in error
