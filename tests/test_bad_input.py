"""Bad input: exit code 2, one sentence that says what is wrong, no traceback, nothing written."""

import runpy
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from common import HOPPER, PATHS, SAQ, SCRIPTS, checkpoint, dataset, run, runs, tiny


@pytest.fixture
def fails(tmp_path, monkeypatch, capsys):
    """Run a script as the command line does; return its sentence."""

    def get(script, *flags, place=True):
        where = tmp_path / "new runs"
        command = [PATHS[script], *flags, *(["--runs-dir", where] if place else [])]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(PATHS[script]), run_name="__main__")
        assert exit.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said, said
        assert not where.exists()
        return said

    return get


@pytest.fixture(scope="module")
def lent(tmp_path_factory):
    """Finished tiny runs, and one that stopped in stage 1: {name: folder}, with the flags of their data."""
    folder = tmp_path_factory.mktemp("lent")
    flags = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
    made = {script: run(script, folder, *flags) for script in ("saq_iql", "saq_bc", "baselines/bc")}
    made["unfinished"] = unfinished = folder / "unfinished"
    shutil.copytree(made["saq_iql"], unfinished)
    saved = checkpoint(unfinished)
    del saved["stages"]["learner"]
    saved["stages"]["quantizer"] |= {"finished": False, "step": 10}
    torch.save(saved, unfinished / "checkpoint.pt")
    made["no checkpoint"] = folder / "no_checkpoint"
    made["no checkpoint"].mkdir()
    shutil.copy(made["saq_iql"] / "args.json", made["no checkpoint"])
    return made, flags


# --- the task and its data ---
@pytest.mark.parametrize("script", PATHS)
def test_unknown_task(script, fails):
    assert "did you mean hopper-medium-v2" in fails(script, "--env-id", "hoper-medium-v2")


