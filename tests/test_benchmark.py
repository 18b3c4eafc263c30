"""benchmark/experiments.py: its commands are valid, finished runs are skipped, killed ones go on."""

import json
import signal
import subprocess
import sys
import time

import pytest
from common import ROOT, SCRIPTS, load

experiments = load(ROOT / "benchmark" / "experiments.py", "experiments")
tables = load(ROOT / "benchmark" / "tables.py", "tables")
TINY = "--steps 40 --vqvae-steps 20 --eval-every 10 --eval-episodes 1 --batch-size 16 --hidden-dim 16"


def commands(capsys, *argv) -> list[list[str]]:
    assert experiments.main([*argv, "--print"]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", experiments.NAMES)
@pytest.mark.parametrize("budget", [[], ["--paper-budget"]])
def test_commands_are_valid(name, budget, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SAQ_STANDIN_DIR", str(tmp_path))
    printed = commands(capsys, name, "--seeds", "0", "--out", str(tmp_path / "runs"), *budget)
    for command in printed:
        script = command[1].removesuffix(".py")
        if script in SCRIPTS:
            flags = [word for word in command[2:]]
            if "--vqvae" in flags:
                del flags[flags.index("--vqvae") : flags.index("--vqvae") + 2]
            SCRIPTS[script].parse_args(flags)
    folders = [command[-1] for command in printed]
    assert len(set(folders)) == len(folders)


def test_the_paper_has_28_tasks():
    runs = experiments.experiment("table5", [0]) + experiments.experiment("table2", [0])
    assert len({run.env_id for run in runs}) == 28


def test_a_quantizer_serves_all_learners_of_its_task_and_seed():
    runs = experiments.experiment("table4", [0, 1])
    assert len({run.quantizer for run in runs if run.quantizer}) == 4 * 2
    for run in runs:
        if run.quantizer:
            assert (run.quantizer.env_id, run.quantizer.seed) == (run.env_id, run.seed)
            assert run.quantizer.script == "saq_bc"


def play(out, *more) -> subprocess.Popen:
    flags = ["--only", "__saq_cql", "--seeds", "0", "--jobs", "1", "--out", out, "--flags", TINY, *more]
    command = [sys.executable, ROOT / "benchmark" / "experiments.py", "figure2", *flags]
    return subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_finished_runs_are_skipped_and_collected(tmp_path):
    first = play(tmp_path)
    assert "finished" in first.communicate(timeout=120)[0] and first.returncode == 0
    again = play(tmp_path)
    assert "skipped" in again.communicate(timeout=60)[0] and again.returncode == 0
    assert "1 of 1 runs are finished" in play(tmp_path, "--collect", tmp_path / "all.jsonl").communicate(timeout=60)[0]
    (line,) = (tmp_path / "all.jsonl").read_text().splitlines()
    kept = json.loads(line)
    assert kept["script"] == "saq_cql" and kept["args"]["steps"] == 40 and str(tmp_path) not in line


def test_a_killed_run_goes_on_in_its_folder(tmp_path):
    slow = TINY.replace("--steps 40", "--steps 1000")
    process = play(tmp_path, "--flags", slow)
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
    output = play(tmp_path, "--flags", slow).communicate(timeout=300)[0]
    assert "finished" in output and len(list(tmp_path.glob("*/*/args.json"))) == 1
    assert found[0].read_text().startswith(before[: before.index("\n")])


@pytest.mark.parametrize("name", tables.SETS.values())
def test_committed_results_have_the_settings_of_the_printed_commands(name):
    parsed = {}
    for line in map(json.loads, (ROOT / "results" / f"{name}.jsonl").read_text().splitlines()):
        learner = ("--learner", line["args"].get("learner", ""))
        script = line["script"] if line["script"].startswith("saq") else f"baselines/{line['script']}"
        if (script, learner) not in parsed:
            runs = experiments.experiment("standins", [0])
            runs = [run for run in runs if (run.script, run.env_id) == (script, line["env_id"])]
            (run,) = [run for run in runs if script != "baselines/aquadem" or run.flags[:2] == learner]
            command = ["--env-id", run.env_id, *run.flags]
            parsed[script, learner] = vars(SCRIPTS[script].parse_args(command))
        differ = {key for key, value in line["args"].items() if parsed[script, learner].get(key) != value}
        assert differ <= {"device", "threads"}, (script, line["seed"], differ)


def test_the_reader_of_the_commands_may_stop_early():
    command = f"{sys.executable} {ROOT / 'benchmark' / 'experiments.py'} table5 --seeds 0 1 2 3 4 5 6 7 8 9 --print"
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
