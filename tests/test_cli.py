"""`python -m d4rl`: its table, its exit codes, and what it says of a file, against what is in it."""

import dataclasses
import hashlib
import runpy
import sys

import gymnasium
import h5py
import numpy as np
import pytest
from common import HOPPER, dataset

import d4rl
from d4rl import __main__, downloads, evaluation, tasks

RELOCATE = "relocate-human-v1"  # nobody has published its checksum
DEMOS = "maze2d-large-demos-v0"


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command; returns (exit code, stdout, stderr). No server can be reached."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path / "robomimic"))
    for module, name in ((tasks, "D4RL"), (downloads, "MIRROR"), (tasks, "ROBOMIMIC")):
        monkeypatch.setattr(module, name, "http://127.0.0.1:1/")
    (tmp_path / "datasets").mkdir()
    downloads._say.cache_clear()

    def run(*arguments, main=__main__.main):
        monkeypatch.setattr(sys, "argv", ["d4rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


def place(env_id, monkeypatch):
    """Put a file where the task's belongs, and publish its size and checksum."""
    path = dataset(d4rl.task(env_id).default_path, env_id)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = dataclasses.replace(d4rl.task(env_id), bytes=path.stat().st_size, sha256=sha256)
    monkeypatch.setitem(tasks.TASKS, env_id, spec)
    return path


# --- list ---
def test_list(cli):
    code, out, err = cli("list")
    table, _, notes = out.partition("\n\n")
    header, *rows = table.splitlines()
    assert (code, err) == (0, "") and all(len(line) <= 120 for line in out.splitlines())
    assert [row.split()[0] for row in rows] == list(tasks.TASKS)
    assert header.split() == "id observation action horizon score 0 score 100 file/MB here".split()
    assert "NAMESPACE/NAME-vN" in notes and "$D4RL_DATASET_DIR" in notes and "$ROBOMIMIC_DATASET_DIR" in notes
    rows = {row.split()[0]: row.split()[1:] for row in rows}
    assert rows[HOPPER] == ["11", "3", "1000", "-20.27", "3234.30", "152.8", "no"]
    assert rows[DEMOS][-1] == "yes"


def test_list_pattern(cli):
    counts = {"door": 6, "human-v1": 4, "*-human-v?": 8, "d*-v0": 3, "hopper-medium-v?": 1}
    for pattern, count in counts.items():
        assert len(cli("list", pattern)[1].partition("\n\n")[0].splitlines()) == count + 1, pattern
    said = "error: No id matches 'nothing'; python -m d4rl list shows all.\n"
    assert cli("list", "nothing") == (2, "", said)


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


# --- fetch ---
def test_fetch_goes_on_after_a_failure(cli, monkeypatch):
    path = place(HOPPER, monkeypatch)
    code, out, err = cli("fetch", "nothing", "walker2d-medium-v2", RELOCATE, HOPPER, DEMOS)
    assert code == 2 and out == f"{HOPPER}: {path}\n{DEMOS}: {d4rl.task(DEMOS).default_path}\n"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3 and "Traceback" not in err
    assert "nothing" in errors[0] and "Connection refused" in errors[1] and "--allow-unverified" in errors[2]
    assert cli("fetch", HOPPER, HOPPER)[::2] == (0, "")


# --- check ---
def lines(out):
    return {line.split()[0]: line.partition("  ")[2].strip() for line in out.splitlines()[1:]}


def test_check(cli, tmp_path):
    rng, rewards = np.random.default_rng(0), np.zeros(300)
    rewards[[0, 60, 200]] = 1, 2, 4
    arrays = {"rewards": rewards, "observations": rng.uniform(-3, 3, (300, 11))}
    arrays |= {"actions": rng.uniform(-1, 1, (300, 3)), "terminals": np.isin(np.arange(300), [9, 99])}
    arrays |= {"timeouts": np.isin(np.arange(300), [49, 249, 260])}
    arrays["observations"][:, 4] = 0.5
    arrays["observations"][[7, 8], [0, 1]] = -12.5, 25
    arrays["actions"][:7, 1] = [-1.5] + [1.5] * 6
    path = dataset(tmp_path / "mine.hdf5", **arrays)
    code, out, err = cli("check", path, "--env-id", HOPPER)
    assert (code, err) == (0, "") and out.splitlines()[0] == f"{path} fits {HOPPER}."
    score = 100 * d4rl.get_normalized_score(HOPPER, 7 / 5)
    assert lines(out) == {
        "rows": "300: 296 transitions to learn from",
        "episodes": "5; 39 rows after the last one's end",
        "returns": f"0 to 4, mean 1.4; the mean is a score of {score:.1f}",
        "lengths": "10 to 150, mean 52.2; the horizon is 1000",
        "terminals": "2",
        "time-outs": "3",
        "rewards": "0 to 4, mean 0.02333",
        "observations": "-12.5 to 25; constant columns: 4",
        "actions": "-1.5 to 1.5; constant columns: none; 2.33 % of the rows reach outside [-1, 1]",
        "warning:": "",
    }
    shuffled = "a row is as far from the next one as from any other: are they in the order of the steps?"
    order, constant = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert order == f"warning: {shuffled}" and constant.startswith(
        "warning: entry 4 of an observation is always"
    )


def test_check_counts_missing_ends(cli, tmp_path):
    path = dataset(tmp_path / "mine.hdf5", "pen-human-v1", rows=250, terminals=np.zeros(250))
    with h5py.File(path, "a") as file:
        del file["timeouts"]
    said = lines(cli("check", path, "--env-id", "pen-human-v1")[1])
    assert said["time-outs"] == "2 (not in the file: counted every 100 steps)"
    dataset(path, terminals=np.zeros(300), timeouts=np.zeros(300))
    said = lines(cli("check", path, "--env-id", HOPPER)[1])
    assert said["episodes"] == "1; 0 rows after the last one's end"
    assert said["lengths"].startswith("300 to 300,")


def test_check_warns(cli, tmp_path, monkeypatch):
    """A sentence each: more in test_d4rl.py. Without its simulator, a file can still be looked into."""

    def no_simulator(env_id, dataset, h5path, starts):
        raise d4rl.DatasetError(f"no simulator for {env_id}, {h5path}.")

    monkeypatch.setattr(evaluation, "compare", no_simulator)
    path = dataset(tmp_path / "mine.hdf5", actions=np.full((300, 3), 20.0), rewards=np.zeros(300))
    out = cli("check", path, "--env-id", HOPPER)[1]
    said = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert any("100 % of the actions are outside" in line for line in said)
    assert any("all rewards are 0" in line for line in said)
    assert said[-1].endswith(f"not compared with the environment: no simulator for {HOPPER}, {path}.")
    assert "20 to 20; constant columns: 0, 1, 2; 100.00 % of the rows reach outside [-1, 1]" in out


def test_check_transitions_in_no_order(cli, tmp_path):
    path = dataset(tmp_path / "mine.hdf5", next_observations=np.zeros((300, 11)))
    code, out, err = cli("check", path, "--env-id", HOPPER)
    assert (code, err) == (0, "") and lines(out)["rows"] == "300: 300 transitions to learn from"
    assert "warning: rows do not follow each other" in out
    assert not {"episodes", "returns", "lengths", "time-outs"} & lines(out).keys()


def test_check_by_the_bounds_of_the_environment(cli, tmp_path, monkeypatch):
    spec = dataclasses.replace(
        d4rl.task(HOPPER), env_id="pendulum-mine-v0", observation_size=3, action_size=1
    )
    monkeypatch.setitem(tasks.TASKS, "pendulum-mine-v0", spec)
    pendulum = "gymnasium.envs.classic_control:PendulumEnv"
    gymnasium.register("pendulum-mine-v0", entry_point=pendulum, max_episode_steps=200)
    actions = np.linspace(-2, 2, 300)[:, None]
    path = dataset(tmp_path / "mine.hdf5", "pendulum-mine-v0", actions=actions)
    said = lines(cli("check", path, "--env-id", "pendulum-mine-v0")[1])
    assert said["actions"] == "-2 to 2; constant columns: none; 0.00 % of the rows reach outside [-2, 2]"
    path = dataset(tmp_path / "mine.hdf5", "pendulum-mine-v0", actions=2 * actions)
    said = lines(cli("check", path, "--env-id", "pendulum-mine-v0")[1])
    assert said["actions"] == "-4 to 4; constant columns: none; 50.00 % of the rows reach outside [-2, 2]"


def test_check_without_the_environment(cli, tmp_path, monkeypatch):
    """A file can be looked into where its simulator cannot be used."""
    monkeypatch.setitem(tasks.TASKS, "lost-v0", dataclasses.replace(d4rl.task(HOPPER), env_id="lost-v0"))
    monkeypatch.setitem(
        gymnasium.registry, "lost-v0", gymnasium.envs.registration.EnvSpec("lost-v0", "nowhere:Env")
    )
    code, out, err = cli("check", dataset(tmp_path / "mine.hdf5"), "--env-id", "lost-v0")
    assert (code, err) == (0, "") and lines(out)["actions"].endswith("constant columns: none")
    last = out.splitlines()[-1]
    assert last.startswith("warning: the data was not compared with the environment") and "nowhere" in last


def test_check_the_tasks_own_file(cli):
    said = lines(cli("check", "--env-id", DEMOS)[1])
    assert said["returns"] == "432 to 444, mean 440; the mean is a score of 100.0"


def test_check_says_what_is_wrong(cli, tmp_path):
    for env_id, message in {HOPPER: "no readable file", "hoper-medium-v2": "did you mean"}.items():
        code, out, err = cli("check", tmp_path, "--env-id", env_id)
        assert (code, out) == (2, "") and message in err
        assert err.startswith("error: ") and err.count("\n") == 1


# --- command line ---
def test_usage(cli):
    for arguments in ([], ["lists"], ["fetch"], ["check", "mine.hdf5"], ["fetch", HOPPER, "--allow"]):
        code, out, err = cli(*arguments)
        assert (code, out) == (2, "") and "usage: python -m d4rl" in err
    for command in ([], ["list"], ["fetch"], ["check"]):
        code, out, _ = cli(*command, "--help")
        assert code == 0 and out.startswith(" ".join(["usage: python -m d4rl", *command]))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_as_a_module(cli):
    code, out, err = cli("list", "hopper", main=lambda: runpy.run_module("d4rl", run_name="__main__"))
    assert (code, err) == (0, "") and out.count("hopper-") == 6
