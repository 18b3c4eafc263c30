"""d4rl/runs.py on a script in small: command line, run folder, logs, and resuming after a kill in any file.

`runs` is a global of this file: test_mutations.py puts altered copies in its place.
"""

import csv
import errno
import gc
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from typing import Literal

import pytest
import torch
from common import ROOT, Killed, assert_same_run, checkpoint, metrics, result, run_folders, same

import d4rl
from d4rl import runs


@dataclass
class Args:
    lr: float = 0.1  # rate
    anneal_lr: bool = False  # or constant
    steps: int = 10  # updates of the learner
    vqvae_steps: int = 10  # updates of the quantizer
    revive: bool = False  # or not
    codebook_size: int = 4  # K
    quantizer_from: str = ""  # a run
    env_id: str = "hopper-a"  # task
    dataset_path: str = ""  # file
    seed: int = 0  # seed
    acting: Literal["greedy", "sample"] = "greedy"  # how
    eval_episodes: int = 2  # count
    device: Literal["auto", "cpu", "cuda"] = "cpu"  # where
    threads: int = 1  # count
    runs_dir: str = "runs"  # folder
    resume: str = ""  # a run
    evaluate: str = ""  # a run
    track: bool = False  # or not
    capture_video: bool = False  # or not


SETTINGS = {
    "hopper": dict(lr=0.5, steps=7),
    ("hopper-b", "pen"): dict(steps=8, revive=True),
    "hopper-b-c": dict(acting="sample"),
}
SPACES = d4rl.Spaces(*torch.tensor([[0.5], [2.0], [-1.0], [1.0]]), torch.zeros(2, 32, dtype=torch.uint8))


def parse(*flags, play=(), **limits):
    return runs.parse_args(Args, "toy", SETTINGS, {"seed": (0, 9)} | limits, play, list(map(str, flags)))


def train(args, spaces=SPACES):
    """What a script does with a run; its losses draw noise."""
    torch.manual_seed(args.seed)
    models = {stage: torch.nn.Linear(1, 1) for stage in ("quantizer", "learner")}
    run = runs.Run("toy", args, spaces)
    for stage, model in models.items():
        steps = args.steps if stage == "learner" else args.vqvae_steps
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        generator = torch.Generator().manual_seed(args.seed)
        for step in range(run.restore(stage, model, optimizer, generator), steps):
            if args.anneal_lr:
                optimizer.param_groups[0]["lr"] = args.lr * (1 - step / steps)
            x = torch.randn(4, 1, generator=generator)
            loss = (model(x) + torch.randn(())).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log({f"losses/{stage}": loss})
            if (step + 1) % 4 == 0 or step + 1 == steps:
                score = model.weight.item() * (step - 5)
                measured = {"eval/score": score, "returns": [score, step]} if stage == "learner" else {}
                run.record(stage, step + 1, steps, measured, model, optimizer, generator)
    run.finish()
    return run.folder


def data(row):
    """Spaces of other data, by a row of the fingerprint."""
    fingerprint = SPACES.fingerprint.clone()
    fingerprint[row, 5] = 1
    return SPACES._replace(fingerprint=fingerprint)


def whole_run(tmp_path):
    return train(Args(runs_dir=str(tmp_path / "whole"), codebook_size=5))


# --- command line ---
def test_settings_per_domain(monkeypatch, capsys):
    """A later entry wins over an earlier one, a flag over both."""
    assert parse() == replace(Args(), lr=0.5, steps=7)
    assert parse("--env-id", "walker") == Args(env_id="walker")
    long = replace(Args(), env_id="hopper-b-c", lr=0.5, steps=8, revive=True, acting="sample")
    for flags in (["--env-id", "hopper-b-c"], ["--env-id=hopper-b-c"], ["--env_id", "hopper-b-c"]):
        assert parse(*flags) == long
    given = parse("--steps", 3, "--env-id", "hopper-b-c", "--no-revive", "--acting", "greedy")
    assert given == replace(long, steps=3, revive=False, acting="greedy")
    capsys.readouterr()
    assert parse("--env-id", "mujoco/hopper/b-c") == replace(
        long, env_id="mujoco/hopper/b-c"
    )  # as Minari writes it
    assert not capsys.readouterr().out
    assert parse("--env-id", "robomimic/hopper-b") == Args(env_id="robomimic/hopper-b")
    told = "robomimic/hopper-b has no settings of its own, so it has the defaults; "
    assert capsys.readouterr().out.strip() == told + "worth trying: --acting, --lr, --revive."
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as exit:
        parse("--help", "--env-id", "pen")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert exit.value.code == 0
    assert "updates of the learner (default: 8)" in shown and "(default: 0.1)" in shown


