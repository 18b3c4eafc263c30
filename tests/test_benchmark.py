"""benchmark/experiments.py: its commands are valid, finished runs are skipped, killed ones go on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from common import ROOT, SCRIPTS, load

experiments = load(ROOT / "benchmark" / "experiments.py", "experiments")
TINY = "--steps 40 --vqvae-steps 20 --eval-every 10 --eval-episodes 1 --batch-size 16 --hidden-dim 16"


@pytest.mark.parametrize("budget", [[], ["--paper-budget"]])
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_commands_are_valid(name, budget, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SAQ_STANDIN_DIR", str(tmp_path))
    assert experiments.main([name, "--seeds", "0", "--out", str(tmp_path / "runs"), *budget, "--print"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    for _, script, *flags in printed:
        if "--quantizer-from" in flags:  # a folder that does not exist yet
            del flags[flags.index("--quantizer-from") : flags.index("--quantizer-from") + 2]
        SCRIPTS[script.removesuffix(".py")].parse_args(flags)
    folders = [command[-1] for command in printed]
    assert len(set(folders)) == len(folders)


def test_the_paper_has_28_tasks():
    runs = experiments.experiment("table5", [0]) + experiments.experiment("table2", [0])
    assert len({run.env_id for run in runs}) == 28


def test_a_quantizer_serves_all_learners_of_its_task_and_seed():
    runs = [run for run in experiments.experiment("table4", [0, 1]) if run.quantizer]
    assert len({run.quantizer for run in runs}) == 4 * 2
    assert {(run.env_id, run.seed, "saq_bc") for run in runs} == {
        (run.quantizer.env_id, run.quantizer.seed, run.quantizer.script) for run in runs
    }


def test_the_folder_of_a_run_is_the_one_that_got_farthest(tmp_path):
    run = experiments.Run("saq_bc", "pen-human-v0", 0)
    assert run.folder(tmp_path) is None
    for name, file in (("d", "args.json"), ("c", "checkpoint.previous.pt"), ("b", "result.json")):
        (tmp_path / run.name / name).mkdir(parents=True)
        (tmp_path / run.name / name / file).touch()
        assert run.folder(tmp_path).name == name
    assert run.finished(tmp_path)


def test_a_folder_without_a_checkpoint_is_no_obstacle(tmp_path):
    """The training begins anew beside it, once."""
    flags = ("--steps", "10", "--vqvae-steps", "10", "--eval-every", "10", "--eval-episodes", "1")
    run = experiments.Run("saq_bc", "maze2d-large-demos-v0", 0, flags)
    (tmp_path / run.name / "a").mkdir(parents=True)
    (tmp_path / run.name / "a" / "args.json").write_text("{}")
    assert experiments.execute(run, tmp_path, {}) == "finished"
    assert experiments.execute(run, tmp_path, {}) == "skipped"


@pytest.mark.parametrize("file", ["checkpoint.pt", "checkpoint.previous.pt"])
def test_a_resumed_run_finds_data_that_has_moved(file, tmp_path, monkeypatch):
    run, commands = experiments.Run("saq_bc", "pen-human-v0", 0), []
    folder = tmp_path / run.name / "b"
    folder.mkdir(parents=True)
    (folder / file).touch()

    class Popen:
        def __init__(self, command, **settings):
            commands.append(command[1:])

        def wait(self):
            return 1

    monkeypatch.setattr(experiments.subprocess, "Popen", Popen)
    assert experiments.execute(run, tmp_path, {"pen-human-v0": "moved"}).startswith("failed: exit code 1")
    assert commands == [["saq_bc.py", "--resume", str(folder), "--dataset-path", "moved"]]


def play(out, *more) -> subprocess.Popen:
    flags = ["--only", "__saq_cql", "--seeds", "0", "--jobs", "1", "--out", out, "--flags", TINY, *more]
    command = [sys.executable, ROOT / "benchmark" / "experiments.py", "figure2", *flags]
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_killed_run_goes_on_and_a_finished_one_is_skipped_and_collected(tmp_path):
    slow = ["--flags", TINY.replace("--steps 40", "--steps 80")]
    process = play(tmp_path, *slow)
    for _ in range(600):
        found = list(tmp_path.glob("*/*/metrics.csv"))
        if found and "learner" in found[0].read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)  # the training dies with it
    process.wait()
    time.sleep(0.5)
    before = found[0].read_text()
    time.sleep(0.5)
    assert found[0].read_text() == before and not list(tmp_path.glob("*/*/result.json"))
    output = play(tmp_path, *slow).communicate(timeout=300)[0]
    assert "finished" in output and len(list(tmp_path.glob("*/*/args.json"))) == 1
    assert found[0].read_text().startswith(before[: before.index("\n")])
    assert "skipped" in play(tmp_path, *slow).communicate(timeout=60)[0]
    collect = play(tmp_path, *slow, "--collect", tmp_path / "all.jsonl")
    assert "1 of 1 runs are finished" in collect.communicate(timeout=60)[0]
    (line,) = (tmp_path / "all.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept["script"] == "saq_cql" and kept["args"]["steps"] == 80 and str(tmp_path) not in line


def test_ctrl_c(tmp_path):
    """As a terminal sends it, to all its processes: no other training starts, and the next call goes on."""
    words = [
        sys.executable,
        ROOT / "benchmark" / "experiments.py",
        "figure2",
        "--seeds",
        *"0123",
        "--jobs",
        "1",
    ]
    words += ["--only", "__saq_cql", "--out", tmp_path, "--flags", TINY.replace("--steps 40", "--steps 9999")]
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = subprocess.Popen([str(word) for word in words], **settings)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/*/checkpoint.previous.pt")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in error
    assert error.endswith("stopped; the same command goes on from here.\n")
    (log,) = tmp_path.glob("*/log.txt")  # of one run
    assert f"stopped; go on with: python saq_cql.py --resume {tmp_path}" in log.read_text()


def renamed(args: dict) -> dict:
    """The arguments of an old line by their names of today."""
    new = dict(args)
    if fixed := new.pop("fixed_temperature", None):
        new |= {"learn_temperature": False, "temperature": fixed}
    if new.get("reward_scale") == 0:
        new |= {"reward_scale": 1.0, "normalize_rewards": True}
    if "vqvae" in new:
        new["quantizer_from"] = new.pop("vqvae")
    return new


def test_committed_results_have_the_settings_of_the_printed_commands():
    runs = {}
    for run in experiments.experiment("standins", [0]):
        if (run.script, run.env_id) == ("saq_bc", "robomimic/lift-ph") and "--weight-decay" in run.flags:
            continue  # the quantizer of SAQ-CQL there
        quantizer = run.quantizer.flags if run.quantizer else ()  # taken over with it
        args = SCRIPTS[run.script].parse_args(["--env-id", run.env_id, *run.flags, *quantizer])
        runs[run.script.split("/")[-1], run.env_id, vars(args).get("learner")] = vars(args)
    free = {"seed", "device", "threads", "eval_every", "eval_episodes"}  # 20 episodes, newer runs more
    for line in map(json.loads, (ROOT / "results" / "runs.jsonl").read_text().splitlines()):
        args = renamed(line["args"])
        today = runs[line["script"], line["env_id"], args.get("learner")]
        differ = {key for key, value in args.items() if today.get(key) != value}
        assert differ <= free, (line["script"], line["env_id"], line["seed"], differ)


def test_the_reader_of_the_commands_may_stop_early():
    command = f"{sys.executable} {ROOT / 'benchmark' / 'experiments.py'} table5 --print"
    process = subprocess.run(f"{command} | head -1", shell=True, capture_output=True, text=True, timeout=60)
    assert len(process.stdout.splitlines()) == 1 and process.stderr == ""


def test_a_failure_is_reported(tmp_path):
    process = play(tmp_path, "--flags", "--batch-size 0")
    assert "failed: exit code 2, see" in process.communicate(timeout=60)[0] and process.returncode == 1


def test_bad_requests(capsys, monkeypatch):
    monkeypatch.delenv("SAQ_STANDIN_DIR", raising=False)
    assert experiments.main(["standins", "--only", "maze2d", "--print"]) == 0  # its data is bundled
    for command, problem in [
        (["standins", "--print"], "set SAQ_STANDIN_DIR"),
        (["table2", "--only", "nothing"], "no run of table2 has 'nothing' in its name"),
    ]:
        with pytest.raises(SystemExit, match="^2$"):
            experiments.main(command)
        assert problem in capsys.readouterr().err
