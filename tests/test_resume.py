"""A run that is killed and resumed ends like one that was never interrupted, to the last bit.

What a kill does to the files of a run is in test_runs.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from common import (
    FIRST_STAGE,
    PATHS,
    SCRIPTS,
    Killed,
    assert_same_run,
    checkpoint,
    metrics,
    play,
    result,
    run,
    run_folders,
    same,
    tiny,
)

STAGES = [(script, "learner") for script in PATHS] + list(FIRST_STAGE.items())


def kill_in(script, stage, updates, monkeypatch, start, *arguments):
    """Start a run of the script that dies after so many updates of the stage; return its folder."""
    restore, log = SCRIPTS[script].runs.Run.restore, SCRIPTS[script].runs.Run.log
    counted = []

    def restore_and_note(self, name, *rest):
        counted[:] = [0] * restore(self, name, *rest)
        self.stage = name
        return len(counted)

    def log_or_die(self, *metrics):
        log(self, *metrics)
        counted.append(0)
        if (self.stage, len(counted)) == (stage, updates):
            raise Killed(self.folder)

    with monkeypatch.context() as patch, pytest.raises(Killed) as killed:
        patch.setattr(SCRIPTS[script].runs.Run, "restore", restore_and_note)
        patch.setattr(SCRIPTS[script].runs.Run, "log", log_or_die)
        start(script, *arguments)
    return killed.value.args[0]


@pytest.mark.parametrize(("script", "stage"), STAGES)
def test_resume(script, stage, finished, tmp_path, monkeypatch):
    """Killed between two checkpoints of each stage."""
    unbroken, flags = finished(script)
    folder = kill_in(script, stage, 15, monkeypatch, run, tmp_path, *flags)
    assert checkpoint(folder)["stages"][stage]["step"] == 10 and not (folder / "result.json").exists()
    play(script, "--resume", folder)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("stage", ["quantizer", "learner"])
def test_resume_before_a_stage_and_twice(stage, finished, tmp_path, monkeypatch):
    """Before the stage's first checkpoint, then again; stage 2 with the quantizer of another run."""
    unbroken, flags = finished("saq_cql")
    if stage == "learner":
        flags = [*flags, "--quantizer-from", finished("saq_bc")[0]]
    folder = kill_in("saq_cql", stage, 5, monkeypatch, run, tmp_path, *flags)
    for updates in (7, 12):
        assert folder == kill_in("saq_cql", "learner", updates, monkeypatch, play, "--resume", folder)
    play("saq_cql", "--resume", folder)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("script", PATHS)
def test_resuming_a_finished_run_changes_nothing(script, finished):
    folder, _ = finished(script)
    before = result(folder), metrics(folder), checkpoint(folder)
    assert play(script, "--resume", folder) == before[0]["score"]
    assert same(before, (result(folder), metrics(folder), checkpoint(folder)))


def test_sigkill(finished, tmp_path):
    """A process of its own, killed in stage 2 without a word."""
    flags = [*finished("saq_iql")[1], *tiny("saq_iql", steps=150, episodes=1)]  # some fifteen checkpoints
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, PATHS["saq_iql"], *flags, "--runs-dir", tmp_path]
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
        table, deadline = tmp_path / "nothing yet", time.time() + 120
        while not (table.exists() and table.read_text().count("\nlearner,") >= 2):
            assert process.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.002)
            table = next((folder / "metrics.csv" for folder in run_folders(tmp_path)), table)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (killed,) = run_folders(tmp_path)
    assert not checkpoint(killed)["stages"]["learner"]["finished"], "killed too late"
    play("saq_iql", "--resume", killed)
    play("saq_iql", *flags, "--runs-dir", tmp_path / "unbroken")
    assert_same_run(killed, run_folders(tmp_path / "unbroken")[0])