def test_limits():
    """Given ones; else counts start at 1 and other numbers at 0."""
    wrong = "steps=0 steps=-1 lr=-1 lr=nan lr=inf seed=-1 seed=10 steps=10000000000".split()
    wrong += ["codebook_size=100000000", "eval_episodes=10001", "threads=1025"]
    limited = {"lr=1.5": {"lr": (0, 1)}, "lr=0": {"lr": (1e-6, 1)}}
    for flag, limits in (dict.fromkeys(wrong, {}) | limited).items():
        with pytest.raises(
            d4rl.UsageError, match=f"--{flag.replace('=', ' is ').replace('_', '-')}.*at least.*at most"
        ):
            parse(f"--{flag}", **limits)
    assert parse("--seed", 0, "--lr", 0).lr == 0 and parse("--lr", 1, lr=(0, 1), steps=(0, 9)).lr == 1
    assert parse("--seed", 9, "--steps", 1).steps == 1
    assert parse("--codebook-size", 65536, "--threads", 1024, "--eval-episodes", 10000).codebook_size == 65536
    with pytest.raises(d4rl.UsageError, match="at least 1 and at most 65,536"):
        parse("--codebook-size", 65537)


def test_device(monkeypatch):
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert parse("--device", "auto").device == ("cuda" if there else "cpu")
        assert parse("--device", "cpu").device == "cpu"
    assert parse("--device", "cuda").device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(d4rl.UsageError, match="--device cpu"):
        parse("--device", "cuda")


def test_flags_of_a_resumed_run(tmp_path):
    whole = whole_run(tmp_path)
    saved = replace(Args(**checkpoint(whole)["args"]), resume=str(whole))
    assert parse("--resume", whole) == saved and saved.codebook_size == 5  # no settings of its task
    given = parse("--resume", whole, "--threads", 2, "--track", "--capture-video", "--dataset-path", "x")
    assert given == replace(saved, threads=2, track=True, capture_video=True, dataset_path="x")
    changed = "--revive", "--env-id pen", "--seed 1", "--acting sample", "--runs-dir elsewhere", "--lr 3"
    for flags in (*changed, f"--evaluate {whole}", f"--quantizer-from {whole}", "--vqvae-steps 30"):
        with pytest.raises(d4rl.UsageError, match=f"{flags.split()[0]} is .* has to stay so"):
            parse("--resume", whole, *flags.split())


def test_flags_of_a_run_that_is_played(tmp_path):
    whole = whole_run(tmp_path)
    free = "--seed 3 --eval-episodes 9 --dataset-path x --threads 2 --capture-video --acting sample".split()
    args = parse("--evaluate", whole, *free, play=("acting",))
    assert (args.seed, args.eval_episodes, args.acting, args.codebook_size) == (3, 9, "sample", 5)
    for flags in ("--acting sample", "--lr 3", "--steps 30", "--codebook-size 4", "--env-id pen", "--track"):
        with pytest.raises(d4rl.UsageError, match=f"{flags.split()[0]} is .* has to stay so"):
            parse("--evaluate", whole, *flags.split())


def test_flags_of_a_run_that_takes_a_quantizer(tmp_path):
    """The quantizer brings its own arguments, all others are this run's."""
    whole = whole_run(tmp_path)
    args = parse("--quantizer-from", whole, "--steps", 3)
    assert (args.codebook_size, args.revive, args.steps, args.lr, args.resume) == (5, False, 3, 0.5, "")
    assert parse("--quantizer-from", whole, "--codebook-size", 5).codebook_size == 5
    for flags in ("--codebook-size 4", "--revive"):
        with pytest.raises(d4rl.UsageError, match=f"{flags.split()[0]} is .* has to stay so"):
            parse("--quantizer-from", whole, *flags.split())


def test_a_found_temperature():
    """Of a run with --kl it is part of the weights: another one is refused, not ignored."""
    Found = make_dataclass("Found", [("kl", float), ("temperature", float), ("device", str)])
    saved = {"kl": 0.0, "temperature": 3.0, "device": "cpu"}
    assert runs.change(Found, saved, ("temperature",), {"temperature": 5.0}) == Found(0.0, 5.0, "cpu")
    with pytest.raises(d4rl.UsageError, match="temperature is no argument"):
        runs.change(Found, saved | {"kl": 0.2}, ("temperature",), {"temperature": 5.0})


def test_changes_of_a_loaded_policy(tmp_path):
    """On the CPU, whatever it was trained on; only what playing may change, only to what there is."""
    whole = whole_run(tmp_path)
    args = checkpoint(whole)["args"] | {"device": "cuda"}
    loaded = runs.change(Args, args, ("acting",), {"acting": "sample", "seed": 3})
    assert loaded == replace(Args(**args), device="cpu", acting="sample", seed=3)
    for changes in ({"acting": "best"}, {"lr": 3.0}, {"unknown": 1}, {"device": "tpu"}):
        with pytest.raises(d4rl.UsageError, match=next(iter(changes))):
            runs.change(Args, args, ("acting",), changes)
    with pytest.raises(d4rl.UsageError, match="acting"):
        runs.change(Args, args, (), {"acting": "sample"})


