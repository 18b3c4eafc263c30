"""Every script end to end: the loop, what a run writes, every flag, what it plays and what `load` gives."""

import os
import subprocess
import sys
import typing
from dataclasses import fields

import common
import numpy as np
import pytest
import torch
from common import (
    FIRST_STAGE,
    HOPPER,
    PATHS,
    SAQ,
    SCRIPTS,
    metrics,
    play,
    result,
    run,
    same,
    tiny,
    weights,
)

import d4rl

CODES = [*SAQ, "baselines/aquadem"]  # with actions turned into codes first
NOISY = ["baselines/cql", "baselines/brac", "baselines/aquadem"]  # noise in their losses is seeded by update
STAGES = {name: [FIRST_STAGE[name], "learner"] if name in FIRST_STAGE else ["learner"] for name in PATHS}


# --- the loop ---
def noisy(loss):
    """A loss with noise in it, so that it shows when the noise is seeded."""

    def noisy_loss(*arguments):
        value, *rest = loss(*arguments)
        return value * (1 + torch.rand(())), *rest

    return noisy_loss


def move_codebook(vqvae, embedding, code):
    """In place of the quantizer's own: where it goes shows when it is called, and with what."""
    vqvae.codebook.data += vqvae.encoder[0].bias.mean() + embedding.mean() + code.double().mean()


