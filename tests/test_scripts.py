"""Every script and every flag, end to end: what is written, what stays equal, what is shown."""

import os
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from common import (
    FIRST_STAGE,
    HOPPER,
    PATHS,
    ROOT,
    SAQ,
    SCRIPTS,
    checkpoint,
    dataset,
    metrics,
    play,
    result,
    run,
    runs,
    same,
    tiny,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run per script, made when first asked for, and its flags."""
    made = {}

    def get(script):
        if script not in made:
            folder = tmp_path_factory.mktemp(script.replace("/", "_"))
            flags = ["--env-id", HOPPER, "--dataset-path", dataset(folder / "data.hdf5")]
            made[script] = run(script, folder, *flags), flags
        return made[script]

    return get


def weights(folder, stage="learner"):
    return checkpoint(folder)["stages"][stage]["model"]


# --- what a run writes ---
@pytest.mark.parametrize("script", PATHS)
def test_bundled_task(script, tmp_path):
    """The data that comes with the repository: no --dataset-path."""
    folder = run(script, tmp_path, "--env-id", "maze2d-large-demos-v0", "--eval-every", 20, "--eval-episodes", 2)
    assert folder.name.startswith(f"maze2d-large-demos-v0__{script.split('/')[-1]}__0__")
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1 and names - events == {"args.json", "metrics.csv", "checkpoint.pt", "result.json"}
    assert len(result(folder)["returns"]) == 2 and play(script, "--evaluate", folder) == result(folder)["score"]


STANDINS = {
    "door-human": "door-human-v1",
    "pen-expert": "pen-expert-v1",
    "hopper-medium-replay": "hopper-medium-replay-v2",
}


@pytest.mark.skipif(
    "SAQ_STANDIN_DIR" not in os.environ, reason="SAQ_STANDIN_DIR names no folder with stand-in datasets"
)
@pytest.mark.parametrize("name", STANDINS)
def test_standin_dataset(name, tmp_path):
    path = Path(os.environ["SAQ_STANDIN_DIR"], f"{name}.hdf5")
    flags = ["--env-id", STANDINS[name], "--dataset-path", path, "--eval-every", 20, "--eval-episodes", 1]
    folder = run("saq_iql", tmp_path, *flags)
    assert result(folder)["env_id"] == STANDINS[name] and np.isfinite(result(folder)["score"])


@pytest.mark.parametrize("script", PATHS)
def test_run_folder(script, finished):
    folder, _ = finished(script)
    rows, stages = metrics(folder), [*([FIRST_STAGE[script]] if script in FIRST_STAGE else []), "learner"]
    assert [(row["stage"], row["step"]) for row in rows] == [(s, n) for s in stages for n in ("10", "20")]
    for row in rows:
        logged = {name for name, value in row.items() if value and "/" in name}
        assert all(np.isfinite(float(row[name])) for name in logged)
        wanted = {"eval/score", "eval/return"} if row["stage"] == "learner" else {"vqvae/codes_used"}
        if script not in SAQ and row["stage"] != "learner":
            wanted = {f"losses/{row['stage']}"}
        assert wanted <= logged and {name.split("/")[0] for name in logged} <= {"vqvae", "losses", "charts", "eval"}
    written, saved = result(folder), checkpoint(folder)
    assert written["score"] == float(rows[-1]["eval/score"])
    assert written["best_score"] == max(float(row["eval/score"]) for row in rows if row["eval/score"])
    assert written["episodes"] == len(written["returns"]) == 3
    assert np.mean(written["returns"]) == pytest.approx(float(rows[-1]["eval/return"]))
    assert (written["env_id"], written["script"], written["seed"]) == (HOPPER, script.split("/")[-1], 0)
    assert written["versions"]["torch"] == torch.__version__ and {"numpy", "d4rl"} < written["versions"].keys()
    assert written["seconds"].keys() == saved["stages"].keys() == set(stages)
    assert all(state["finished"] and state["step"] == 20 for state in saved["stages"].values())
    assert not list(folder.glob("*.tmp"))


def test_tensorboard_holds_the_metrics(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = finished("saq_iql")
    events = EventAccumulator(str(folder)).Reload()
    for row in metrics(folder):
        for name in (name for name, value in row.items() if value and "/" in name):
            (logged,) = (e.value for e in events.Scalars(name) if e.step == int(row["step"]))
            assert logged == pytest.approx(float(row[name]), rel=1e-5)


# --- every flag, saved and loaded ---
def choices():
    """(script, flags) for every value, other than the default, of every boolean and every flag with choices."""
    for script, module in SCRIPTS.items():
        hints, defaults = typing.get_type_hints(module.Args), module.parse_args(["--env-id", HOPPER])
        for field in fields(module.Args):
            flag, kind, default = field.name.replace("_", "-"), hints[field.name], getattr(defaults, field.name)
            if field.name in ("track", "capture_video", "device"):
                continue  # tests of their own
            if kind is bool:
                yield script, [f"--no-{flag}" if default else f"--{flag}"]
            elif typing.get_origin(kind) is typing.Literal:
                yield from ((script, [f"--{flag}", value]) for value in typing.get_args(kind) if value != default)


CASES = [pytest.param(s, flags, id=" ".join([s, *flags])) for s, flags in [*((s, []) for s in PATHS), *choices()]]


@pytest.mark.parametrize(("script", "flags"), CASES)
def test_a_saved_run_plays_as_it_did(script, flags, finished, tmp_path):
    """Hopper's return changes with the last bit of any action, so equal scores are equal actions."""
    plain, data = finished(script)
    if "--no-revive" in flags:  # no code is dead before its usage has decayed to a tenth
        data = [*data, "--vqvae-steps", 300, "--eval-every", 300]
        plain = run(script, tmp_path / "plain", *data)
    folder = run(script, tmp_path, *data, *flags) if flags else plain
    before = result(folder)
    assert len(set(before["returns"])) == 3
    assert play(script, "--evaluate", folder) == before["score"]
    assert result(folder) == before  # playing writes nothing
    assert (metrics(folder) != metrics(plain)) == bool(flags)  # the flag does something


def test_flags_that_evaluate_may_change(finished):
    folder, _ = finished("saq_iql")
    changes = (["--acting", "greedy"], ["--seed", 1], ["--eval-episodes", 2], ["--temperature", 0.1])
    scores = {play("saq_iql", "--evaluate", folder, *flags) for flags in changes}
    assert len(scores | {result(folder)["score"]}) == 1 + len(changes)


# --- what stays equal ---
@pytest.mark.parametrize("anneal", [True, False])
@pytest.mark.parametrize("script", PATHS)
def test_anneal_lr(script, anneal, tmp_path):
    """Half a cosine over every stage, here at the last of 20 updates. IQL's policy has it in any case."""
    folder = run(script, tmp_path, "--lr", 0.01, "--anneal-lr" if anneal else "--no-anneal-lr")
    for name, stage in checkpoint(folder)["stages"].items():
        for group, parameters in enumerate(stage["optimizer"]["param_groups"]):
            falls = anneal or (script == "baselines/iql" and group == 0)
            expected = 0.005 * (1 + np.cos(np.pi * 0.95)) if falls else 0.01
            assert parameters["lr"] == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("script", PATHS)
def test_equal_arguments_give_equal_runs(script, finished, tmp_path):
    folder, flags = finished(script)
    again, other = run(script, tmp_path, *flags), run(script, tmp_path, *flags, "--seed", 1)
    assert metrics(again) == metrics(folder) and same(weights(again), weights(folder))
    assert metrics(other) != metrics(folder) and not same(weights(other), weights(folder))


@pytest.mark.parametrize("script", PATHS)
def test_denormal_numbers_count_as_zero(script, finished, tmp_path):
    """They halve the speed of continuous CQL on an Intel Xeon: the weights of its log-sum-exp are full of them."""
    torch.set_flush_denormal(False)
    assert torch.tensor(1e-30) * 1e-10 > 0
    run(script, tmp_path, *finished(script)[1])
    assert torch.tensor(1e-30) * 1e-10 == 0


@pytest.mark.parametrize("script", PATHS)
def test_evaluation_does_not_disturb_training(script, finished, tmp_path):
    folder, flags = finished(script)
    other = run(script, tmp_path, *flags, "--eval-episodes", 1, "--eval-every", 7)
    assert same(weights(other), weights(folder))
    if script in SAQ:
        assert same(weights(other, "quantizer"), weights(folder, "quantizer"))


@pytest.mark.parametrize("script", SAQ)
def test_borrowed_quantizer(script, finished, tmp_path):
    """--vqvae ends like training the quantizer anew, whichever script it comes from."""
    folder, flags = finished(script)
    for lender in ("saq_bc", script):
        quantizer, _ = finished(lender)
        borrowed = run(script, tmp_path / lender, *flags, "--vqvae", quantizer)
        assert same(checkpoint(borrowed)["stages"]["learner"]["model"], weights(folder))
        assert same(weights(borrowed, "quantizer"), weights(folder, "quantizer"))
        assert result(borrowed)["returns"] == result(folder)["returns"]


def test_borrowed_quantizer_brings_its_shape(finished, tmp_path):
    """Its own arguments become the defaults, so that they need not be given again."""
    _, flags = finished("saq_bc")
    quantizer = run("saq_bc", tmp_path, *flags, "--codebook-size", 5, "--no-condition-on-obs")
    args = SCRIPTS["saq_iql"].parse_args([*map(str, flags), "--vqvae", str(quantizer)])
    assert (args.codebook_size, args.condition_on_obs, args.vqvae_steps) == (5, False, 20)
    play("saq_iql", *flags, "--vqvae", quantizer, "--steps", 10, "--eval-episodes", 1, "--runs-dir", tmp_path / "runs")
    (borrowed,) = runs(tmp_path / "runs")
    assert same(weights(borrowed, "quantizer"), weights(quantizer, "quantizer"))


# --- the command line ---
def another(value):
    """A value that a setting does not have."""
    if isinstance(value, str | bool):
        return {"mean": "greedy", "greedy": "mean", True: False}[value]
    return value / 2 if value % 1 else value + 1


@pytest.mark.parametrize("script", PATHS)
def test_settings_per_domain(script, monkeypatch, capsys):
    module = SCRIPTS[script]
    monkeypatch.setenv("COLUMNS", "200")
    names = {field.name for field in fields(module.Args)}
    for prefixes, settings in module.SETTINGS.items():
        assert settings.keys() <= names
        for prefix in [prefixes] if isinstance(prefixes, str) else prefixes:
            env_id = next(env_id for env_id in module.d4rl.TASKS if env_id.startswith(prefix))
            args = module.parse_args(["--env-id", env_id])
            assert {name: getattr(args, name) for name in settings} == settings and args.env_id == env_id
            assert module.parse_args([f"--env-id={env_id}"]) == module.parse_args(["--env_id", env_id]) == args
            for name, value in settings.items():  # a flag wins, the other settings stay
                flag, other = name.replace("_", "-"), another(value)
                given = [f"--no-{flag}"] if other is False else [f"--{flag}", str(other)]
                args = module.parse_args(["--env-id", env_id, *given])
                assert {n: getattr(args, n) for n in settings} == {**settings, name: other}
            with pytest.raises(SystemExit) as exit:
                module.parse_args(["--help", "--env-id", env_id])
            assert exit.value.code == 0
            shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
            for name, value in settings.items():
                flag = name.replace("_", "-")
                flag = f"--{flag}, --no-{flag} " if value is True else f"--{flag} "
                text = shown.split(flag)[1].split("(default:")[1]
                assert text.split(")")[0].strip() == str(value)


@pytest.mark.parametrize("script", ["saq_bc", "saq_cql", "saq_iql", "baselines/aquadem"])
def test_a_task_may_have_settings_in_two_lines(script):
    args = SCRIPTS[script].parse_args(["--env-id", "hopper-medium-replay-v2"])
    assert args.acting == "greedy" and args.lr == 1e-3 and args.anneal_lr
    assert SCRIPTS[script].parse_args(["--env-id", "hopper-medium-v2"]).acting == "mean"


@pytest.mark.parametrize("script", PATHS)
def test_help_explains_every_argument(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        SCRIPTS[script].parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lines = PATHS[script].read_text().splitlines()
    for field in fields(SCRIPTS[script].Args):
        (line,) = (line for line in lines if line.startswith(f"    {field.name}: "))
        assert f"--{field.name.replace('_', '-')}" in shown
        assert line.split("  # ")[1] in shown


def test_device_auto():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for module in SCRIPTS.values():
        assert module.parse_args([]).device == device
        assert module.parse_args(["--device", "cpu"]).device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
@pytest.mark.parametrize("script", PATHS)
def test_gpu(script, finished, tmp_path):
    _, flags = finished(script)
    folder = run(script, tmp_path, *flags, "--device", "cuda")
    assert play(script, "--evaluate", folder, "--device", "cuda") == result(folder)["score"]
    play(script, "--evaluate", folder, "--device", "cpu")


# --- other programs ---
class Wandb:
    """Stands in for the package: remembers what it is sent."""

    def __init__(self):
        self.rows, self.settings = [], None

    def init(self, **settings):
        self.settings = settings
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")  # the x-axis is the stage's number of updates

    def log(self, row):
        self.rows.append(row)


@pytest.mark.parametrize("script", PATHS)
def test_track(script, finished, tmp_path, monkeypatch):
    plain, flags = finished(script)
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    folder = run(script, tmp_path, *flags, "--track")
    assert metrics(folder) == metrics(plain)
    assert wandb.settings["config"]["env_id"] == HOPPER and wandb.settings["id"] == folder.name
    sent = [{k: str(v) for k, v in row.items() if not k.startswith("time/")} for row in wandb.rows]
    assert sent == [{k: v for k, v in row.items() if v} for row in metrics(folder)]


def subprocess_run(*command, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


def test_track_offline(tmp_path):
    """The real package, without an account."""
    pytest.importorskip("wandb")
    data = dataset(tmp_path / "data.hdf5")
    flags = ["--env-id", HOPPER, "--dataset-path", data, *tiny("saq_bc", episodes=1), "--runs-dir", tmp_path, "--track"]
    done = subprocess_run(sys.executable, PATHS["saq_bc"], *flags, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert list(runs(tmp_path)[0].glob("wandb/offline-run-*/*.wandb"))


RENDER_AND_RUN = """
import runpy, sys, d4rl, gymnasium
try:
    env = gymnasium.make("hopper-medium-v2", render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
except Exception as error:
    print(error)
    raise SystemExit(77)
for command in sys.argv[1].splitlines():
    sys.argv = command.split(" ")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_capture_video(finished, tmp_path):
    """At the end of training, and of a finished run."""
    folder, _ = finished("saq_iql")
    _, data = finished("baselines/bc")
    training = [*data, *tiny("baselines/bc", episodes=1), "--runs-dir", tmp_path, "--capture-video"]
    playing = ["--evaluate", folder, "--capture-video", "--eval-episodes", 1]
    commands = [[PATHS["baselines/bc"], *training], [PATHS["saq_iql"], *playing]]
    text = "\n".join(" ".join(map(str, command)) for command in commands)
    done = subprocess_run(sys.executable, "-c", RENDER_AND_RUN, text, MUJOCO_GL="egl", PYTHONPATH=ROOT)
    if done.returncode == 77:
        pytest.skip(f"no OpenGL, MUJOCO_GL=egl cannot render here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    for place in (folder, runs(tmp_path)[0]):
        (video,) = place.glob("videos/*.mp4")
        assert video.stat().st_size > 1000
        video.unlink()
