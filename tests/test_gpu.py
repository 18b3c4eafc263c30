"""On a machine with a GPU: updates that are replayed, runs that are killed and resumed, or moved."""

import io
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from common import (
    PATHS,
    ROOT,
    SCRIPTS,
    assert_same_run,
    checkpoint,
    play,
    result,
    run,
    run_folders,
    same,
    tiny,
)
from test_resume import STAGES, kill_in

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")


def on(device):
    return ["--device", device]


@pytest.mark.parametrize("script", PATHS)
def test_trains_plays_and_loads(script, tmp_path):
    folder = run(script, tmp_path, *on("cuda"))
    assert play(script, "--evaluate", folder, *on("cuda")) == result(folder)["score"]
    SCRIPTS[script].load(folder)(np.zeros(11))  # on the CPU


@pytest.mark.parametrize("anneal", ["--anneal-lr", "--no-anneal-lr"])
@pytest.mark.parametrize("script", PATHS)
def test_a_replayed_update_is_the_update(script, anneal, tmp_path):
    """Bit for bit, with noise and learning rates."""
    eager = run(script, tmp_path / "eager", *on("cuda"), anneal, "--no-cuda-graph")
    assert_same_run(run(script, tmp_path / "graph", *on("cuda"), anneal), eager)


WAITS = """
import sys, saq_bc
loss = saq_bc.learner_loss

def waits(*arguments):
    value, metrics = loss(*arguments)
    return value * value.item(), metrics

saq_bc.learner_loss = waits
saq_bc.runs.guard(saq_bc.main, saq_bc.parse_args)
"""


def test_an_update_that_waits_for_the_gpu_is_refused(tmp_path):
    """In a process of its own: a recording that fails leaves PyTorch's random state in the middle of it."""
    command = [
        sys.executable,
        "-c",
        WAITS,
        *tiny("saq_bc", episodes=1),
        *on("cuda"),
        "--runs-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--no-cuda-graph" in done.stderr.splitlines()[-1], done.stderr
    assert subprocess.run([*command, "--no-cuda-graph"], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(("script", "stage"), STAGES)
def test_resume_on_the_gpu(script, stage, tmp_path, monkeypatch):
    """Killed between two checkpoints and resumed: bit for bit the run that was never interrupted."""
    unbroken = run(script, tmp_path / "unbroken", *on("cuda"))
    folder = kill_in(script, stage, 15, monkeypatch, run, tmp_path, *on("cuda"))
    assert checkpoint(folder)["stages"][stage]["device"] == "cuda"
    play(script, "--resume", folder)
    assert_same_run(folder, unbroken)


def test_sigkill_on_the_gpu(tmp_path):
    """In a process of its own."""
    flags = [*tiny("saq_iql", steps=150, episodes=1), *on("cuda")]
    unbroken = run("saq_iql", tmp_path / "unbroken", *flags)
    flags += ["--env-id", "hopper-medium-v2", "--dataset-path", tmp_path / "unbroken" / "data.hdf5"]
    command = [sys.executable, PATHS["saq_iql"], *flags, "--runs-dir", tmp_path]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
        table, deadline = tmp_path / "nothing yet", time.time() + 300
        while not (table.exists() and table.read_text().count("\nlearner,") >= 2):
            assert process.poll() is None and time.time() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.002)
            table = next((folder / "metrics.csv" for folder in run_folders(tmp_path)), table)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (killed,) = run_folders(tmp_path)
    assert not checkpoint(killed)["stages"]["learner"]["finished"], "killed too late"
    play("saq_iql", "--resume", killed)
    assert_same_run(killed, unbroken)


@pytest.mark.parametrize(("before", "after"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize(("script", "stage"), STAGES)
def test_run_moves_to_another_device(script, stage, before, after, tmp_path, monkeypatch):
    """What is learned goes on, batches are drawn anew, the same ones each time; then it plays on both."""
    folder = kill_in(script, stage, 15, monkeypatch, run, tmp_path, *on(before))
    before_move = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")
    saved, rows = before_move["stages"][stage], before_move["history"]
    restore, restored = SCRIPTS[script].runs.Run.restore, []

    def note(self, name, model, optimizer, generator):
        step = restore(self, name, model, optimizer, generator)
        if name == stage:
            buffer = io.BytesIO()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
            buffer.seek(0)
            restored.append(torch.load(buffer, weights_only=True, map_location="cpu") | {"step": step})
        return step

    copy = shutil.copytree(folder, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPTS[script].runs.Run, "restore", note)
        play(script, "--resume", folder, *on(after))
    assert same(restored, [{name: saved[name] for name in ("model", "optimizer", "step")}])
    assert saved["step"] == 10 and checkpoint(folder)["history"][: len(rows)] == rows
    stages = checkpoint(folder)["stages"]
    assert stages[stage]["device"] == stages["learner"]["device"] == after and stages["learner"]["finished"]
    play(script, "--resume", copy, *on(after))
    assert_same_run(copy, folder)
    for device in ("cpu", "cuda"):
        assert -100 < play(script, "--evaluate", folder, *on(device)) < 100