# --- reading a run ---
def test_what_is_no_run(tmp_path):
    whole = whole_run(tmp_path)
    (tmp_path / "empty").mkdir()
    sound = (whole / "checkpoint.pt").read_bytes()
    zeros = sound.replace(weight := checkpoint(whole)["spaces"][0].numpy().tobytes(), bytes(len(weight)))
    assert zeros != sound and len(zeros) == len(sound)
    for content in (b"", b"[1, 2]", sound[:-300], sound[:1000], zeros):
        (tmp_path / "foreign").mkdir(exist_ok=True)
        (tmp_path / "foreign" / "checkpoint.pt").write_bytes(content)
        with pytest.raises(d4rl.UsageError, match="foreign is not the folder of a run .*damaged"):
            runs.read_run(tmp_path / "foreign")
    shutil.copy(whole / "checkpoint.pt", tmp_path / "foreign")
    assert runs.read_run(tmp_path / "foreign")
    torch.save({"script": "toy", "args": {}}, tmp_path / "foreign" / "checkpoint.pt")
    for name, reason in [("empty", "no such file"), ("nowhere", "no such file"), ("foreign", "damaged")]:
        with pytest.raises(d4rl.UsageError, match=f"{name} is not the folder of a run .*{reason}"):
            runs.read_run(tmp_path / name)
        for flag in ("--resume", "--evaluate", "--quantizer-from"):
            with pytest.raises(d4rl.UsageError, match="not the folder of a run"):
                parse(flag, tmp_path / name)
    with pytest.raises(d4rl.UsageError, match="no such file"):
        runs.read_run(whole / "checkpoint.pt")
    assert not list((tmp_path / "empty").iterdir()) and not (tmp_path / "nowhere").exists()


def test_whose_run_it_is(tmp_path):
    whole = whole_run(tmp_path)
    for rest in ([], ["toy", Args], ["toy", Args, "learner"]):
        assert runs.read_run(str(whole), *rest)["script"] == "toy"
    with pytest.raises(d4rl.UsageError, match="is a run of toy.py"):
        runs.read_run(whole, "other", Args)
    names = list(checkpoint(whole)["args"])
    for other in ([*names, "temperature"], names[1:]):  # a new one without default, one that is gone
        with pytest.raises(d4rl.UsageError, match="another version"):
            runs.read_run(whole, "toy", make_dataclass("Args", other))
    torch.save(saved := checkpoint(whole) | {"spaces": SPACES[:4]}, whole / "checkpoint.pt")
    assert len(saved["spaces"]) == 4
    with pytest.raises(d4rl.UsageError, match="another version"):
        runs.read_run(whole)


def test_a_run_that_is_older_than_a_flag(tmp_path, capsys):
    """It has the default of a field that was added since; a line says so, once."""
    whole = whole_run(tmp_path)
    newer = make_dataclass("Args", [("decay", float, field(default=0.25))], bases=(Args,))
    capsys.readouterr()
    runs.read_run(whole, "toy", Args)
    assert capsys.readouterr().out == ""
    for _ in range(2):
        assert runs.read_run(whole, "toy", newer)["args"] == checkpoint(whole)["args"] | {"decay": 0.25}
    told = "is older than these arguments; they have their defaults: decay 0.25.\n"
    assert capsys.readouterr().out == f"{whole} {told}"


def test_a_run_with_other_networks(tmp_path):
    whole = whole_run(tmp_path)
    run = runs.Run("toy", replace(Args(), resume=str(whole)), d4rl.Spaces(*SPACES))
    model = torch.nn.Linear(7, 5)
    with pytest.raises(d4rl.UsageError, match="is a run of another version of toy.py"):
        run.restore("quantizer", model, torch.optim.Adam(model.parameters()), torch.Generator())


@pytest.mark.parametrize("change", [dict(finished=False), None])
def test_an_unfinished_stage(change, tmp_path):
    whole = whole_run(tmp_path)
    saved = checkpoint(whole)
    stage = saved["stages"].pop("quantizer")
    saved["stages"] |= {"quantizer": stage | change} if change else {}
    torch.save(saved, whole / "checkpoint.pt")
    (whole / "checkpoint.previous.pt").unlink()
    for call in (lambda: runs.read_run(whole, stage="quantizer"), lambda: parse("--quantizer-from", whole)):
        with pytest.raises(d4rl.UsageError, match="no finished quantizer; go on with --resume"):
            call()
    assert runs.read_run(whole, stage="learner")


