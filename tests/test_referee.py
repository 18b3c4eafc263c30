"""benchmark/referee.py: the mapping of settings, the table, bad input; that d3rlpy learns what ours does."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from common import HOPPER, ROOT, dataset, load, play, run, tiny

referee = load(ROOT / "benchmark" / "referee.py", "referee")
needs_d3rlpy = pytest.mark.skipif(
    not importlib.util.find_spec("d3rlpy"), reason="needs d3rlpy, in an environment of its own"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("data") / "data.hdf5")


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory, data):
    """A run of SAQ-CQL that acts with drawn codes."""
    return run("saq_cql", tmp_path_factory.mktemp("runs"), "--env-id", HOPPER, "--dataset-path", data)


def arguments(learner: str, *flags: str):
    return referee.load(referee.OURS[learner]).parse_args([*flags, *referee.RULES.get(learner, [])])


def flags(learner: str, data, quantizer=None) -> list[str]:
    given = [*tiny("baselines/bc"), "--env-id", HOPPER, "--dataset-path", str(data)]
    return given + (["--quantizer-from", str(quantizer)] if learner == "discrete_cql" else [])


# --- settings ---
@pytest.mark.parametrize(
    "learner, flags, mapped",
    [
        ("bc", "--batch-size 99 --lr 0.007", dict(batch_size=99, learning_rate=0.007)),
        ("iql", "--discount 0.9 --target-rate 0.1", dict(gamma=0.9, tau=0.1, n_critics=2)),
        ("iql", "--lr 0.007", dict(actor_learning_rate=0.007, critic_learning_rate=0.007)),
        ("iql", "--temperature 0.5 --expectile 0.8", dict(weight_temp=2.0, expectile=0.8, max_weight=100.0)),
        ("cql", "--discount 0.9 --target-rate 0.1", dict(gamma=0.9, tau=0.1, n_critics=2)),
        ("cql", "--conservatism 5 --num-actions 4", dict(conservative_weight=10.0, n_action_samples=4)),
        ("cql", "--max-backup", dict(max_q_backup=True, soft_q_backup=False)),
        ("cql", "--lr 0.0003", dict(initial_temperature=1.0, temp_learning_rate=0.0003)),
        ("cql", "--lr 0.007", dict(actor_learning_rate=0.007, alpha_learning_rate=0.0)),
        ("cql", "--no-learn-temperature --temperature 2", dict(initial_temperature=2, temp_learning_rate=0)),
        ("discrete_cql", "--conservatism 5 --steps 70", dict(alpha=5.0, target_update_interval=71)),
    ],
)
def test_our_settings_are_handed_over(learner, flags, mapped):
    found = referee.settings(learner, arguments(learner, *flags.split()))
    assert {name: found[name] for name in mapped} == mapped


@needs_d3rlpy
@pytest.mark.parametrize("learner", referee.OURS)
def test_every_learning_rate_falls_with_ours(learner):
    """With --anneal-lr all optimizers of d3rlpy have a schedule, without it that of IQL's policy alone."""
    always = {"actor_optim"} if learner == "iql" else set()
    for flag, falling in (("--anneal-lr", None), ("--no-anneal-lr", always)):
        args = arguments(learner, "--steps", "70", flag)
        modules = vars(referee.make_algorithm(learner, args, 4, 2).impl.modules)
        optimizers = {name for name in modules if name.endswith("optim")} - {"alpha_optim"}  # whose rate is 0
        schedules = {name: modules[name]._lr_scheduler for name in optimizers if modules[name]._lr_scheduler}
        assert schedules.keys() == (optimizers if falling is None else falling)
        assert {schedule.T_max for schedule in schedules.values()} <= {70}


def test_weight_decay_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        referee.run("iql", ["--weight-decay", "1"], [])
    assert "add --weight-decay 0" in capsys.readouterr().err


# --- table ---
def line(by: str, seed: int, score: float, **changes) -> dict:
    args = {"env_id": "hopper-medium-expert-v2", "seed": seed, "steps": 30_000, "lr": 3e-4} | changes
    return {"by": by, "learner": "bc", "data": "file.hdf5", "score": score, "args": args}


def test_table_shows_means_difference_and_standard_error(tmp_path, capsys):
    out = tmp_path / "referee.jsonl"
    for by, seed, score in (("ours", 1, 50.0), ("ours", 0, 40.0), ("d3rlpy", 0, 44.0), ("d3rlpy", 1, 40.0)):
        referee.append(out, line(by, seed, score))
    referee.main(["--table", "--out", str(out)])
    # standard errors: 10 / sqrt(2) / sqrt(2) = 5 and 4 / 2 = 2; together sqrt(29) = 5.4
    row = "file.hdf5 | bc | 30,000 | 45.0 (40.0, 50.0) | 42.0 (44.0, 40.0) | +3.0 ± 5.4 |"
    assert capsys.readouterr().out.splitlines()[2:] == [f"| hopper-medium-expert-v2 | {row}"]