def train_by_hand(script, args) -> tuple[dict, dict, float]:
    """Weights of every stage after a run, its learning rates, and the quantizer's held-out error."""
    module, two_models = SCRIPTS[script], script in CODES
    torch.manual_seed(args.seed)
    data, spaces = module.load_data(args)
    if two_models:
        first, learner = module.make_models(args, spaces)
    else:
        learner = module.Learner(args, len(spaces.obs_mean), len(spaces.action_low))
    trained, rates, error = {}, {}, None
    for stage in STAGES[script]:
        model = learner if stage == "learner" else first if two_models else learner.behaviour
        steps = args.steps  # the same in every stage
        rows = torch.arange(len(data.obs))
        if stage == "quantizer":
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed))
            heldout, rows = order[: len(rows) // 20 + 1], order[len(rows) // 20 + 1 :]
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = [weights.pop(name) for name in ("log_temperature",) if name in weights]  # by weight decay
        groups = [{"params": list(weights.values())}]
        groups += [{"params": kept, "weight_decay": 0}] if kept else []
        if script == "baselines/iql":  # the learning rate of its policy falls in any case
            groups = [{"params": list(model.policy.parameters())}]
            groups += [{"params": [*model.q.parameters(), *model.v.parameters()]}]
        optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay, fused=True)
        generator = torch.Generator().manual_seed(args.seed)
        for step in range(steps):
            for i, group in enumerate(optimizer.param_groups):
                falls = args.anneal_lr or (script == "baselines/iql" and i == 0)
                group["lr"] = args.lr * (0.5 + 0.5 * np.cos(np.pi * step / steps)) if falls else args.lr
            if script in NOISY:
                torch.manual_seed(args.seed * 10**6 + step + 1)
            index = rows[torch.randint(len(rows), (args.batch_size,), generator=generator)]
            batch = module.Transitions(*(array[index] for array in data))
            if stage == "behaviour":
                loss, _ = module.behaviour_loss(learner, batch)
            else:
                loss, _, *moves = getattr(module, f"{stage}_loss")(args, model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage == "quantizer" and script in SAQ:
                model.move_codebook(*moves)
            elif stage == "learner" and hasattr(model, "q_target"):
                for slow, fast in zip(model.q_target.parameters(), model.q.parameters(), strict=True):
                    slow.data.lerp_(fast.data, args.target_rate)
        if stage == "quantizer":
            with torch.no_grad():
                data = data._replace(code=first.encode(data.obs, data.action))
                obs, action, code = data.obs[heldout], data.action[heldout], data.code[heldout]
                decoded = first.decode(obs, code) if script in SAQ else first(obs)[range(len(code)), code]
                error = (decoded - action).pow(2).sum(1).mean().item()
        elif stage == "behaviour":
            learner.policy.load_state_dict(learner.behaviour.requires_grad_(False).state_dict())
        trained[stage] = {name: value.clone() for name, value in model.state_dict().items()}
        rates[stage] = [group["lr"] for group in optimizer.param_groups]
    return trained, rates, error


@pytest.mark.parametrize("anneal", ["--anneal-lr", "--no-anneal-lr"])
@pytest.mark.parametrize("script", PATHS)
def test_training_equals_a_loop_by_hand(script, anneal, finished, tmp_path, monkeypatch):
    """Seeds, batches, held-out rows, order of the calls, learning rate, decay, encoded once, bit for bit.

    Evaluation in between does not disturb it. Denormal numbers are 0: they halve the speed of continuous CQL.
    """
    module, (_, data) = SCRIPTS[script], finished(script)
    for name in ("quantizer_loss", "learner_loss", "behaviour_loss"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, noisy(getattr(module, name)))
    if script in SAQ:
        monkeypatch.setattr(module.VQVAE, "move_codebook", move_codebook)
    flags = [*tiny(script, steps=6, eval_every=4, episodes=1), "--seed", 3, "--lr", 0.01, anneal]
    flags += ["--weight-decay", 0.5]
    torch.set_flush_denormal(False)
    folder = run(script, tmp_path, *data, *flags)
    assert torch.tensor(1e-30) * 1e-10 == 0
    args = module.parse_args([str(flag) for flag in [*data, *flags]])
    trained, rates, error = train_by_hand(script, args)
    for stage, state in common.checkpoint(folder)["stages"].items():
        assert same(state["model"], trained[stage]), stage
        assert [group["lr"] for group in state["optimizer"]["param_groups"]] == pytest.approx(rates[stage])
    if error is not None:
        name = "vqvae/heldout_error" if script in SAQ else "charts/heldout_error"
        assert float(metrics(folder)[1][name]) == pytest.approx(error, rel=1e-5)


# --- what a run writes ---
def test_bundled_task_and_other_programs(tmp_path):
    """As a user starts it: a process of its own, the data of the repository, W&B without an account."""
    pytest.importorskip("wandb")
    flags = [*tiny("saq_bc", eval_every=20, episodes=1), "--runs-dir", tmp_path, "--track"]
    done = process(sys.executable, PATHS["saq_bc"], *flags, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    (folder,) = common.run_folders(tmp_path)
    assert folder.name.startswith("maze2d-large-demos-v0__saq_bc__0__")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    about, where, of_codes, score = done.stdout.splitlines()
    assert "2,400 steps, 3 episodes" in about and where == str(folder) and " codes are used; " in of_codes
    assert score.startswith("score ") and score.endswith(f"; {folder}")


@pytest.mark.parametrize("script", PATHS)
def test_rows(script, finished):
    """One for every evaluation of every stage, with finite numbers under the four headings."""
    rows = metrics(finished(script)[0])
    wanted = [(stage, step) for stage in STAGES[script] for step in ("10", "20")]
    assert [(row["stage"], row["step"]) for row in rows] == wanted
    for row in rows:
        logged = {name: float(value) for name, value in row.items() if value and "/" in name}
        assert np.isfinite(list(logged.values())).all()
        wanted = {"eval/score", "eval/return"} if row["stage"] == "learner" else {f"losses/{row['stage']}"}
        if row["stage"] == "quantizer":
            group = "vqvae" if script in SAQ else "charts"
            wanted = {f"{group}/{name}" for name in ("codes_used", "perplexity", "heldout_error")}
        assert wanted <= logged.keys()


def test_a_found_temperature_stays(tmp_path):
    """Played with another one, or as if found for another KL, it would be the score of something else."""
    data = ["--env-id", HOPPER, "--dataset-path", str(common.dataset(tmp_path / "data.hdf5"))]
    folder = run("saq_iql", tmp_path, *data, "--kl", 0.2)
    row = metrics(folder)[-1]
    saved = common.checkpoint(folder)["stages"]["learner"]["model"]["temperature"]
    assert float(row["charts/temperature"]) == saved != 3 and float(row["charts/kl"]) == pytest.approx(
        0.2, rel=1e-3
    )
    iql = SCRIPTS["saq_iql"]
    for flag in ("--temperature", "--kl"):
        with pytest.raises(d4rl.UsageError, match=f"{flag} is 5.0, but .* has to stay so"):
            iql.parse_args(["--evaluate", str(folder), flag, "5"])
        with pytest.raises(d4rl.UsageError, match="no argument that a trained policy can change"):
            iql.load(folder, **{flag[2:]: 5.0})


# --- every flag, saved and loaded ---
def choices():
    """(script, flags): every value but the default of every boolean and of every flag with choices."""
    for script, module in SCRIPTS.items():
        yield script, []
        defaults = module.parse_args(["--env-id", HOPPER])
        for name, kind in typing.get_type_hints(module.Args).items():
            flag, default = name.replace("_", "-"), getattr(defaults, name)
            if name in ("track", "capture_video", "device", "cuda_graph", "anneal_lr"):
                continue  # tests of their own
            if kind is bool and (name, script) not in [("revive", other) for other in SAQ[1:]]:  # slow: once
                yield script, [f"--no-{flag}" if default else f"--{flag}"]
            for value in typing.get_args(kind):
                if value != default:
                    yield script, [f"--{flag}", value]


@pytest.mark.parametrize(("script", "flags"), list(choices()), ids=lambda part: "".join(part))
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


@pytest.mark.parametrize("script", SAQ)
def test_quantizer_of_another_run(script, finished, tmp_path):
    """--quantizer-from ends like training the quantizer anew, whichever script it comes from."""
    (folder, flags), (other, _) = finished(script), finished("saq_bc" if script != "saq_bc" else "saq_cql")
    taken = run(script, tmp_path, *flags, "--quantizer-from", other)
    assert all(same(weights(taken, stage), weights(folder, stage)) for stage in STAGES[script])
    assert result(taken)["returns"] == result(folder)["returns"] and metrics(taken) == metrics(folder)


# --- spaces ---
@pytest.mark.parametrize("script", PATHS)
def test_actions_and_constant_entries(script, pendulum, tmp_path):
    """Whatever the bounds of the action space; an entry that never changes is shifted, not scaled."""
    module = SCRIPTS[script]
    data, spaces = module.load_data(module.parse_args(list(map(str, pendulum))))
    assert spaces.action_high == 2 and (data.action == torch.tensor(0.9)).all()
    assert spaces.obs_std[2] == 1 and data.obs[:, 2].abs().max() < 1e-5
    flags = [
        "--steps",
        300,
        "--eval-every",
        300,
        "--lr",
        0.01,
        *(["--vqvae-steps", 300] if script in SAQ else []),
    ]
    folder = run(script, tmp_path, *pendulum, *flags)
    obs = np.array([[0.3, -0.2, 5.3], [0.1, 0.6, 5.3]])
    tolerance = 0.6 if script == "baselines/cql" else 0.3  # its policy maximises entropy as well
    np.testing.assert_allclose(module.load(folder)(obs), 1.8, atol=tolerance)
    assert np.abs(module.load(folder)(1e6 * obs)).max() <= 2


# --- load ---
@pytest.mark.parametrize("script", PATHS)
def test_load_plays_as_evaluate_does(script, finished, tmp_path):
    """An episode by hand, with every way of acting, is the first episode of evaluation."""
    folder, module = finished(script)[0], SCRIPTS[script]
    for acting in ("greedy", "mean", "sample") if script in CODES else (None,):
        changes = {"acting": acting} if acting else {}
        act = module.load(folder, **changes)
        env = d4rl.make(HOPPER)
        obs, _ = env.reset(seed=0)
        total, over = 0.0, False
        while not over:
            action = act(obs)
            assert action.shape == (3,) and action.dtype == np.float32 and np.abs(action).max() <= 1
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + reward, terminated or truncated
        score = 100 * d4rl.get_normalized_score(HOPPER, total)
        flags = ["--eval-episodes", 1, *(f"--{name}={value}" for name, value in changes.items())]
        assert play(script, "--evaluate", folder, *flags) == pytest.approx(score, rel=1e-4)
        if acting in (None, common.checkpoint(folder)["args"].get("acting")):
            assert total == pytest.approx(result(folder)["returns"][0], rel=1e-4)


@pytest.mark.parametrize("script", PATHS)
def test_load_takes_one_observation_or_a_batch(script, finished):
    folder, module = finished(script)[0], SCRIPTS[script]
    obs = np.random.default_rng(0).normal(size=(5, 11))  # float64, as Gymnasium has it
    greedy = {"acting": "greedy"} if script in CODES else {}
    before = obs.copy()
    actions = module.load(folder, **greedy)(obs)
    assert isinstance(actions, np.ndarray) and actions.shape == (5, 3) and len(np.unique(actions)) > 3
    np.testing.assert_allclose(module.load(str(folder), **greedy)(obs[2]), actions[2], rtol=1e-5)
    np.testing.assert_array_equal(obs, before)
    far = module.load(folder, **greedy)(1e6 * obs)
    assert np.abs(far).max() == 1  # within the action space


@pytest.mark.parametrize("script", PATHS)
def test_an_observation_of_another_size_is_refused(script, finished):
    """One number would be broadcast to eleven, and an action would come out."""
    act = SCRIPTS[script].load(finished(script)[0])
    for shape in [(), (1,), (10,), (4, 1), (2, 3, 11)]:
        with pytest.raises(d4rl.UsageError, match="an observation has shape"):
            act(np.zeros(shape))


def test_load_draws_codes_with_uniform(finished):
    """Given, it decides; else a generator of the policy's own does."""
    act, again = (SCRIPTS["saq_bc"].load(finished("saq_bc")[0], acting="sample") for _ in range(2))
    obs = np.zeros((200, 11))
    low, high = act(obs, np.zeros(200)), act(obs, np.full(200, 0.999))
    assert len(np.unique(low, axis=0)) == len(np.unique(high, axis=0)) == 1 and not np.allclose(low, high)
    drawn = act(obs)
    assert len(np.unique(drawn.round(4), axis=0)) > 3
    np.testing.assert_array_equal(drawn, again(obs))


@pytest.mark.parametrize("script", PATHS)
def test_load_of_what_is_no_run(script, finished, tmp_path):
    module = SCRIPTS[script]
    with pytest.raises(d4rl.UsageError, match="not the folder of a run"):
        module.load(tmp_path / "nowhere")
    with pytest.raises(d4rl.UsageError, match="is a run of"):
        module.load(finished("saq_iql" if script != "saq_iql" else "saq_bc")[0])


# --- the command line; its mechanics are in test_runs.py ---
@pytest.mark.parametrize("script", PATHS)
def test_settings_and_limits_name_tasks_and_arguments(script):
    module = SCRIPTS[script]
    names = {field.name for field in fields(module.Args)}
    for prefixes, settings in module.SETTINGS.items():
        for prefix in [prefixes] if isinstance(prefixes, str) else prefixes:
            args = module.parse_args(["--env-id", next(i for i in d4rl.TASKS if i.startswith(prefix))])
            assert settings.keys() <= names and {name: getattr(args, name) for name in settings} == settings
    assert {*module.LIMITS, *module.ACTING} <= names


@pytest.mark.parametrize("script", PATHS)
def test_help_explains_every_argument(script, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        SCRIPTS[script].parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    lines = PATHS[script].read_text().splitlines()
    for field in fields(SCRIPTS[script].Args):
        (line,) = (line for line in lines if line.startswith(f"    {field.name}: "))
        assert f"--{field.name.replace('_', '-')}" in shown and line.split("  # ")[1] in shown


def process(*command, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


RENDER_AND_RUN = """
import runpy, sys, d4rl, gymnasium
try:
    env = gymnasium.make("hopper-medium-v2", render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
except Exception as error:
    print(error)
    raise SystemExit(77)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_video_of_a_finished_run(finished):
    folder, _ = finished("saq_iql")
    command = [PATHS["saq_iql"], "--evaluate", folder, "--capture-video", "--eval-episodes", 1]
    environment = {"MUJOCO_GL": "egl", "PYTHONPATH": str(common.ROOT)}
    done = process(sys.executable, "-c", RENDER_AND_RUN, *command, **environment)
    if done.returncode == 77:
        pytest.skip(f"no OpenGL, MUJOCO_GL=egl cannot render here: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    (video,) = folder.glob("videos/*.mp4")
    assert video.stat().st_size > 1000
    video.unlink()


@pytest.mark.parametrize("script", PATHS)
def test_video_after_training(script, finished, tmp_path, monkeypatch):
    """Of the final policy, in the run's folder, once; whether it can be rendered is asked before training."""
    (plain, flags), folders, asked, evaluate = finished(script), [], [], d4rl.evaluate

    def without_rendering(env_id, act, episodes, seed, video, path):
        folders.append((episodes, video))
        return evaluate(env_id, act, episodes, seed, None, path)

    monkeypatch.setattr(d4rl, "evaluate", without_rendering)
    monkeypatch.setattr(d4rl.evaluation, "playable_task", lambda *args: asked.append((len(folders), *args)))
    folder = run(script, tmp_path, *flags, "--capture-video")
    assert folders == [(3, None), (3, None), (1, folder)] and asked == [(0, HOPPER, flags[-1], True)]
    assert result(folder)["returns"] == result(plain)["returns"]