# --- the folder ---
def test_files_of_a_run(tmp_path):
    whole = whole_run(tmp_path)
    env, script, seed, _ = whole.name.split("__")
    assert (env, script, seed) == ("hopper-a", "toy", "0")
    names = {path.name for path in whole.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    checkpoints = {"checkpoint.pt", "checkpoint.previous.pt"}
    assert len(events) == 1
    assert names - events == {"args.json", "metrics.csv", "result.json", ".lock", ".holder"} | checkpoints
    args = json.loads((whole / "args.json").read_text())
    assert args.pop("script") == "toy" and Args(**args).codebook_size == 5
    rows = metrics(whole)
    steps = [("quantizer", "4"), ("quantizer", "8"), ("quantizer", "10"), ("learner", "4"), ("learner", "8")]
    assert [(row["stage"], row["step"]) for row in rows] == [*steps, ("learner", "10")]
    saved, scores = checkpoint(whole), [float(row["eval/score"]) for row in rows if row["eval/score"]]
    assert len(scores) == 3 and scores[-1] == 4 * saved["stages"]["learner"]["model"]["weight"].item()
    assert scores[-1] < max(scores)
    assert all(stage["finished"] and stage["step"] == 10 for stage in saved["stages"].values())
    assert all(torch.equal(x, y) for x, y in zip(saved["spaces"], SPACES, strict=True))
    wanted = {"score": scores[-1], "best_score": max(scores), "returns": [scores[-1], 9], "episodes": 2}
    wanted |= {"env_id": "hopper-a", "script": "toy", "seed": 0}
    seconds = {name: stage["seconds"] for name, stage in saved["stages"].items()}
    assert wanted.items() <= result(whole).items() and result(whole)["seconds"] == seconds
    assert result(whole)["versions"].keys() == {"torch", "numpy", "gymnasium", "mujoco", "d4rl"}


def test_id_with_a_slash(tmp_path):
    folder = train(Args(runs_dir=str(tmp_path), env_id="robomimic/lift-ph"))
    assert folder.parent == tmp_path and folder.name.startswith("robomimic-lift-ph__toy__0__")


@pytest.mark.parametrize(
    "measured", [{"vqvae/heldout_error": float("nan")}, {"returns": [1.0, float("inf")]}]
)
def test_measurements_that_are_not_finite_stop(measured, tmp_path):
    """As after a last update that ruins the weights."""
    model = torch.nn.Linear(1, 1)
    rest = model, torch.optim.Adam(model.parameters()), torch.Generator()
    run = runs.Run("toy", Args(runs_dir=str(tmp_path)), SPACES)
    run.restore("quantizer", *rest)
    run.log({"losses/q": torch.tensor(1.0)})
    with pytest.raises(
        d4rl.UsageError, match=f"{next(iter(measured))} is (nan|inf) by update 1 of stage quant"
    ):
        run.record("quantizer", 1, 1, measured, *rest)
    assert not read_csv(run.folder)


@pytest.mark.parametrize("updates", [100, 3])
def test_losses_that_are_not_finite_stop(updates, tmp_path):
    """While training, and at the latest before a row is written: nothing of it is a result."""
    model = torch.nn.Linear(1, 1)
    rest = model, torch.optim.Adam(model.parameters()), torch.Generator()
    run = runs.Run("toy", Args(runs_dir=str(tmp_path)), SPACES)
    run.restore("learner", *rest)
    with pytest.raises(d4rl.UsageError, match=f"losses/q is nan by update {updates} of stage learner"):
        for update in range(updates):
            run.log({"losses/q": torch.tensor(float("nan") if update == 1 else 1.0)})
        assert updates == 3
        run.record("learner", 3, 3, {"eval/score": 0.0}, *rest)
    assert not read_csv(run.folder) and "learner" not in runs.read_run(run.folder)["stages"]


def test_log_and_record(tmp_path, monkeypatch):
    """Means since the last row, time without evaluation and in all; then it starts again."""
    clock = [0.0]
    monkeypatch.setattr(runs.time, "time", lambda: clock[0])
    model = torch.nn.Linear(1, 1)
    rest = model, torch.optim.Adam(model.parameters()), torch.Generator()
    run, scalars = runs.Run("toy", Args(runs_dir=str(tmp_path)), SPACES), set()
    monkeypatch.setattr(run.writer, "add_scalar", lambda *scalar: scalars.add(scalar))
    clock[0] = 100.0
    run.restore("learner", *rest)
    for step, values in enumerate([[1.0, 2.0], [5.0]]):
        for value in values:
            clock[0] += 2
            run.log({"losses/q": torch.tensor(value, requires_grad=True), "charts/q": torch.tensor(7.0)})
        clock[0] += 10  # of evaluation
        measured = {"eval/score": 12.345, "returns": [step]}
        shown = run.record("learner", step, 9, measured, *rest)
        assert shown == {"losses/q": f"{[1.5, 5][step]:.3g}", "eval/score": "12.3"} and measured["returns"]
    rows = [{k: float(v) for k, v in row.items() if k not in ("stage",)} for row in read_csv(run.folder)]
    common = {"charts/q": 7.0, "time/learner_updates_per_second": 0.5, "eval/score": 12.345}
    assert rows[0] == {"step": 0, "losses/q": 1.5, "time/learner_seconds": 14.0} | common
    assert rows[1] == {"step": 1, "losses/q": 5.0, "time/learner_seconds": 26.0} | common
    assert scalars == {(k, v, row["step"]) for row in rows for k, v in row.items() if k != "step"}
    assert run.saved["returns"] == [1] and not run.saved["stages"]["learner"]["finished"]


def test_said_of_codes(tmp_path, capsys):
    """Once, after the quantizer's last update."""
    model = torch.nn.Linear(1, 1)
    rest = model, torch.optim.Adam(model.parameters()), torch.Generator()
    run = runs.Run("toy", Args(runs_dir=str(tmp_path), codebook_size=8), SPACES)
    run.restore("quantizer", *rest)
    said = []
    for step in (1, 2):
        run.log({"vqvae/reconstruction": torch.tensor(0.1)})
        measured = {"vqvae/codes_used": 6 + step, "vqvae/explained": 0.7, "vqvae/directions": 1.0}
        run.record("quantizer", step, 2, measured, *rest)
        said.append(capsys.readouterr().out)
    assert (
        "are used" not in said[0]
        and said[1].startswith("8 of 8 codes are used; ")
        and "1.0 of 1 direction" in said[1]
    )


def read_csv(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_tensorboard_holds_the_metrics(tmp_path):
    whole = whole_run(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole)).Reload()
    for row in metrics(whole):
        for name in (name for name, value in row.items() if value and "/" in name):
            (logged,) = (e.value for e in events.Scalars(name) if e.step == int(row["step"]))
            assert logged == pytest.approx(float(row[name]), rel=1e-5)


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


def test_track(tmp_path, monkeypatch):
    whole = whole_run(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb())
    folder = train(Args(runs_dir=str(tmp_path), codebook_size=5, track=True))
    assert metrics(folder) == metrics(whole)
    assert wandb.settings["config"]["codebook_size"] == 5 and wandb.settings["id"] == folder.name
    sent = [{k: str(v) for k, v in row.items() if not k.startswith("time/")} for row in wandb.rows]
    assert sent == [{k: v for k, v in row.items() if v} for row in metrics(folder)]


def test_quantizer_of_another_run(tmp_path):
    """Taken over with its rows; the rest is a new run, which it does not change."""
    whole = whole_run(tmp_path)
    before = checkpoint(whole)
    args = Args(runs_dir=str(tmp_path / "taken"), codebook_size=5, quantizer_from=str(whole))
    taken = train(args)
    assert_same_run(taken, whole)
    assert checkpoint(taken)["args"]["quantizer_from"] == str(whole)
    assert checkpoint(whole)["returns"] == before["returns"]
    new = replace(args, runs_dir=str(tmp_path / "new"))
    wider = torch.tensor([2.0])
    for other in (data(0), SPACES._replace(action_low=-wider), SPACES._replace(action_high=wider)):
        with pytest.raises(d4rl.UsageError, match="trained on other data"):
            train(new, other)
    assert not (tmp_path / "new").exists()
    train(new, data(1))  # other rewards: no business of the quantizer


# --- kills ---
def die(monkeypatch, at, number):
    """Like a kill in the `number`-th file written, half of it done, or before the `number`-th renaming."""
    count, sound = [0], getattr(os, at)

    def do_or_die(*arguments):
        count[0] += 1
        if count[0] == number:
            if at == "fsync":
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            raise Killed
        sound(*arguments)

    monkeypatch.setattr(os, at, do_or_die)
    return count


@pytest.mark.parametrize(("at", "writes"), [("fsync", 4 + 2 * 6 + 1), ("replace", 4 + 3 * 6 + 1)])
def test_resume_after_a_kill_in_any_file(at, writes, tmp_path, monkeypatch):
    """Twice: the run that goes on dies too, two files later. At no moment is there no whole checkpoint."""
    whole, tmp_path = whole_run(tmp_path), tmp_path / at
    with monkeypatch.context() as patch:
        count = die(patch, at, number=-1)
        train(Args(runs_dir=str(tmp_path / "counted"), codebook_size=5))
    assert count[0] == writes  # holder, checkpoint, table, arguments; then the rows, and the result
    for number in range(3, writes + 1):  # the first two leave no run
        place = tmp_path / str(number)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die(patch, at, number)
            train(Args(runs_dir=str(place), codebook_size=5))
        (folder,) = run_folders(place)
        assert list(folder.glob("*.tmp")) and not (folder / "result.json").exists()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die(patch, at, 4)
            train(parse("--resume", folder))
            raise Killed  # it was almost done, and is now
        train(parse("--resume", folder))
        assert_same_run(folder, whole)
        assert not list(folder.glob("*.tmp"))


def kill(args, updates, stage="learner"):
    """Train, and die after so many updates of the stage; return the folder."""

    def log(self, metrics):
        Run.log(self, metrics)
        if (self.stage, self.step) == (stage, updates):
            raise Killed(self.folder)

    Run = runs.Run
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed) as killed:
        patch.setattr(runs, "Run", type("Run", (Run,), {"log": log}))
        train(args)
    folder = killed.value.args[0]
    del killed
    gc.collect()  # the dead run's lock
    return folder


