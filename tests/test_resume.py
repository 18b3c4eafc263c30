"""A run that is killed and resumed ends like one that was never interrupted, to the last bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
from common import HOPPER, PATHS, SCRIPTS, checkpoint, dataset, metrics, play, result, run, runs, same, tiny

LONG = {"steps": 150, "eval_every": 10, "episodes": 1}  # fifteen checkpoints per stage, about a second


def assert_same_run(ours, unbroken):
    """Weights, optimizers, generators, metrics, results: everything but the time that it took."""
    for name, state in checkpoint(unbroken)["stages"].items():
        resumed = checkpoint(ours)["stages"][name]
        assert {**resumed, "seconds": 0}.keys() >= {"model", "optimizer", "generator", "step", "finished"}
        assert same({**resumed, "seconds": 0}, {**state, "seconds": 0}), f"{name} differs"
    assert checkpoint(ours)["stages"].keys() == checkpoint(unbroken)["stages"].keys()
    assert metrics(ours) == metrics(unbroken)
    assert {**result(ours), "seconds": 0} == {**result(unbroken), "seconds": 0}
    assert result(ours)["seconds"].keys() == result(unbroken)["seconds"].keys()


def kill_when(script, folder, flags, reached):
    """Start the script as a process of its own, kill it as soon as `reached(its folder)`; return the folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("w") as log:
        command = [sys.executable, PATHS[script], *flags, "--runs-dir", folder]
        process = subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)
        deadline = time.time() + 120
        while not (runs(folder) and reached(runs(folder)[0])):
            assert process.poll() is None and time.time() < deadline, (folder / "log").read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    return runs(folder)[0]


def rows(stage, count):
    """Whether metrics.csv has `count` rows of the stage."""

    def reached(folder):
        path = folder / "metrics.csv"
        return path.exists() and path.read_text().count(f"\n{stage},") >= count

    return reached


KILLS = {
    "saq_iql": ("quantizer", 2),
    "saq_cql": ("learner", 2),
    "saq_brac": ("quantizer", 3),
    "saq_bc": ("learner", 3),
    "baselines/aquadem": ("quantizer", 2),
    "baselines/brac": ("behaviour", 2),
}


@pytest.mark.parametrize("script", PATHS)
def test_resume_after_sigkill(script, tmp_path):
    stage, count = KILLS.get(script, ("learner", 2))
    flags = ["--env-id", HOPPER, "--dataset-path", dataset(tmp_path / "data.hdf5"), *tiny(script, **LONG)]
    killed = kill_when(script, tmp_path, flags, rows(stage, count))
    stages = checkpoint(killed)["stages"]
    assert stages[stage]["step"] > 0 and not stages[stage]["finished"], "killed too late"
    assert ("learner" in stages) == (stage == "learner")
    play(script, "--resume", killed)
    (tmp_path / "unbroken").mkdir()
    play(script, *flags, "--runs-dir", tmp_path / "unbroken")
    assert_same_run(killed, runs(tmp_path / "unbroken")[0])


def test_resume_after_sigkill_before_the_first_checkpoint(tmp_path):
    flags = ["--env-id", HOPPER, "--dataset-path", dataset(tmp_path / "data.hdf5")]
    flags += tiny("saq_bc", steps=150, eval_every=150, episodes=1)
    killed = kill_when("saq_bc", tmp_path, flags, lambda folder: (folder / "args.json").exists())
    assert not (killed / "checkpoint.pt").exists() or not checkpoint(killed)["stages"], "killed too late"
    play("saq_bc", "--resume", killed)
    (tmp_path / "unbroken").mkdir()
    play("saq_bc", *flags, "--runs-dir", tmp_path / "unbroken")
    assert_same_run(killed, runs(tmp_path / "unbroken")[0])


# --- a kill in the middle of every file ---
class Killed(BaseException):
    """Nothing may catch it, as nothing can catch SIGKILL."""


def break_write(monkeypatch, module, number):
    """The `number`-th file that the script writes is left half written, under its temporary name."""
    whole, count = module.write, [0]

    def write(path, content):
        count[0] += 1
        if count[0] == number:
            path.with_suffix(".tmp").write_bytes(content[: len(content) // 2])
            raise Killed
        whole(path, content)

    monkeypatch.setattr(module, "write", write)
    return count


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished tiny run per script, made when first asked for, and its flags."""
    made = {}

    def get(script):
        if script not in made:
            folder = tmp_path_factory.mktemp(script.replace("/", "_"))
            flags = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
            made[script] = run(script, folder, *flags), flags
        return made[script]

    return get


def writes(script, folder, flags, monkeypatch):
    """How many files a whole run writes. The last three: checkpoint and metrics.csv of its end, result.json."""
    with monkeypatch.context() as patch:
        count = break_write(patch, SCRIPTS[script], number=-1)
        run(script, folder, *flags)
    return count[0]


def check_kill(script, number, whole, flags, folder, monkeypatch):
    """Break the `number`-th write, resume, compare with the whole run."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        break_write(patch, SCRIPTS[script], number)
        run(script, folder, *flags)
    (killed,) = runs(folder)
    assert list(killed.glob("*.tmp")) and not (killed / "result.json").exists()
    play(script, "--resume", killed)
    assert_same_run(killed, whole)


@pytest.mark.parametrize("script", PATHS)
def test_resume_after_a_kill_during_a_write(script, unbroken, tmp_path, monkeypatch):
    """Every write but that of args.json, without which there is nothing to resume; some only for three scripts."""
    whole, flags = unbroken(script)
    count = writes(script, tmp_path, flags, monkeypatch)
    numbers = range(2, count + 1) if script in ("saq_iql", "baselines/bc") else (count // 2, count - 1)
    for number in numbers:
        check_kill(script, number, whole, flags, tmp_path / str(number), monkeypatch)


def test_two_kills(unbroken, tmp_path, monkeypatch):
    whole, flags = unbroken("saq_cql")
    count = writes("saq_cql", tmp_path, flags, monkeypatch)
    for second in (3, 5, 7):
        folder = tmp_path / str(second)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            break_write(patch, SCRIPTS["saq_cql"], count - 6)  # the last checkpoint of stage 1
            run("saq_cql", folder, *flags)
        (killed,) = runs(folder)
        assert checkpoint(killed)["stages"]["quantizer"]["step"] == 10
        with monkeypatch.context() as patch, pytest.raises(Killed):
            break_write(patch, SCRIPTS["saq_cql"], second)
            play("saq_cql", "--resume", killed)
        play("saq_cql", "--resume", killed)
        assert_same_run(killed, whole)


@pytest.mark.parametrize("script", PATHS)
def test_resuming_a_finished_run_changes_nothing(script, unbroken):
    whole, _ = unbroken(script)
    before = result(whole), metrics(whole), checkpoint(whole)
    assert play(script, "--resume", whole) == before[0]["score"]
    after = result(whole), metrics(whole), checkpoint(whole)
    assert same(before, after)


def test_resume_with_a_borrowed_quantizer(unbroken, tmp_path, monkeypatch):
    lender, flags = unbroken("saq_bc")
    whole = run("saq_iql", tmp_path / "whole", *flags, "--vqvae", lender)
    for number in (2, 4):  # before the first checkpoint, and after it
        check_kill("saq_iql", number, whole, [*flags, "--vqvae", lender], tmp_path / str(number), monkeypatch)
