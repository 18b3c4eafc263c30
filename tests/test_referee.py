"""benchmark/referee.py: the mapping of settings, the table, bad input; with d3rlpy, that it learns what ours learns."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import HOPPER, ROOT, dataset, load, play, run, tiny

referee = load(ROOT / "benchmark" / "referee.py", "referee")
needs_d3rlpy = pytest.mark.skipif(
    not importlib.util.find_spec("d3rlpy"), reason="needs d3rlpy, in an environment of its own (docs/referee.md)"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "data.hdf5")


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory, data) -> Path:
    """A run of SAQ-CQL that acts with drawn codes."""
    return run("saq_cql", tmp_path_factory.mktemp("runs"), "--env-id", HOPPER, "--dataset-path", data)


def arguments(learner: str, *flags: str):
    return referee.load(referee.TWINS[learner]).parse_args([*flags, *referee.RULES.get(learner, [])])


def flags(learner: str, data: Path, quantizer: Path) -> list[str]:
    given = [*tiny("baselines/bc"), "--env-id", HOPPER, "--dataset-path", str(data)]
    return given + (["--vqvae", str(quantizer)] if learner == "discrete_cql" else [])


# --- settings ---
@pytest.mark.parametrize("learner", referee.TWINS)
def test_batches_and_learning_rates_are_ours(learner):
    mapped = referee.settings(learner, arguments(learner, "--batch-size", "99", "--lr", "0.007"))
    assert mapped["batch_size"] == 99
    rates = {name: value for name, value in mapped.items() if name.endswith("learning_rate")}
    assert rates.pop("alpha_learning_rate", 0.0) == 0.0  # CQL's weight is fixed
    assert rates and set(rates.values()) == {0.007}


@needs_d3rlpy
@pytest.mark.parametrize("learner", referee.TWINS)
def test_every_learning_rate_falls_with_ours(learner):
    """With --anneal-lr all optimizers of d3rlpy have a schedule, without it none, except that of IQL's policy."""
    for flag, falling in (("--anneal-lr", None), ("--no-anneal-lr", {"actor_optim"} if learner == "iql" else set())):
        args = arguments(learner, "--steps", "70", flag)
        modules = vars(referee.make_algorithm(learner, args, 4, 2).impl.modules)
        optimizers = {name: module for name, module in modules.items() if name.endswith("optim")}
        optimizers = {name: module for name, module in optimizers.items() if name != "alpha_optim"}  # its rate is 0
        schedules = {name: module._lr_scheduler for name, module in optimizers.items() if module._lr_scheduler}
        assert schedules.keys() == (optimizers.keys() if falling is None else falling)
        assert {schedule.T_max for schedule in schedules.values()} <= {70}


def test_td_learners_share_discount_target_rate_and_two_critics():
    for learner in ("iql", "cql"):
        mapped = referee.settings(learner, arguments(learner, "--discount", "0.9", "--target-rate", "0.1"))
        assert (mapped["gamma"], mapped["tau"], mapped["n_critics"]) == (0.9, 0.1, 2)


def test_iql_temperature_is_inverted():
    mapped = referee.settings("iql", arguments("iql", "--temperature", "0.5", "--expectile", "0.8"))
    assert (mapped["weight_temp"], mapped["expectile"], mapped["max_weight"]) == (2.0, 0.8, 100.0)


def test_cql_weight_is_doubled_for_the_td_loss_without_one_half():
    mapped = referee.settings("cql", arguments("cql", "--conservatism", "5", "--num-actions", "4", "--max-backup"))
    assert (mapped["conservative_weight"], mapped["n_action_samples"], mapped["max_q_backup"]) == (10.0, 4, True)


def test_cql_temperature_is_learned_unless_given():
    for weight, start, rate in (("0", 1.0, 0.0003), ("2.5", 2.5, 0.0)):
        mapped = referee.settings("cql", arguments("cql", "--fixed-temperature", weight, "--lr", "0.0003"))
        assert (mapped["initial_temperature"], mapped["temp_learning_rate"]) == (start, rate)