def test_runs_with_other_arguments_are_not_compared():
    rows = referee.runs_table([line("ours", 0, 40.0), line("d3rlpy", 0, 44.0, lr=1e-3)]).splitlines()[2:]
    ends = [row.split(" | ")[-3:] for row in rows]
    assert ends == [["40.0 (40.0)", "–", "– |"], ["–", "44.0 (44.0)", "– |"]]


def test_the_page_shows_the_table_of_the_results():
    rows = referee.runs_table(referee.read_lines(ROOT / "results" / "referee.jsonl")).splitlines()[2:]
    page = (ROOT / "docs" / "notes" / "referee.md").read_text()
    assert len(rows) > 1 and [row for row in rows if row not in page] == []


# --- our side ---
def test_our_run_is_played_greedily_once(tmp_path, quantizer, capsys):
    out = tmp_path / "referee.jsonl"
    referee.main(["--ours", str(quantizer), "--out", str(out)])
    (kept,) = referee.read_lines(out)
    assert (kept["by"], kept["learner"], kept["args"]["acting"]) == ("ours", "discrete_cql", "greedy")
    assert kept["score"] == play("saq_cql", "--evaluate", quantizer, "--acting", "greedy")
    referee.main(["--ours", str(quantizer), "--out", str(out)])
    assert len(referee.read_lines(out)) == 1 and "skipped" in capsys.readouterr().out


