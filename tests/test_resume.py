"""A run that is killed and resumed ends like one that was never interrupted, to the last bit.

What a kill does to the files of a run is in test_runs.py.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from common import (
    FIRST_STAGE,
    HOPPER,
    PATHS,
    SCRIPTS,
    Killed,
    assert_same_run,
    checkpoint,
    dataset,
    metrics,
    play,
    result,
    run,
    run_folders,
    same,
    tiny,
)

import d4rl

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


@pytest.mark.parametrize("script", PATHS)
def test_longer(script, tmp_path):
    """A finished run goes on to more steps; not where a learning rate falls, as that of IQL's policy."""
    flags = "--env-id", HOPPER, "--dataset-path", dataset(tmp_path / "data.hdf5"), "--no-anneal-lr"
    wanted = run(script, tmp_path / "wanted", *flags)
    folder = run(script, tmp_path, *flags, "--steps", 10)
    longer = "--resume", folder, "--steps", 20
    if script == "baselines/iql":
        with pytest.raises(d4rl.UsageError, match="has to stay 10: the learning rate of .* falls"):
            play(script, *longer)
    else:
        play(script, *longer)
        assert_same_run(folder, wanted)
    folder = run(script, tmp_path, *flags, "--steps", 10, "--anneal-lr")
    with pytest.raises(d4rl.UsageError, match="has to stay 10: the learning rate of .* falls"):
        play(script, "--resume", folder, "--steps", 20)


def test_moved_data_and_other_data(tmp_path, monkeypatch):
    """--dataset-path may change on --resume and stays changed, the data may not."""
    other = dataset(tmp_path / "other.hdf5", rewards=np.arange(300.0))
    folder = kill_in("saq_iql", "learner", 15, monkeypatch, run, tmp_path)
    moved = (tmp_path / "data.hdf5").rename(tmp_path / "moved.hdf5")
    unbroken = run("saq_iql", tmp_path / "unbroken")
    with pytest.raises(d4rl.UsageError, match="data.hdf5"):
        play("saq_iql", "--resume", folder)
    with pytest.raises(d4rl.UsageError, match="trained on other data than what is there now"):
        play("saq_iql", "--resume", folder, "--dataset-path", other)
    flags = "--env-id", HOPPER, "--dataset-path", other, *tiny("saq_cql"), "--runs-dir", tmp_path / "taken"
    play("saq_cql", "--quantizer-from", folder, *flags)  # it never saw a reward
    play("saq_iql", "--resume", folder, "--dataset-path", moved)
    assert_same_run(folder, unbroken)
    play("saq_iql", "--resume", folder)
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 3)).astype(np.float32)
    other = dataset(tmp_path / "actions.hdf5", actions=actions)  # for the same states
    with pytest.raises(d4rl.UsageError, match="the quantizer in .* was trained on other data"):
        play("saq_cql", "--quantizer-from", folder, *flags[:2], "--dataset-path", other, *flags[4:])


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_signals(sent, finished, tmp_path):
    """A process of its own, stopped in stage 2: without a word, or with one line."""
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
        process.send_signal(sent)
        assert process.wait(60) == (128 + sent if sent == signal.SIGTERM else -sent)  # -2: a shell says 130
    (killed,) = run_folders(tmp_path)
    if sent != signal.SIGKILL:
        *_, bar, line = (tmp_path / "log").read_text().rstrip("\n").split("\n")
        assert line == f"stopped; go on with: python {PATHS['saq_iql']} --resume {killed}"
        assert "learner:" in bar
    assert not checkpoint(killed)["stages"]["learner"]["finished"], "killed too late"
    play("saq_iql", "--resume", killed)
    play("saq_iql", *flags, "--runs-dir", tmp_path / "unbroken")
    assert_same_run(killed, run_folders(tmp_path / "unbroken")[0])