def test_discrete_cql_weight_is_ours_and_d3rlpy_never_copies_the_target():
    args = arguments("discrete_cql", "--conservatism", "5", "--steps", "70")
    mapped = referee.settings("discrete_cql", args)
    assert (mapped["alpha"], mapped["target_update_interval"]) == (5.0, 71)
    assert (args.backup, args.acting) == ("argmax", "greedy")


# --- table ---
def line(by: str, seed: int, score: float, **changes) -> dict:
    args = {"env_id": "hopper-medium-expert-v2", "seed": seed, "steps": 30_000, "lr": 3e-4} | changes
    return {"by": by, "learner": "bc", "data": "file.hdf5", "score": score, "args": args}


def test_table_shows_means_difference_and_standard_error(tmp_path, capsys):
    lines = [line("ours", 1, 50.0), line("ours", 0, 40.0), line("d3rlpy", 0, 44.0), line("d3rlpy", 1, 40.0)]
    out = tmp_path / "referee.jsonl"
    out.write_text("".join(json.dumps(x) + "\n" for x in lines))
    referee.main(["--table", "--out", str(out)])
    # standard errors: 10 / sqrt(2) / sqrt(2) = 5 and 4 / 2 = 2; together sqrt(29) = 5.4
    row = "| hopper-medium-expert-v2 | file.hdf5 | bc | 30,000 | 45.0 (40.0, 50.0) | 42.0 (44.0, 40.0) | +3.0 ± 5.4 |"
    assert capsys.readouterr().out.splitlines()[2:] == [row]


def test_runs_with_other_arguments_are_not_compared():
    rows = referee.table([line("ours", 0, 40.0), line("d3rlpy", 0, 44.0, lr=1e-3)]).splitlines()[2:]
    assert [row.split(" | ")[-3:] for row in rows] == [["40.0 (40.0)", "–", "– |"], ["–", "44.0 (44.0)", "– |"]]


def test_the_page_shows_the_table_of_the_results():
    rows = referee.table(referee.read(ROOT / "results" / "referee.jsonl"))
    assert rows.count("\n") > 1 and rows in (ROOT / "docs" / "referee.md").read_text()


# --- our side ---
def test_our_run_is_played_greedily_once(tmp_path, quantizer, capsys):
    out = tmp_path / "referee.jsonl"
    referee.main(["--ours", str(quantizer), "--out", str(out)])
    (kept,) = referee.read(out)
    assert (kept["by"], kept["learner"], kept["args"]["acting"]) == ("ours", "discrete_cql", "greedy")
    assert kept["score"] == play("saq_cql", "--evaluate", quantizer, "--acting", "greedy")
    referee.main(["--ours", str(quantizer), "--out", str(out)])
    assert len(referee.read(out)) == 1 and "skipped" in capsys.readouterr().out