def test_seconds_go_on_after_a_kill(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(runs.time, "time", lambda: float(next(clock)))
    folder = train(Args(runs_dir=str(tmp_path)))
    seconds = [float(row["time/learner_seconds"]) for row in read_csv(folder) if row["stage"] == "learner"]
    assert seconds == sorted(seconds) and seconds[0] > 0
    saved = checkpoint(folder)
    saved["stages"]["learner"]["step"] = 4
    torch.save(saved, folder / "checkpoint.pt")
    train(parse("--resume", folder))
    assert result(folder)["seconds"]["learner"] > seconds[-1]


@pytest.mark.parametrize("end", [0, -300, None])
def test_damaged_checkpoint(end, tmp_path, capsys):
    """The one before it takes over, with a word; it is not replaced by the damaged one."""
    whole = whole_run(tmp_path)
    folder = kill(Args(runs_dir=str(tmp_path), codebook_size=5), 9)
    for name, update in (("checkpoint.pt", 8), ("checkpoint.previous.pt", 4)):
        assert torch.load(folder / name, weights_only=True)["stages"]["learner"]["step"] == update
    damaged = folder / "checkpoint.pt"
    damaged.write_bytes(damaged.read_bytes()[:end])
    if end is None:
        damaged.unlink()
    capsys.readouterr()
    args = parse("--resume", folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        die(patch, "replace", 3)
        train(args)
    assert torch.load(folder / "checkpoint.previous.pt", weights_only=True)["stages"]["learner"]["step"] == 4
    train(parse("--resume", folder))
    reason = "no such file" if end is None else "damaged, or not a run's"
    said = f"{damaged}: {reason}; using checkpoint.previous.pt, which is of learner, update 4.\n"
    assert capsys.readouterr().out.count(said) == 1
    assert_same_run(folder, whole)


def test_damaged_checkpoint_of_a_finished_run(tmp_path, capsys):
    """The one before it is played only if it is finished too."""
    whole = whole_run(tmp_path)
    (whole / "checkpoint.pt").write_bytes(b"")
    reason = (
        r"no finished learner \(.*damaged, or not a run's; the one before it is older\); go on with --resume"
    )
    with pytest.raises(d4rl.UsageError, match=reason):
        runs.read_run(whole, "toy", Args, stage="learner")
    assert runs.read_run(whole, stage="quantizer")["stages"]["learner"]["step"] == 8
    train(parse("--resume", whole))
    train(parse("--resume", whole))
    (whole / "checkpoint.pt").write_bytes(b"")
    assert runs.read_run(whole, "toy", Args, stage="learner")
    assert "using checkpoint.previous.pt, which is of learner, update 10." in capsys.readouterr().out


# --- the same run, another place ---
def test_other_data(tmp_path):
    """Refused by any difference in any array; the same data may lie in another file, and stays there."""
    whole = whole_run(tmp_path)

    def files():
        return {path: path.read_bytes() for path in whole.iterdir() if path.name != ".holder"}

    before = files()
    for other in (data(0), data(1)):
        with pytest.raises(d4rl.UsageError, match="trained on other data .*--dataset-path"):
            train(parse("--resume", whole), other)
    assert files() == before
    folder = kill(Args(runs_dir=str(tmp_path), codebook_size=5), 5)
    kill(parse("--resume", folder, "--dataset-path", "moved"), 9)
    args = parse("--resume", folder)
    assert args.dataset_path == "moved" == json.loads((folder / "args.json").read_text())["dataset_path"]
    train(args)
    assert_same_run(folder, whole)


def test_spaces_of_a_resumed_run(tmp_path):
    """The saved ones: another device rounds the mean otherwise, and --evaluate plays with the saved ones."""
    whole = whole_run(tmp_path)
    run = runs.Run("toy", parse("--resume", whole), SPACES._replace(obs_mean=torch.tensor([0.6])))
    assert run.spaces.obs_mean == torch.tensor([0.5]) and isinstance(run.spaces, d4rl.Spaces)


def test_copied_and_renamed_folder(tmp_path):
    whole = whole_run(tmp_path)
    folder = kill(Args(runs_dir=str(tmp_path), codebook_size=5), 9)
    renamed, copy = tmp_path / "renamed", tmp_path / "copy"
    shutil.copytree(folder, copy)
    folder.rename(renamed)
    for place in (renamed, copy):
        assert train(parse("--resume", place)) == place
        assert_same_run(place, whole)
    assert not folder.exists()


def test_run_moves_to_another_device(tmp_path, capsys):
    """A state as CUDA's, on the CPU: weights go on, batches are drawn anew, the same ones each time."""
    folder = kill(Args(runs_dir=str(tmp_path)), 9)
    saved = checkpoint(folder)
    for stage in saved["stages"].values():
        noise = [torch.zeros(5056, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)]
        stage |= {"device": "cuda", "generator": torch.arange(16, dtype=torch.uint8), "noise": noise}
    torch.save(saved, folder / "checkpoint.pt")
    ends = []
    for name in ("first", "second"):
        shutil.copytree(folder, copy := tmp_path / name)
        capsys.readouterr()
        train(parse("--resume", copy))
        said = "learner: on cuda up to update 8, on cpu from here on, with newly drawn batches.\n"
        out = capsys.readouterr().out
        assert out.count(said) == (name == "first") and "quantizer: on" not in out  # once; it is finished
        assert metrics(copy)[:-1] == metrics(folder)
        assert checkpoint(copy)["stages"]["learner"]["device"] == "cpu"
        ends.append(copy)
    assert_same_run(*ends)


# --- longer and shorter ---
def test_longer(tmp_path):
    """A finished run goes on to more steps as if these had been its own from the start."""
    wanted = train(Args(runs_dir=str(tmp_path / "wanted"), steps=16))
    for steps in (8, 9, 10, 14):
        folder = train(Args(runs_dir=str(tmp_path), steps=steps))
        args = parse("--resume", folder, "--steps", 16)
        kill(args, 15)
        assert not (folder / "result.json").exists(), "the shorter run's"
        with pytest.raises(d4rl.UsageError, match="no finished learner"):
            runs.read_run(folder, stage="learner")
        assert (
            parse("--resume", folder).steps == 16 == json.loads((folder / "args.json").read_text())["steps"]
        )
        train(parse("--resume", folder))
        ours, theirs = (checkpoint(place)["stages"] for place in (folder, wanted))
        assert same(*({**stages["learner"], "seconds": 0} for stages in (ours, theirs)))
        assert result(folder)["score"] == result(wanted)["score"]
        if steps == 8:  # its last row is one of the longer run's
            assert_same_run(folder, wanted)


def test_shorter(tmp_path):
    """Down to what is done: then it is finished."""
    wanted = train(Args(runs_dir=str(tmp_path / "wanted"), steps=9))
    folder = kill(Args(runs_dir=str(tmp_path)), 9)
    with pytest.raises(d4rl.UsageError, match="--steps is 7, but .* has done 8; give that or more"):
        parse("--resume", folder, "--steps", 7)
    train(parse("--resume", folder, "--steps", 9))
    assert_same_run(folder, wanted)
    folder = kill(Args(runs_dir=str(tmp_path)), 9)
    train(parse("--resume", folder, "--steps", 8))
    assert checkpoint(folder)["stages"]["learner"]["finished"] and result(folder)["score"] < 0


def test_steps_where_the_rate_falls(tmp_path):
    """Unless stage 2 has not begun."""
    args = Args(runs_dir=str(tmp_path), anneal_lr=True)
    for folder in (train(args), kill(args, 9)):
        for steps in (9, 16):
            reason = "--steps has to stay 10: the learning rate of .* falls towards update 10"
            with pytest.raises(d4rl.UsageError, match=reason):
                parse("--resume", folder, "--steps", steps)
        assert parse("--resume", folder, "--steps", 10).steps == 10
    folder = kill(args, 9, stage="quantizer")
    train(parse("--resume", folder, "--steps", 16))
    assert_same_run(folder, train(replace(args, steps=16)))


def test_policy_without_optimizer(tmp_path):
    """As those that come with the repository: played and loaded, not trained further."""
    folder = train(Args(runs_dir=str(tmp_path)))
    saved = checkpoint(folder)
    del saved["stages"]["learner"]["optimizer"]
    torch.save(saved, folder / "checkpoint.pt")
    with pytest.raises(d4rl.UsageError, match="a trained policy without what training goes on from"):
        parse("--resume", folder)
    assert parse("--evaluate", folder).steps == saved["args"]["steps"]


# --- the lock ---
SECOND = """
import sys, time, test_runs
try:
    run = test_runs.runs.Run("toy", test_runs.parse("--resume", sys.argv[1]), test_runs.SPACES)
except test_runs.d4rl.UsageError as error:
    sys.exit(f"refused: {error}")
print("holds", flush=True)
time.sleep(100)
"""


def test_two_processes(tmp_path):
    """The second says who has it; a kill leaves no lock; a later run in the same process takes over."""
    folder = kill(Args(runs_dir=str(tmp_path)), 5)
    second = [sys.executable, "-c", SECOND, str(folder)]
    paths = os.pathsep.join(map(str, [ROOT, ROOT / "tests"]))
    settings = dict(env=os.environ | {"PYTHONPATH": paths}, text=True, stdout=subprocess.PIPE)
    first = runs.Run("toy", parse("--resume", folder), SPACES)
    said = subprocess.run(second, **settings, stderr=subprocess.PIPE).stderr
    who = f"{folder} is in use by process {os.getpid()} on {socket.gethostname()} since 20"
    assert said.startswith(f"refused: {who}") and said.endswith("; wait until it ends, or stop it.\n")
    assert (
        train(parse("--resume", folder)) == first.folder
    )  # which is alive; the lock is released all the same
    with subprocess.Popen(second, **settings) as process:
        while "holds" not in (line := process.stdout.readline()):
            assert line, "it got no lock"
        before = {path: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(d4rl.UsageError, match=f"in use by process {process.pid} on "):
            train(parse("--resume", folder))
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        process.kill()
    train(parse("--resume", folder))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, ""), NotImplementedError(), OSError(errno.EROFS, "")]
)
def test_drive_without_locks(error, tmp_path, monkeypatch, capsys):
    """Trains, with a word."""
    monkeypatch.setattr(runs.FileLock, "acquire", lambda self: raising(error)())
    if error.args and error.errno == errno.EROFS:
        with pytest.raises(OSError):
            train(Args(runs_dir=str(tmp_path)))
    else:
        folder = train(Args(runs_dir=str(tmp_path)))
        assert f"{folder} is on a drive without locks: take care" in capsys.readouterr().out


