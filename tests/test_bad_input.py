"""Bad input: exit code 2, one sentence that says what is wrong, no traceback, nothing written.

Which values, folders and flags are refused: test_runs.py; which files: test_d4rl.py.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from common import HOPPER, PATHS, SCRIPTS, dataset, run_folders, tiny

import d4rl


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


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("script", PATHS)
def test_task_flag_and_run(script, fails, finished, tmp_path):
    """One of each kind of error: a task, a number, a folder, a run of another script."""
    assert "did you mean hopper-medium-v2" in fails(script, "--env-id", "hoper-medium-v2")
    assert "--steps is 0" in fails(script, "--steps", 0)
    other = "saq_iql" if script != "saq_iql" else "saq_bc"
    before = contents(finished(other)[0])
    for flag in ("--resume", "--evaluate"):
        assert "not the folder of a run" in fails(script, flag, tmp_path / "nowhere", place=False)
        assert f"is a run of {other}.py" in fails(script, flag, finished(other)[0], place=False)
    assert contents(finished(other)[0]) == before


def test_missing_and_bad_files(fails, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in place of a folder")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "file"))  # more in test_downloads.py
    said = fails("saq_iql", "--env-id", HOPPER)
    assert str(tmp_path / "file" / "hopper_medium-v2.hdf5") in said and "set D4RL_DATASET_DIR" in said
    for name, message in [("nowhere.hdf5", "no readable file"), ("file", "not an HDF5 file")]:
        assert message in fails("saq_iql", "--env-id", HOPPER, "--dataset-path", tmp_path / name)
    equal = dataset(tmp_path / "equal.hdf5", rewards=np.zeros(300))
    said = fails("saq_iql", "--env-id", HOPPER, "--dataset-path", equal, "--normalize-rewards")
    assert "--no-normalize-rewards" in said or "--reward-scale" in said
    shuffled = dataset(tmp_path / "shuffled.hdf5", next_observations=np.zeros((300, 11)))
    said = fails("baselines/cql", "--env-id", HOPPER, "--dataset-path", shuffled, "--normalize-rewards")
    assert "returns of episodes are not known: give --no-normalize-rewards and a --reward-scale" in said
    endless = dataset(tmp_path / "endless.hdf5", rows=1001, terminals=np.zeros(1001), timeouts=np.zeros(1001))
    assert "no row of 1,001 ends an episode" in fails("saq_bc", "--env-id", HOPPER, "--dataset-path", endless)


def test_runs_dir_that_is_a_file(fails, finished, tmp_path):
    (tmp_path / "file").write_text("mine")
    flags = [*finished("saq_iql")[1], *tiny("saq_iql"), "--runs-dir", tmp_path / "file"]
    assert "file" in fails("saq_iql", *flags, place=False)
    assert (tmp_path / "file").read_text() == "mine"


NUMBERS = {
    "saq_iql": "discount=1.5 reward-scale=0 expectile=1.5 temperature=0 reward-shift=inf eval-every=0",
    "saq_cql": "conservatism=-1 discount=-0.1 reward-scale=0",
    "saq_brac": "behaviour-weight=-1 discount=1.5 reward-scale=0",
    "saq_bc": "embedding-dim=0 seed=-1",
    "baselines/bc": "lr=-1",
    "baselines/cql": "num-actions=0 conservatism=-1 temperature=0 reward-scale=0",
    "baselines/iql": "temperature=0 expectile=1.5 reward-scale=0",
    "baselines/brac": "behaviour-steps=0 num-draws=0 reward-scale=0",
    "baselines/aquadem": "num-candidates=0 softmin=0 dropout=1 temperature=0 reward-scale=0",
}


@pytest.mark.parametrize("script", NUMBERS)
def test_limits(script):
    for flag in NUMBERS[script].split():
        with pytest.raises(d4rl.UsageError, match=f"--{flag.replace('=', ' is ')}.*at least"):
            SCRIPTS[script].parse_args([f"--{flag}"])
    with pytest.raises(d4rl.UsageError, match="--weight-decay 1000 times --lr 0.001 is 1, so .* below 1"):
        SCRIPTS[script].parse_args(["--weight-decay", "1000", "--lr", "0.001"])
    assert SCRIPTS[script].parse_args(["--weight-decay", "999", "--lr", "0.001"]).weight_decay == 999


def test_quantizers_that_do_not_fit(fails, finished, tmp_path):
    """Of other data, of another task, contradicted, and none at all."""
    (quantizer, data), flag = finished("saq_bc"), "--quantizer-from"
    other = ["--env-id", HOPPER, "--dataset-path", dataset(tmp_path / "other.hdf5", seed=1)]
    walker = ["--env-id", "walker2d-medium-v2"]
    walker += ["--dataset-path", dataset(tmp_path / "walker.hdf5", "walker2d-medium-v2")]
    for flags in (other, walker):
        assert "trained on other data" in fails("saq_iql", *flags, flag, quantizer)
    assert "has to stay so" in fails("saq_cql", *data, flag, quantizer, "--codebook-size", 5)
    assert "no finished quantizer" in fails("saq_cql", *data, flag, finished("baselines/bc")[0])


def test_as_a_process(tmp_path):
    command = [sys.executable, PATHS["saq_iql"], "--steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --steps is 0") and done.stderr.count("\n") == 1
    assert not run_folders(Path(tmp_path)) and not list(tmp_path.iterdir())