# --- bad input ---
@pytest.mark.parametrize(
    "argv, problem",
    [
        ([], "nothing to do"),
        (["--seed", "1"], "--learner bc|iql|cql|discrete_cql"),
        (["--learner", "discrete_cql"], "--vqvae RUN"),
        (["--ours", "nowhere"], "nowhere is not the folder of a finished run"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, argv, problem):
    with pytest.raises(SystemExit) as stopped:
        referee.main([*argv, "--out", str(tmp_path / "referee.jsonl")])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and problem in error


def test_without_d3rlpy_it_says_how_to_install_it(tmp_path, capsys, monkeypatch, data):
    monkeypatch.setitem(sys.modules, "d3rlpy", None)  # as if it were not installed
    with pytest.raises(SystemExit) as stopped:
        referee.main(["--learner", "bc", "--env-id", HOPPER, "--dataset-path", str(data)])
    assert stopped.value.code == 2
    assert "pip install -r benchmark/referee_requirements.txt" in capsys.readouterr().err


# --- d3rlpy's side ---
@needs_d3rlpy
@pytest.mark.parametrize("learner", referee.TWINS)
def test_a_run_is_kept_and_skipped_the_second_time(tmp_path, learner, data, quantizer):
    argv = ["--learner", learner, *flags(learner, data, quantizer), "--out", str(tmp_path / "referee.jsonl")]
    referee.main(argv)
    referee.main(argv)
    (kept,) = referee.read(tmp_path / "referee.jsonl")
    assert np.isfinite(kept["score"]) and len(kept["returns"]) == 3 and kept["args"]["hidden_dim"] == 32


def copied(learner: str, args, noise: float = 0.01):
    """Our script, our learner, and d3rlpy's with the weights of ours. `noise` makes target networks differ."""
    ours = referee.load(referee.TWINS[learner])
    sizes = (11,) if learner == "discrete_cql" else (11, 3)
    networks = ours.make_learner(args, *sizes)
    for weights in networks["q_target"].parameters() if "q_target" in networks else []:
        weights.data += noise * torch.randn_like(weights)
    theirs = referee.make_algorithm(learner, args, 11, args.codebook_size if learner == "discrete_cql" else 3)
    pairs = {"q": "q_funcs", "q_target": "targ_q_funcs", "v": "value_func", "policy": "policy"}
    pairs |= {"policy": "imitator"} if learner == "bc" else {}
    for name, network in networks.items():
        weights = {x: y for x, y in network.named_parameters() if x != "log_std"}
        module = getattr(theirs.impl.modules, pairs[name])
        copies = {x: y for x, y in module.named_parameters() if not (x == "_logstd" and learner == "iql")}
        if learner == "cql" and name == "policy":  # one layer of ours, two of theirs: mean and log std
            last = list(weights)[-2:]
            halves = [half for x in last for half in weights[x].chunk(2)]  # weight, weight, bias, bias
            new = [weights[x] for x in weights if x not in last] + [halves[i] for i in (0, 2, 1, 3)]
        elif learner == "bc":  # its log std has no counterpart
            new = [*list(weights.values())[:-2], *(x[:3] for x in list(weights.values())[-2:])]
        else:
            new = list(weights.values())
        for copy, value in zip(copies.values(), new, strict=True):
            assert copy.shape == value.shape
            copy.data.copy_(value.data)
    return ours, networks, theirs


def torch_batch(learner: str, args, rows: dict, index: torch.Tensor):
    from d3rlpy.torch_utility import TorchMiniBatch

    return TorchMiniBatch.from_batch(referee.minibatch(learner, rows, index), 0.99, False, "cpu:0")


@needs_d3rlpy
def test_a_quantizer_of_other_data_is_refused(tmp_path, capsys, quantizer):
    other = dataset(tmp_path / "other.hdf5", seed=1)
    with pytest.raises(SystemExit) as stopped:
        referee.main(
            ["--learner", "discrete_cql", *flags("discrete_cql", other, quantizer), "--out", str(tmp_path / "o")]
        )
    assert stopped.value.code == 2 and "was trained on other data" in capsys.readouterr().err


@needs_d3rlpy
def test_bc_has_our_loss(data):
    args = arguments("bc", *flags("bc", data, None))
    ours, networks, theirs = copied("bc", args)
    rows, index = ours.load_data(args), torch.arange(32)
    batch = torch_batch("bc", args, rows, index)
    loss = theirs.impl.compute_loss(batch.observations, batch.actions).loss
    assert 3 * loss.item() == pytest.approx(ours.learner_loss(args, networks, rows, index)[0].item(), rel=1e-5)


@needs_d3rlpy
def test_iql_has_our_losses(data):
    args = arguments("iql", *flags("iql", data, None), "--temperature", "0.5", "--target-rate", "0")
    ours, networks, theirs = copied("iql", args)
    theirs.impl.modules.policy._logstd.data.fill_(np.log(2.5))  # -5 + 7 sigmoid(x) = 0, where ours starts
    rows, index = ours.load_data(args), torch.arange(32)
    losses = ours.learner_loss(args, networks, rows, index)[1]
    batch = torch_batch("iql", args, rows, index)
    critic = theirs.impl.compute_critic_loss(batch, theirs.impl.compute_target(batch))
    actor = theirs.impl.compute_actor_loss(batch, theirs.impl.modules.policy(batch.observations))
    assert critic.q_loss.item() == pytest.approx(2 * losses["losses/q"].item(), rel=1e-5)  # a sum over two critics
    assert critic.v_loss.item() == pytest.approx(losses["losses/v"].item(), rel=1e-5)
    assert actor.actor_loss.item() == pytest.approx(losses["losses/policy"].item(), rel=1e-5)


@needs_d3rlpy
def test_cql_has_four_times_our_critic_loss(tmp_path):
    """Up to the constant log of the number of actions; with so many that both estimates of the integral agree."""
    ends = dataset(tmp_path / "data.hdf5", terminals=np.ones(300, dtype=bool), timeouts=np.zeros(300, dtype=bool))
    many = ["--num-actions", "1000", "--conservatism", "5", "--target-rate", "0"]
    args = arguments("cql", *flags("cql", ends, None), *many)
    ours, networks, theirs = copied("cql", args)
    rows, index = ours.load_data(args), torch.arange(32)
    losses = ours.learner_loss(args, networks, rows, index)[1]
    batch = torch_batch("cql", args, rows, index)
    critic = theirs.impl.compute_critic_loss(batch, theirs.impl.compute_target(batch))
    penalty = losses["losses/penalty"].item() + np.log(3 * args.num_actions)
    wanted = 4 * (0.5 * losses["losses/q"].item() + args.conservatism * penalty)
    assert critic.critic_loss.item() == pytest.approx(wanted, rel=2e-3)
    assert critic.conservative_loss.item() == pytest.approx(4 * args.conservatism * penalty, rel=2e-3)


@needs_d3rlpy
@pytest.mark.parametrize("schedule", ["--anneal-lr", "--no-anneal-lr"])
def test_discrete_cql_ends_at_the_weights_of_saq_cql(schedule, data, quantizer):
    """The same start and batches lead to the same weights while TD errors are below 1, where its Huber loss is ours."""
    given = [*flags("discrete_cql", data, quantizer), "--reward-scale", "0.1", "--steps", "50"]
    args = arguments("discrete_cql", *given, "--lr", "0.0003", schedule)
    ours, networks, theirs = copied("discrete_cql", args, noise=0)
    rows = ours.load_data(args)
    rows["codes"] = torch.arange(len(rows["rewards"])) % args.codebook_size
    before = [weights.clone() for weights in networks["q"].parameters()]
    optimizer = torch.optim.Adam(networks["q"].parameters(), lr=args.lr)
    generator = torch.Generator().manual_seed(args.seed)
    for step in range(args.steps):
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = args.lr * (1 + np.cos(np.pi * step / args.steps)) / 2
        index = torch.randint(len(rows["rewards"]), (args.batch_size,), generator=generator)
        optimizer.zero_grad()
        ours.learner_loss(args, networks, rows, index)[0].backward()
        optimizer.step()
    ours.learner_loss(args, networks, rows, index)  # moves the target network once more: d3rlpy's moves last
    referee.train("discrete_cql", args, theirs, rows)
    for name, module in (("q", "q_funcs"), ("q_target", "targ_q_funcs")):
        copies = getattr(theirs.impl.modules, module).parameters()
        for copy, weights in zip(copies, networks[name].parameters(), strict=True):
            assert torch.allclose(copy, weights, atol=1e-5)
    assert not any(torch.allclose(x, y, atol=1e-3) for x, y in zip(before, networks["q"].parameters(), strict=True))
