"""--num-seeds: each seed is the run that its own command makes; none is lost or outlives the command.

`seeds` is a global of this file: test_mutations.py puts altered copies in its place.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import HOPPER, ROOT, SCRIPTS, assert_same_run, dataset, play, run, run_folders, tiny
from scipy import stats

import d4rl
from d4rl import runs, seeds

# What a script looks like from outside. Of seed 1 there is no result, and seed 3 never ends.
TOY = """
import json, os, sys, time
from pathlib import Path

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))  # the last of equal ones
seed, place = int(flags["--seed"]), Path(flags["--runs-dir"])
begin = time.time()
if flags["--fails"] == "early":
    print("error: no such task; see the list.", file=sys.stderr)
    sys.exit(2 if seed < 6 else 1)
folder = place / f"task__toy__{seed}__now"
folder.mkdir()
print("error: what a library may say of no matter")
print(folder)
sys.stdout.flush()
if seed == 1:
    print("learner:  30%|###     | 3/10", end="", file=sys.stderr, flush=True)
    if flags["--fails"] == "sentence":
        print("error: loss is nan by update 7; a smaller --lr may help.", file=sys.stderr)
        sys.exit(2)
    raise SystemExit(7)
while seed == 3:
    (folder / "beat").write_text(str(time.time()))
    time.sleep(0.05)
while flags["--fails"] == "alone" and len(list(place.glob("task__toy__*"))) < 3:
    assert time.time() < begin + 60
    time.sleep(0.05)