# --- the way out ---
def guarded(main, parse_args=lambda: None):
    """The exit code of a script; "SIGINT" if Ctrl-C ended it and a second one would at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, runs.Run.latest = sys.excepthook, None
    try:
        runs.guard(lambda args: main(), parse_args)
    except SystemExit as exit:
        return exit.code
    except KeyboardInterrupt as stop:  # Python ends as the signal would have ended it
        sys.excepthook(type(stop), stop, None)
        return "SIGINT" if signal.getsignal(signal.SIGINT) is signal.SIG_DFL else None
    finally:
        sys.excepthook, runs.Run.latest = hook, None
        for number, handler in before.items():
            signal.signal(number, handler)


def raising(error):
    def main():
        raise error

    return main


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
)
MENDABLE = [
    (d4rl.UsageError("--lr is odd."), "--lr is odd."),
    (d4rl.DatasetError("No\n data."), "No data."),
    (OSError(errno.EROFS, "", "a"), "a: Read-only file system; it has to be readable and writable."),
    (OSError(errno.EDQUOT, ""), "disk: Disk quota exceeded; make room."),
    (MemoryError(), "out of memory (MemoryError); use smaller sizes, less data or another --device."),
    (
        RuntimeError(ALLOCATOR),
        f"out of memory ({ALLOCATOR}); use smaller sizes, less data or another --device.",
    ),
    (
        RuntimeError("Error(s) in loading state_dict for Learner: q"),
        "the run has other networks than this script: use the version that trained it "
        "(Error(s) in loading state_dict for Learner: q).",
    ),
    (torch.OutOfMemoryError("On"), "out of memory (On); use smaller sizes, less data or another --device."),
]


@pytest.mark.parametrize(("error", "said"), MENDABLE)
def test_errors_that_are_no_bugs(error, said, capsys):
    """One sentence, exit code 2; also while the command line is read."""
    assert guarded(raising(error)) == guarded(None, raising(error)) == 2
    assert capsys.readouterr().err == f"error: {said}\n" * 2


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), FileNotFoundError(errno.ENOENT, ""), KeyError("x")]
)
def test_bugs_keep_their_traceback(error):
    with pytest.raises(type(error)):
        guarded(raising(error))


def test_guard_calls_main_with_what_was_parsed():
    got, usual = [], signal.getsignal(signal.SIGTERM)
    runs.guard(got.append, lambda: "args")
    signal.signal(signal.SIGTERM, usual)
    assert got == ["args"]


def test_interrupts(tmp_path, capsys, monkeypatch):
    """One line with the command that resumes, if there is a run; a second Ctrl-C ends it at once."""
    monkeypatch.setattr(sys, "argv", ["baselines/a b.py"])

    def train_and(stop):
        runs.Run("toy", Args(runs_dir=str(tmp_path)), SPACES)
        stop()

    interrupt = raising(KeyboardInterrupt())
    for main, resumes in ((lambda: train_and(interrupt), True), (interrupt, False)):
        capsys.readouterr()
        assert guarded(main) == "SIGINT"
        command = f"; go on with: python 'baselines/a b.py' --resume {run_folders(tmp_path)[0]}"
        assert capsys.readouterr().err == f"stopped{command if resumes else '.'}\n"
    monkeypatch.setattr(signal, "SIGTERM", signal.SIGUSR1)  # pytest would die of the other without a guard
    usual = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert guarded(lambda: train_and(lambda: signal.raise_signal(signal.SIGTERM))) == 128 + signal.SIGTERM
    signal.signal(signal.SIGTERM, usual)
    assert "go on with: python" in capsys.readouterr().err


def test_full_disk(tmp_path, monkeypatch, capsys):
    """What was half written is taken away; the checkpoint before is whole; the sentence says how to go on."""
    whole = whole_run(tmp_path)
    sync, count = os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] > 4 + 2 * 2:  # in the third row's checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert guarded(lambda: train(Args(runs_dir=str(tmp_path), codebook_size=5))) == 2
    (folder,) = run_folders(tmp_path)
    advice = f"go on with: {shlex.join(['python', sys.argv[0], '--resume', str(folder)])}"
    problem = f"{folder}/checkpoint.pt: No space left on device; make room"
    assert capsys.readouterr().err == f"error: {problem}; {advice}\n"
    assert not list(folder.glob("*.tmp")) and checkpoint(folder)["stages"]["quantizer"]["step"] == 8
    train(parse("--resume", folder))
    assert_same_run(folder, whole)


def test_a_run_that_cannot_begin(tmp_path, monkeypatch):
    """A new one leaves nothing, a resumed one what it was."""
    whole = whole_run(tmp_path)
    monkeypatch.setattr(runs, "SummaryWriter", lambda folder: raising(OSError(errno.ENOSPC, ""))())
    for args in (Args(runs_dir=str(tmp_path)), parse("--resume", whole)):
        with pytest.raises(OSError):
            train(args)
    assert not run_folders(tmp_path) and runs.read_run(whole, stage="learner")


@pytest.mark.parametrize("place", ["file", "file/below", "a" * 300, "gone/below"])
def test_a_folder_that_cannot_be_made(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "file")
    with pytest.raises(d4rl.UsageError, match=f"--runs-dir .*{place}: no folder .*; name another one"):
        train(Args(runs_dir=str(tmp_path / place)))


@pytest.mark.parametrize("error", [ImportError(), RuntimeError("api_key not\nconfigured"), None])
def test_track_that_does_not_work(error, tmp_path, monkeypatch):
    """No package, no login, no server: before training, and nothing is left of the run."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    said = '--track needs Weights & Biases, which is missing: pip install -e "./d4rl[wandb]" in the clone'
    if not isinstance(error, ImportError):
        monkeypatch.setitem(sys.modules, "wandb", wandb := Wandb())
        wandb.init = lambda **settings: raising(error or TimeoutError())()
        said = f"does not work here ({'api_key not configured' if error else ''}); log in with `wandb login`"
    with pytest.raises(d4rl.UsageError, match=re.escape(said)):
        train(Args(runs_dir=str(tmp_path), track=True))
    assert not run_folders(tmp_path)
