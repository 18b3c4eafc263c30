"""`python -m d4rl`: its table, its exit codes, and what it says of a file, against what was put into the file."""

import dataclasses
import hashlib
import subprocess
import sys

import h5py
import numpy as np
import pytest
from common import HOPPER, dataset

import d4rl
from d4rl import __main__, downloads, tasks

RELOCATE = "relocate-human-v1"  # nobody has published its checksum


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command; returns (exit code, stdout, stderr). No server can be reached."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path / "robomimic"))
    for module, name in ((tasks, "D4RL"), (downloads, "MIRROR"), (tasks, "ROBOMIMIC")):
        monkeypatch.setattr(module, name, "http://127.0.0.1:1/")
    (tmp_path / "datasets").mkdir()
    downloads._say.cache_clear()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["d4rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            __main__.main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def place(env_id, monkeypatch, **changes):
    """Put a file where the task's belongs, and publish its size and checksum."""
    path = dataset(d4rl.task(env_id).default_path, env_id, **changes)
    contents = path.read_bytes()
    spec = dataclasses.replace(d4rl.task(env_id), bytes=len(contents), sha256=hashlib.sha256(contents).hexdigest())
    monkeypatch.setitem(tasks.TASKS, env_id, spec)
    return path


# --- list ---
def test_list(cli):
    code, out, err = cli("list")
    table, _, notes = out.partition("\n\n")
    header, *rows = table.splitlines()
    assert code == 0 and err == ""
    assert [row.split()[0] for row in rows] == list(tasks.TASKS)
    assert all(len(line) <= 120 for line in out.splitlines())
    assert header.split() == "id observation action horizon score 0 score 100 file/MB here".split()
    assert "NAMESPACE/NAME-vN" in notes and "$D4RL_DATASET_DIR" in notes and "$ROBOMIMIC_DATASET_DIR" in notes
    hopper = next(row for row in rows if row.startswith(f"{HOPPER} "))
    assert hopper.split() == [HOPPER, "11", "3", "1000", "-20.27", "3234.30", "152.8", "no"]
    bundled = next(row for row in rows if row.startswith("maze2d-large-demos-v0 "))
    assert bundled.split()[-1] == "yes"


@pytest.mark.parametrize(
    ("pattern", "count"), [("door", 6), ("door-human-v1", 1), ("*-human-v?", 8), ("d*-v0", 3), ("hopper-*", 6)]
)
def test_list_pattern(cli, pattern, count):
    code, out, _ = cli("list", pattern)
    assert code == 0 and len(out.partition("\n\n")[0].splitlines()) == count + 1


def test_list_nothing(cli):
    assert cli("list", "nothing") == (2, "", "error: No id matches 'nothing'; python -m d4rl list shows all.\n")


def test_list_says_what_is_here(cli, monkeypatch):
    def here(env_id):
        return cli("list", env_id)[1].splitlines()[1].split(maxsplit=7)[-1]

    assert here(HOPPER) == here(RELOCATE) == here("robomimic/lift-ph") == "no"
    path = place(HOPPER, monkeypatch)
    assert here(HOPPER) == "yes"
    path.write_bytes(path.read_bytes()[:-1])
    assert here(HOPPER) == "wrong size"
    dataset(d4rl.task(RELOCATE).default_path, RELOCATE)
    assert here(RELOCATE) == "unverified"
    assert cli("fetch", RELOCATE, "--allow-unverified")[0] == 0
    assert here(RELOCATE) == "yes"
    lift = dataclasses.replace(d4rl.task("robomimic/lift-ph"), bytes=9, sha256="published")
    monkeypatch.setitem(tasks.TASKS, lift.env_id, lift)
    older = lift.default_path.with_name("low_dim_v141.hdf5")
    older.parent.mkdir(parents=True)
    older.touch()
    assert here("robomimic/lift-ph") == "unverified"
    dataset(d4rl.task("walker2d-medium-v2").default_path.with_suffix(".hdf5.part"))  # of a download that was killed
    assert here("walker2d-medium-v2") == "no"


# --- fetch ---
def test_fetch_goes_on_after_a_failure(cli, monkeypatch):
    path = place(HOPPER, monkeypatch)
    code, out, err = cli("fetch", "nothing", "walker2d-medium-v2", RELOCATE, HOPPER, HOPPER, "maze2d-large-demos-v0")
    bundled = d4rl.task("maze2d-large-demos-v0").default_path
    assert code == 2
    assert out == f"{HOPPER}: {path}\n{HOPPER}: {path}\nmaze2d-large-demos-v0: {bundled}\n"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "Traceback" not in err
    assert "nothing" in errors[0] and "Connection refused" in errors[1] and "--allow-unverified" in errors[2]
    assert cli("fetch", HOPPER, HOPPER)[::2] == (0, "")


def test_fetch_unverified(cli):
    path = dataset(d4rl.task(RELOCATE).default_path, RELOCATE)
    code, out, err = cli("fetch", RELOCATE, "--allow-unverified")
    assert (code, out) == (0, f"{RELOCATE}: {path}\n")
    assert err.startswith("UNVERIFIED") and hashlib.sha256(path.read_bytes()).hexdigest() in err
    assert cli("fetch", RELOCATE) == (0, out, "")


# --- check ---
def lines(out):
    return {line.split()[0]: line.partition("  ")[2].strip() for line in out.splitlines()[1:]}


def test_check(cli, tmp_path):
    rewards = np.zeros(300)
    rewards[[0, 60, 200]] = 1, 2, 4
    observations = np.random.default_rng(0).uniform(-3, 3, (300, 11))
    observations[:, 4] = 0.5
    observations[7, 0], observations[8, 1] = -12.5, 25
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    actions[:6, 1] = 1.5
    ends = {"terminals": np.isin(np.arange(300), [9, 99]), "timeouts": np.isin(np.arange(300), [49, 249])}
    path = dataset(tmp_path / "mine.hdf5", rewards=rewards, observations=observations, actions=actions, **ends)
    code, out, err = cli("check", path, "--env-id", HOPPER)
    assert code == 0 and err == ""
    assert out.splitlines()[0] == f"{path} fits {HOPPER}."
    score = 100 * d4rl.get_normalized_score(HOPPER, 7 / 4)
    assert lines(out) == {
        "rows": "300: 297 transitions to learn from",
        "episodes": "4; 50 rows after the last one's end",
        "returns": f"0 to 4, mean 1.75; the mean is a score of {score:.1f}",
        "lengths": "10 to 150, mean 62.5; the horizon is 1000",
        "terminals": "2",
        "time-outs": "2",
        "rewards": "0 to 4, mean 0.02333",
        "observations": "-12.5 to 25; constant columns: 4",
        "actions": f"{actions.min():.4g} to 1.5; constant columns: none; 2.00 % of the rows reach outside [-1, 1]",
    }


def test_check_counts_missing_timeouts(cli, tmp_path):
    path = dataset(tmp_path / "mine.hdf5", "pen-human-v1", rows=250, terminals=np.zeros(250))
    with h5py.File(path, "a") as file:
        del file["timeouts"]
    _, out, _ = cli("check", path, "--env-id", "pen-human-v1")
    assert lines(out)["time-outs"] == "2 (not in the file: counted every 100 steps)"
    assert lines(out)["episodes"] == "2; 50 rows after the last one's end"
    assert lines(out)["lengths"].startswith("100 to 100,")


def test_check_a_dataset_without_an_end(cli, tmp_path):
    path = dataset(tmp_path / "mine.hdf5", terminals=np.zeros(300), timeouts=np.zeros(300))
    _, out, _ = cli("check", path, "--env-id", HOPPER)
    assert lines(out)["episodes"] == "1; 0 rows after the last one's end"
    assert lines(out)["lengths"].startswith("300 to 300,")


def test_check_robomimic(cli, tmp_path):
    rng, sizes = np.random.default_rng(0), {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = '{"env_name": "Lift", "env_version": "1.5.1", "env_kwargs": {}}'
        for name, steps in (("demo_10", 40), ("demo_2", 60)):  # both stay at the goal for three steps
            demonstration = file["data"].create_group(name)
            demonstration["actions"] = rng.uniform(-1, 1, (steps, 7))
            demonstration["rewards"] = np.arange(steps) >= steps - 3
            for observations in ("obs", "next_obs"):
                for key, size in (sizes | {"object": 10}).items():
                    demonstration[f"{observations}/{key}"] = rng.standard_normal((steps, size))
    code, out, err = cli("check", tmp_path / "mine.hdf5", "--env-id", "robomimic/lift-ph")
    assert (code, err) == (0, "")
    said = lines(out)
    assert said["rows"] == "100: 100 transitions to learn from"
    assert said["episodes"] == "2; 0 rows after the last one's end"
    assert said["returns"] == "1 to 1, mean 1; the mean is a score of 100.0"
    assert said["lengths"] == "40 to 60, mean 50; the horizon is 400"
    assert (said["terminals"], said["time-outs"]) == ("6", "2")


def test_check_the_tasks_own_file(cli):
    code, out, _ = cli("check", "--env-id", "maze2d-large-demos-v0")
    assert code == 0 and lines(out)["returns"] == "432 to 444, mean 440; the mean is a score of 100.0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no readable file"),
        (lambda path: path.write_bytes(b"hello"), "not an HDF5 file"),
        (lambda path: dataset(path, rewards=np.full(300, np.nan)), "NaN or infinite"),
        (lambda path: dataset(path, "walker2d-medium-v2"), "another --env-id"),
        (lambda path: dataset(path, rows=2), "transitions"),
        (lambda path: path.mkdir(), "no readable file"),
    ],
)
def test_check_says_what_is_wrong(cli, tmp_path, make, message):
    make(tmp_path / "mine.hdf5")
    code, out, err = cli("check", tmp_path / "mine.hdf5", "--env-id", HOPPER)
    assert (code, out) == (2, "") and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_check_unknown_id(cli, tmp_path):
    code, _, err = cli("check", tmp_path / "mine.hdf5", "--env-id", "hoper-medium-v2")
    assert code == 2 and "did you mean hopper-medium-v2" in err and err.count("\n") == 1


# --- command line ---
@pytest.mark.parametrize("arguments", [[], ["lists"], ["fetch"], ["check", "mine.hdf5"], ["fetch", HOPPER, "--allow"]])
def test_usage(cli, arguments):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and "usage: python -m d4rl" in err


@pytest.mark.parametrize("command", [[], ["list"], ["fetch"], ["check"]])
def test_help(cli, command):
    code, out, _ = cli(*command, "--help")
    assert code == 0 and out.startswith(f"usage: python -m d4rl {' '.join(command)}".strip())


def test_as_a_process(tmp_path):
    command = [sys.executable, "-m", "d4rl"]
    done = subprocess.run([*command, "list", "hopper"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("hopper-") == 6 and done.stderr == ""
    done = subprocess.run([*command, "fetch", "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