words = {name: os.environ.get(name) for name in ("D4RL_PROCESSES", "PYTHONUNBUFFERED")}
told = {"at_once": len(list(place.glob("*.log"))), "flags": flags}
(folder / "result.json").write_text(json.dumps({"score": 10.0 * seed} | told | words))
print(f"score {10 * seed}")
"""


def train(tmp_path, monkeypatch, seed, num_seeds, fails="sentence"):
    """What `seeds.train` makes of such a script; runs are in tmp_path."""
    (tmp_path / "toy.py").write_text(TOY)
    words = ["--seed", seed, "--num-seeds", num_seeds, "--runs-dir", tmp_path, "--fails", fails]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "toy.py"), *map(str, words)])
    asked = dict(seed=seed, num_seeds=num_seeds, threads=1, device="cpu", runs_dir=str(tmp_path))
    seeds.train(SimpleNamespace(env_id="a/task", **asked))


def results(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


# --- the same runs ---
def test_the_runs_of_single_commands(tmp_path):
    """To the last bit, in folders beside each other, each with what was printed; then the mean."""
    data = ["--env-id", HOPPER, "--dataset-path", str(dataset(tmp_path / "data.hdf5"))]
    flags = [*data, *tiny("saq_iql"), "--seed", "7"]
    many = ["--num-seeds", "3", "--runs-dir", str(tmp_path / "many")]
    command = [sys.executable, ROOT / "saq_iql.py", *flags, *many]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr
    single = [run("saq_iql", tmp_path / "single", *flags, "--seed", str(7 + i)) for i in range(3)]
    found = run_folders(tmp_path / "many")
    scores, lines = [], done.stdout.splitlines()
    for ours, alone in zip(found, single, strict=True):
        assert_same_run(ours, alone)
        args, wanted = (json.loads((folder / "args.json").read_text()) for folder in (ours, alone))
        assert args == wanted | {"runs_dir": str(tmp_path / "many")} and args["num_seeds"] == 1
        scores.append(json.loads((ours / "result.json").read_text())["score"])
        assert f"seed {args['seed']}: {scores[-1]:.1f}  {ours}" in lines
        log = (ours / "log.txt").read_text()
        assert f"\n{ours}\n" in log and "learner: 100%" in log and log.endswith(f"episodes; {ours}\n")
    assert sorted((tmp_path / "many").iterdir()) == found  # no log beside them any more
    a, b, c = scores
    mean = (a + b + c) / 3
    reach = 4.302653 * (((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2 / 3) ** 0.5
    interval = f"95 % interval {mean - reach:.1f} to {mean + reach:.1f} (Student's t)"
    assert lines[-1] == f"score {mean:.1f}, mean of 3 seeds; {interval}" and a != b


def test_summary():
    """7, 9 and 14: mean 10, standard deviation sqrt(13), of the mean sqrt(13 / 3) = 2.0817."""
    interval = "95 % interval 1.0 to 19.0 (Student's t)"  # 4.3027 * 2.0817 = 8.957 to each side
    assert seeds.summary([7.0, 9.0, 14.0], 3) == f"score 10.0, mean of 3 seeds; {interval}"
    assert seeds.summary([9.0, 7.0, 14.0], 5) == f"score 10.0, mean of 3 of 5 seeds; {interval}"
    assert seeds.summary([7.0], 2) == "score 7.0, mean of 1 of 2 seeds"


def test_student_t():
    for freedom in [1, 2, 3, 4, 9, 99, 999]:
        assert seeds.student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


# --- at a time ---
def test_at_a_time(tmp_path, monkeypatch):
    """One after the other on one core; on a GPU four at most; simulators share the cores."""
    monkeypatch.setattr(seeds, "_cores", lambda: 1)
    train(tmp_path, monkeypatch, 4, 3)
    played = results(tmp_path)
    assert [one["at_once"] for one in played] == [1, 1, 1]
    assert {one["D4RL_PROCESSES"] for one in played} == {"2"} and played[0]["PYTHONUNBUFFERED"] == "1"
    assert [one["flags"]["--seed"] for one in played] == ["4", "5", "6"]
    assert {one["flags"]["--num-seeds"] for one in played} == {"1"}

    def jobs(cores, **changes):
        monkeypatch.setattr(seeds, "_cores", lambda: cores)
        return seeds.at_a_time(SimpleNamespace(**dict(num_seeds=99, threads=1, device="cpu") | changes))

    assert (jobs(8), jobs(8, threads=3), jobs(2, threads=3), jobs(8, num_seeds=5)) == (8, 2, 1, 5)
    assert (jobs(8, device="cuda"), jobs(2, device="cuda"), jobs(8, device="cuda", num_seeds=3)) == (4, 2, 3)


def test_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "_cores", lambda: 3)
    monkeypatch.setenv("D4RL_PROCESSES", "7")
    train(tmp_path, monkeypatch, 4, 3, fails="alone")  # each waits for the others
    assert [one["D4RL_PROCESSES"] for one in results(tmp_path)] == 3 * ["7"]  # the user's word counts


# --- what goes wrong ---
@pytest.mark.parametrize("fails", ["sentence", "trace"])
def test_a_seed_that_fails(fails, tmp_path, monkeypatch, capsys):
    """The others go on; the mean is that of the others, and the error says why, or how to go on."""
    with pytest.raises(d4rl.UsageError) as error:
        train(tmp_path, monkeypatch, 0, 3, fails)
    folder = tmp_path / "task__toy__1__now"
    why = "loss is nan by update 7; a smaller --lr may help"
    if fails == "trace":
        command = shlex.join(["python", str(tmp_path / "toy.py"), "--resume", str(folder)])
        why = f"exit code 7; go on with: {command}"
    assert str(error.value) == f"1 of 3 seeds failed: seed 1: {why}"
    lines = capsys.readouterr().out.splitlines()
    assert f"seed 1: failed  {folder / 'log.txt'}" in lines
    assert f"seed 2: 20.0  {tmp_path}/task__toy__2__now" in lines
    assert lines[-1].startswith("score 10.0, mean of 2 of 3 seeds; 95 % interval -117.1 to 137.1")
    assert (folder / "log.txt").read_text().startswith("error: what a library may say of no matter\n")


def test_all_fail(tmp_path, monkeypatch, capsys):
    """Before they have a folder: their logs stay beside; what is wrong with several is said once."""
    with pytest.raises(d4rl.UsageError) as error:
        train(tmp_path, monkeypatch, 4, 3, "early")
    command = shlex.join(["python", *sys.argv, "--num-seeds", "1", "--seed", "6"])
    alike = "seed 4, 5: no such task; see the list"
    assert str(error.value) == f"3 of 3 seeds failed: {alike}; seed 6: exit code 1; go on with: {command}"
    logs = sorted(tmp_path.glob("a-task__toy__*__*.log"))
    assert [log.read_text() for log in logs] == 3 * ["error: no such task; see the list.\n"]
    output = capsys.readouterr().out
    assert f"seed 4: failed  {logs[0]}\n" in output and "score" not in output


def test_bad_input_is_said_once(tmp_path, monkeypatch):
    flags = ["--dataset-path", "none.hdf5", "--num-seeds", "2", "--runs-dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "saq_bc.py"), *flags])
    with pytest.raises(d4rl.UsageError) as error:
        seeds.train(SCRIPTS["saq_bc"].parse_args())
    assert str(error.value).startswith(
        "2 of 2 seeds failed: seed 0, 1: There is no readable file none.hdf5: "
    )


def test_flags_that_do_not_go_together(finished, tmp_path, capsys):
    """One run is resumed or played; `main` trains one; a folder for the logs has to be there."""
    folder, _ = finished("saq_iql")
    module = SCRIPTS["saq_iql"]
    for flag in ("--resume", "--evaluate"):
        with pytest.raises(d4rl.UsageError, match=f"--num-seeds is 2, but 1 in {folder}.*leave the flag out"):
            module.parse_args([flag, str(folder), "--num-seeds", "2"])
    for value in ("0", "1001"):
        with pytest.raises(d4rl.UsageError, match=f"--num-seeds is {value}; it has to be at least 1"):
            module.parse_args(["--num-seeds", value])
    args = module.parse_args(["--quantizer-from", str(folder), "--num-seeds", "2", "--track"])
    assert args.num_seeds == 2
    with pytest.raises(d4rl.UsageError, match="num_seeds is 2, but `main` trains one seed"):
        play("saq_iql", "--num-seeds", "2", "--runs-dir", tmp_path)
    (tmp_path / "file").touch()
    usual = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        runs.guard(None, lambda: replace(args, runs_dir=str(tmp_path / "file")))
    signal.signal(signal.SIGTERM, usual)
    assert exit.value.code == 2 and not run_folders(tmp_path)
    assert "file: no folder can be made there (File exists); name another one." in capsys.readouterr().err


# --- the end of the parent ---
PARENT = """
import signal, sys
sys.argv = sys.argv[1:]
from types import SimpleNamespace
from d4rl import runs, seeds
seeds._cores = lambda: 2
args = SimpleNamespace(env_id="task", runs_dir=sys.argv[-1], seed=2, num_seeds=4, threads=1, device="cpu")
runs.guard(None, lambda: args)
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_signals(sent, tmp_path):
    """None outlives the parent, and it says how each goes on, those too that had not begun."""
    (tmp_path / "toy.py").write_text(TOY.replace("seed == 3:", "seed in (3, 4):"))
    words = [tmp_path / "toy.py", "--seed", "2", "--fails", "no", "--runs-dir", tmp_path]
    command = [sys.executable, "-c", PARENT, *words]
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(list(map(str, command)), env=environment, **settings)
    deadline = time.time() + 120
    while not all((tmp_path / f"task__toy__{seed}__now" / "beat").exists() for seed in (3, 4)):
        assert parent.poll() is None and time.time() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "task__toy__5__now").exists()
    if sent == "SIGINT":  # as a terminal sends it
        os.killpg(parent.pid, signal.SIGINT)
    else:
        parent.send_signal(getattr(signal, sent))
    output, error = parent.communicate(timeout=60)
    assert parent.returncode == {"SIGINT": -2, "SIGTERM": 143, "SIGKILL": -9}[sent]
    assert "Traceback" not in error
    time.sleep(0.5)
    before = [(path, path.read_text()) for path in sorted(tmp_path.glob("*/beat"))]
    time.sleep(0.5)
    assert len(before) == 2 and all(path.read_text() == beat for path, beat in before)
    if sent != "SIGKILL":
        assert f"seed 2: 20.0  {tmp_path}/task__toy__2__now\n" in output
        script = f"python {tmp_path}/toy.py"
        resumed = [f"seed {i}: go on with: {script} --resume {tmp_path}/task__toy__{i}__now" for i in (3, 4)]
        flags = f"--seed 2 --fails no --runs-dir {tmp_path} --num-seeds 1 --seed 5"
        assert error.splitlines() == [*resumed, f"seed 5: go on with: {script} {flags}", "stopped."]
        assert (tmp_path / "task__toy__3__now" / "log.txt").exists()