def test_missing_file(fails, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in place of a folder")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "file"))  # more in test_downloads.py
    said = fails("saq_iql", "--env-id", HOPPER)
    assert str(tmp_path / "file" / "hopper_medium-v2.hdf5") in said and "set D4RL_DATASET_DIR" in said
    assert "nowhere.hdf5" in fails("saq_iql", "--env-id", HOPPER, "--dataset-path", tmp_path / "nowhere.hdf5")


def damaged(path):
    dataset(path, rows=3000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path):
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros(3)


FILES = {
    "truncated": (damaged, "incomplete or damaged"),
    "foreign": (foreign, "lacks observations"),
    "not HDF5": (lambda path: path.write_text("hello"), "not an HDF5 file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "NaN": (lambda path: dataset(path, rewards=np.r_[np.nan, np.zeros(299)]), "NaN or infinite in 1 of 300 rows"),
    "another task": (lambda path: dataset(path, "walker2d-medium-v2"), "did you mean another --env-id"),
    "actions": (lambda path: dataset(path, actions=np.zeros((300, 6))), "did you mean another --env-id"),
    "one row": (lambda path: dataset(path, rows=1), "transition"),
    "one transition": (lambda path: dataset(path, rows=2), "transition"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file(name, fails, tmp_path):
    make, message = FILES[name]
    make(tmp_path / "data.hdf5")
    flags = ["--env-id", HOPPER, "--dataset-path", tmp_path / "data.hdf5", "--reward-scale", 1, *tiny("saq_cql")]
    assert message in fails("saq_cql", *flags)


def test_equal_returns_have_no_scale(fails, tmp_path):
    data = dataset(tmp_path / "data.hdf5", rewards=np.zeros(300))
    assert "--reward-scale 0" in fails("saq_iql", "--env-id", HOPPER, "--dataset-path", data, "--reward-scale", "0")


# --- numbers ---
NUMBERS = [
    *(("saq_iql", f"--{name}", 0) for name in ("steps", "vqvae-steps", "eval-every", "eval-episodes", "batch-size")),
    *(("saq_iql", f"--{name}", 0) for name in ("codebook-size", "embedding-dim", "hidden-dim", "vqvae-hidden-dim")),
    *(("saq_iql", f"--{name}", -1) for name in ("steps", "seed", "threads", "lr", "discount", "temperature")),
    *(("saq_iql", f"--{name}", 1.5) for name in ("discount", "expectile")),
    ("saq_iql", "--temperature", 0),
    *(("saq_iql", f"--{name}", "nan") for name in ("lr", "reward-scale", "temperature", "discount")),
    *(("saq_iql", f"--{name}", "inf") for name in ("lr", "reward-scale", "temperature")),
    ("saq_cql", "--conservatism", -1),
    ("saq_brac", "--behaviour-weight", -1),
    ("saq_bc", "--codebook-size", 0),
    ("baselines/bc", "--steps", 0),
    ("baselines/bc", "--lr", "nan"),
    ("baselines/cql", "--num-actions", 0),
    ("baselines/cql", "--conservatism", -1),
    ("baselines/iql", "--temperature", 0),
    ("baselines/brac", "--behaviour-steps", 0),
    ("baselines/brac", "--num-draws", 0),
    *(("baselines/aquadem", f"--{name}", 0) for name in ("num-candidates", "softmin", "quantizer-steps")),
    ("baselines/aquadem", "--dropout", 1),
]


@pytest.mark.parametrize(("script", "flag", "value"), NUMBERS)
def test_number_out_of_range(script, flag, value, fails):
    assert f"{flag} is {value}" in fails(script, *tiny(script), flag, value)


@pytest.mark.parametrize("script", PATHS)
@pytest.mark.parametrize("flags", [["--steps", "many"], ["--stepps", "3"], ["--device", "tpu"], ["--steps"]])
def test_what_tyro_refuses(script, flags, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        SCRIPTS[script].main(SCRIPTS[script].parse_args(flags))
    said = capsys.readouterr().err
    assert exit.value.code == 2 and flags[0].strip("-") in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("script", PATHS)
def test_no_gpu(script, fails):
    assert "--device cpu" in fails(script, "--device", "cuda")


# --- other runs ---
@pytest.mark.parametrize("script", PATHS)
def test_not_a_run(script, fails, tmp_path):
    (tmp_path / "empty").mkdir()
    for flag in ["--resume", "--evaluate", *(["--vqvae"] if script in SAQ else [])]:
        for folder in ("empty", "nowhere"):
            assert "not the folder of a run" in fails(script, flag, tmp_path / folder, place=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"] and not list((tmp_path / "empty").iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resume_with_a_changed_argument(fails, lent):
    made, _ = lent
    before = contents(made["saq_iql"])
    for flags in (
        ["--steps", 30],
        ["--no-revive"],
        ["--env-id", "walker2d-medium-v2"],
        ["--seed", 1],
        ["--acting", "greedy"],
    ):
        said = fails("saq_iql", "--resume", made["saq_iql"], *flags, place=False)
        assert "has to stay so" in said and flags[0].replace("--no-", "--") in said
    for flags in (["--evaluate", made["saq_iql"]], ["--runs-dir", "elsewhere"], ["--vqvae", made["saq_bc"]]):
        assert flags[0] in fails("saq_iql", "--resume", made["saq_iql"], *flags, place=False)
    for flags in (["--expectile", 0.123], ["--steps", 30], ["--codebook-size", 4]):
        assert flags[0] in fails("saq_iql", "--evaluate", made["saq_iql"], *flags, place=False)
    assert contents(made["saq_iql"]) == before


@pytest.mark.parametrize("script", PATHS)
def test_run_of_another_script(script, fails, lent):
    made, _ = lent
    other = "saq_iql" if script != "saq_iql" else "saq_bc"
    before = contents(made[other])
    for flag in ("--resume", "--evaluate"):
        assert f"is a run of {other}.py" in fails(script, flag, made[other], place=False)
    assert contents(made[other]) == before


def test_unfinished_run(fails, lent):
    made, data = lent
    for name in ("unfinished", "no checkpoint"):
        before = contents(made[name])
        assert "--resume" in fails("saq_iql", "--evaluate", made[name], place=False)
        assert "--resume" in fails("saq_iql", *data, "--vqvae", made[name], *tiny("saq_iql"))
        assert contents(made[name]) == before


def test_quantizer_of_other_data(fails, lent, tmp_path):
    made, _ = lent
    other = dataset(tmp_path / "other.hdf5", seed=1)
    flags = ["--env-id", HOPPER, "--dataset-path", other, "--vqvae", made["saq_bc"]]
    assert "trained on other data" in fails("saq_iql", *flags)
    walker = dataset(tmp_path / "walker.hdf5", "walker2d-medium-v2")
    flags = ["--env-id", "walker2d-medium-v2", "--dataset-path", walker, "--vqvae", made["saq_bc"]]
    assert "trained on other data" in fails("saq_iql", *flags)


def test_quantizer_contradicted(fails, lent):
    made, data = lent
    flags = (
        ["--codebook-size", 5],
        ["--no-revive"],
        ["--vqvae-steps", 7],
        ["--codebook-form", "paper"],
        ["--embedding-dim", 3],
    )
    for flag in flags:
        said = fails("saq_cql", *data, "--vqvae", made["saq_bc"], *flag)
        assert "has to stay so" in said and flag[0].replace("--no-", "--") in said


def test_no_quantizer_in_that_run(fails, lent):
    made, data = lent
    assert "quantizer" in fails("saq_cql", *data, "--vqvae", made["baselines/bc"])


FOREIGN = [b"[1, 2]", b"{}", b'{"script": "saq_iql", "stepps": 3}', b"\xff\xfe", b"{"]


@pytest.mark.parametrize(
    ("flag", "content"), [*((f, c) for f in ("--resume", "--evaluate") for c in FOREIGN), ("--vqvae", FOREIGN[0])]
)
def test_foreign_args_json(flag, content, fails, lent, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(lent[0]["saq_iql"], folder)
    (folder / "args.json").write_bytes(content)
    assert str(folder) in fails("saq_iql", flag, folder, place=False)


def test_runs_dir_that_is_a_file(fails, lent, tmp_path):
    _, data = lent
    (tmp_path / "file").write_text("mine")
    assert "file" in fails("saq_iql", *data, *tiny("saq_iql"), "--runs-dir", tmp_path / "file", place=False)
    assert (tmp_path / "file").read_text() == "mine"


# --- as a process ---
@pytest.mark.parametrize("flags", [["--env-id", "nothing"], ["--steps", "0"]])
def test_as_a_process(flags, tmp_path):
    command = [sys.executable, PATHS["saq_iql"], *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not runs(tmp_path) and not list(tmp_path.iterdir())