# --- bad input ---
@pytest.mark.parametrize(
    "argv, problem",
    [
        ([], "nothing to do"),
        (["--seed", "1"], "--learner bc|iql|cql|discrete_cql"),
        (["--learner", "discrete_cql"], "--quantizer-from RUN"),
        (["--ours", "nowhere"], "nowhere is not the folder of a finished run"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, argv, problem):
    with pytest.raises(SystemExit) as stopped:
        referee.main([*argv, "--out", str(tmp_path / "referee.jsonl")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert problem in error


def test_without_d3rlpy_it_says_how_to_install_it(tmp_path, capsys, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "d3rlpy", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stopped:
        referee.main(["--learner", "bc", "--env-id", HOPPER, "--dataset-path", str(data)])
    assert stopped.value.code == 2
    assert "pip install -r benchmark/referee_requirements.txt" in capsys.readouterr().err


# --- d3rlpy's side ---
@needs_d3rlpy
@pytest.mark.parametrize("learner", referee.OURS)
def test_a_run_is_kept_and_skipped_the_second_time(tmp_path, learner, data, quantizer):
    argv = ["--learner", learner, *flags(learner, data, quantizer), "--out", str(tmp_path / "referee.jsonl")]
    referee.main(argv)
    referee.main(argv)
    (kept,) = referee.read_lines(tmp_path / "referee.jsonl")
    assert np.isfinite(kept["score"]) and len(kept["returns"]) == 3 and kept["args"]["hidden_dim"] == 32


def copied(learner: str, args, noise: float = 0.01):
    """Our script, its data, our learner, d3rlpy's with the weights of ours. `noise`: targets that differ."""
    ours = referee.load(referee.OURS[learner])
    data, _ = ours.load_data(args)
    discrete = learner == "discrete_cql"
    networks = ours.Learner(args, 11) if discrete else ours.Learner(args, 11, 3)
    for weights in networks.q_target.parameters() if learner != "bc" else []:
        weights.data += noise * torch.randn_like(weights)
    theirs = referee.make_algorithm(learner, args, 11, args.codebook_size if discrete else 3)
    pairs = {"q": "q_funcs", "q_target": "targ_q_funcs", "v": "value_func", "policy": "policy"}
    pairs |= {"policy": "imitator"} if learner == "bc" else {}
    for name, network in networks.named_children():
        weights = {x: y for x, y in network.named_parameters() if x != "log_std"}
        module = getattr(theirs.impl.modules, pairs[name])
        copies = [y for x, y in module.named_parameters() if not (x == "_logstd" and learner == "iql")]
        new = list(weights.values())
        if learner == "cql" and name == "policy":  # one layer of ours, two of theirs: mean and log std
            halves = [half for last in new[-2:] for half in last.chunk(2)]  # weight, weight, bias, bias
            new = new[:-2] + [halves[i] for i in (0, 2, 1, 3)]
        elif learner == "bc":  # its log std has no counterpart
            new = new[:-2] + [last[:3] for last in new[-2:]]
        for copy, value in zip(copies, new, strict=True):
            assert copy.shape == value.shape
            copy.data.copy_(value.data)
    return ours, data, networks, theirs


def both_batches(learner: str, data):
    """The first 32 transitions, as ours and as d3rlpy's."""
    from d3rlpy.torch_utility import TorchMiniBatch

    batch = type(data)(*(array[:32] for array in data))
    return batch, TorchMiniBatch.from_batch(referee.minibatch(learner, batch), 0.99, False, "cpu:0")


@needs_d3rlpy
def test_a_quantizer_of_other_data_is_refused(tmp_path, capsys, quantizer):
    argv = flags("discrete_cql", dataset(tmp_path / "other.hdf5", seed=1), quantizer)
    with pytest.raises(SystemExit, match="2"):
        referee.main(["--learner", "discrete_cql", *argv, "--out", str(tmp_path / "out")])
    assert "was trained on other data" in capsys.readouterr().err


@needs_d3rlpy
def test_bc_has_our_loss(data):
    args = arguments("bc", *flags("bc", data))
    ours, data, networks, theirs = copied("bc", args)
    batch, their_batch = both_batches("bc", data)
    loss = theirs.impl.compute_loss(their_batch.observations, their_batch.actions).loss
    assert 3 * loss.item() == pytest.approx(ours.learner_loss(args, networks, batch)[0].item(), rel=1e-5)


@needs_d3rlpy
def test_iql_has_our_losses(data):
    args = arguments("iql", *flags("iql", data), "--temperature", "0.5")
    ours, data, networks, theirs = copied("iql", args)
    theirs.impl.modules.policy._logstd.data.fill_(np.log(2.5))  # -5 + 7 sigmoid(x) = 0, where ours starts
    batch, their_batch = both_batches("iql", data)
    losses = ours.learner_loss(args, networks, batch)[1]
    critic = theirs.impl.compute_critic_loss(their_batch, theirs.impl.compute_target(their_batch))
    actor = theirs.impl.compute_actor_loss(their_batch, theirs.impl.modules.policy(their_batch.observations))
    two = 2 * losses["losses/q"].item()  # a sum over critics
    assert critic.q_loss.item() == pytest.approx(two, rel=1e-5)
    assert critic.v_loss.item() == pytest.approx(losses["losses/v"].item(), rel=1e-5)
    assert actor.actor_loss.item() == pytest.approx(losses["losses/policy"].item(), rel=1e-5)


@needs_d3rlpy
def test_cql_has_four_times_our_critic_loss(tmp_path):
    """Up to the constant log of the number of actions; with so many that both estimates agree."""
    ends = dict(terminals=np.ones(300, dtype=bool), timeouts=np.zeros(300, dtype=bool))
    ends = dataset(tmp_path / "data.hdf5", **ends)
    args = arguments("cql", *flags("cql", ends), "--num-actions", "1000", "--conservatism", "5")
    ours, data, networks, theirs = copied("cql", args)
    batch, their_batch = both_batches("cql", data)
    losses = ours.learner_loss(args, networks, batch)[1]
    critic = theirs.impl.compute_critic_loss(their_batch, theirs.impl.compute_target(their_batch))
    penalty = losses["losses/penalty"].item() + np.log(3 * args.num_actions)
    wanted = 4 * (0.5 * losses["losses/q"].item() + args.conservatism * penalty)
    assert critic.critic_loss.item() == pytest.approx(wanted, rel=2e-3)
    assert critic.conservative_loss.item() == pytest.approx(4 * args.conservatism * penalty, rel=2e-3)


@needs_d3rlpy
@pytest.mark.parametrize("schedule", ["--anneal-lr", "--no-anneal-lr"])
def test_discrete_cql_ends_at_the_weights_of_saq_cql(schedule, data, quantizer):
    """From the same start to the same weights while TD errors are below 1: there its Huber loss is ours."""
    small = "--no-normalize-rewards --reward-scale 0.1 --steps 50 --lr 0.0003".split()
    args = arguments("discrete_cql", *flags("discrete_cql", data, quantizer), *small, schedule)
    ours, data, networks, theirs = copied("discrete_cql", args, noise=0)
    data = data._replace(code=torch.arange(len(data.obs)) % args.codebook_size)
    before = [weights.clone() for weights in networks.q.parameters()]
    optimizer = torch.optim.Adam(networks.q.parameters(), lr=args.lr)
    generator = torch.Generator().manual_seed(args.seed)
    for step in range(args.steps):
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = args.lr * (1 + np.cos(np.pi * step / args.steps)) / 2
        index = torch.randint(len(data.obs), (args.batch_size,), generator=generator)
        optimizer.zero_grad()
        ours.learner_loss(args, networks, type(data)(*(array[index] for array in data)))[0].backward()
        optimizer.step()
        networks.move_target(args.target_rate)
    referee.train("discrete_cql", args, theirs, data)
    for name, module in (("q", "q_funcs"), ("q_target", "targ_q_funcs")):
        copies = getattr(theirs.impl.modules, module).parameters()
        for copy, weights in zip(copies, getattr(networks, name).parameters(), strict=True):
            assert torch.allclose(copy, weights, atol=1e-5)
    for start, weights in zip(before, networks.q.parameters(), strict=True):
        assert not torch.allclose(start, weights, atol=1e-3)
