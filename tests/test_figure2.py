"""benchmark/figure2.py: the exact integral, the estimate, and a tiny run from training to figure."""

import json

import numpy as np
import pytest
import torch
from common import ROOT, load, tiny
from scipy.special import erf
from torch import nn

figure2 = load(ROOT / "benchmark" / "figure2.py", "figure2")
cql = figure2.cql


class Linear(nn.Module):
    """Q(s,a) = slopes . a + s: what a critic sees is (s, a) side by side."""

    def __init__(self, *slopes: float):
        super().__init__()
        self.slopes = torch.tensor(slopes)

    def forward(self, pairs):
        return pairs[..., 1:] @ self.slopes[:, None] + pairs[..., :1]


@pytest.fixture
def learner_and_data():
    torch.manual_seed(0)
    args = cql.parse_args(["--device", "cpu", "--hidden-dim", "16", "--num-actions", "3"])
    obs, next_obs, action = torch.randn(40, 4), torch.randn(40, 4), torch.rand(40, 2) * 2 - 1
    return args, cql.Learner(args, 4, 2), cql.Transitions(obs, action, obs[:, 0], next_obs, torch.zeros(40))


def test_the_integral_of_a_linear_q_is_a_product_of_two_sinh():
    learner = nn.Module()
    learner.q = nn.ModuleList([Linear(3.0, -5.0), Linear(0.5, 4.0)])
    found = figure2.exact_integral(learner, torch.tensor([[0.0], [300.0]]))  # exp 300 is beyond float32
    by_hand = [sum(np.log(2 * np.sinh(slope) / slope) for slope in slopes) for slopes in ((3, 5), (0.5, 4))]
    assert np.allclose(found, [[one, one + 300] for one in by_hand], atol=2e-3)


@pytest.mark.parametrize("width", [0.05, 0.3])
def test_the_integral_of_a_narrow_peak(width):
    centre = torch.tensor([0.4, -0.9])  # the square cuts off a part of the peak
    q = -((figure2.grid(figure2.SIDE) - centre) ** 2).sum(1) / (2 * width**2)
    sides = [erf((1 - c) / width / 2**0.5) + erf((1 + c) / width / 2**0.5) for c in centre.numpy()]
    by_hand = sum(np.log(width * np.sqrt(np.pi / 2) * side) for side in sides)
    assert abs(figure2.log_integral(q).item() - by_hand) < 0.01


def test_the_estimate_is_the_one_that_the_training_minimises(learner_and_data):
    args, learner, data = learner_and_data
    torch.manual_seed(1)
    _, metrics = cql.learner_loss(args, learner, data)
    torch.manual_seed(1)
    found = figure2.estimated_penalty(learner, args.num_actions, data)
    assert found.shape == (40,) and torch.allclose(found.mean(), metrics["losses/penalty"], atol=1e-5)


def test_a_flat_q_is_estimated_well_a_peak_is_missed_and_measuring_draws_nothing(learner_and_data):
    args, learner, data = learner_and_data
    before = torch.get_rng_state()
    flat = figure2.cql_penalties(args, learner, data)
    assert abs(flat["error"]) < 0.05 and flat["noise"] < 0.3
    assert torch.equal(torch.get_rng_state(), before)
    for critic in learner.q:
        critic[0].weight.data[:, 4:] *= 50  # steep in the action
        critic[-1].weight.data *= 10
    peaked = figure2.cql_penalties(args, learner, data)
    assert peaked["noise"] > 5 * flat["noise"] and peaked["error_1"] < peaked["error_40"] < 0.1
    assert peaked["error_3"] == pytest.approx(peaked["error"])


def test_a_tiny_run_is_measured_skipped_resumed_and_drawn(tmp_path, monkeypatch, capsys):
    flags = " ".join(tiny("cql", episodes=1)) + " --num-actions 2"
    saq_flags = " ".join(tiny("saq_cql", episodes=1))
    monkeypatch.setattr(figure2, "RUNS", {flags: {"cql": (0,)}, saq_flags: {"saq_cql": (0,)}})
    monkeypatch.setattr(figure2, "STATES", 4)
    written = {}
    for name in ("unbroken", "killed"):
        folder = tmp_path / name
        options = figure2.Args(out=str(tmp_path / f"{name}.jsonl"), runs_dir=str(folder), figures=str(folder))
        if name == "killed":
            evaluate, calls = cql.evaluate, []

            def evaluate_once(*given, evaluate=evaluate, calls=calls, **more):
                calls.append(given)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return evaluate(*given, **more)

            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(cql, "evaluate", evaluate_once)
                figure2.main(options)
        figure2.main(options)
        written[name] = (tmp_path / f"{name}.jsonl").read_text()
        figure2.main(options)
        assert (tmp_path / f"{name}.jsonl").read_text() == written[name]  # skipped
    assert written["killed"] == written["unbroken"]

    lines = [json.loads(line) for line in written["killed"].splitlines()]
    steps = [(line["script"], line["step"]) for line in lines]
    assert steps == [("cql", 10), ("cql", 20), ("saq_cql", 10), ("saq_cql", 20)]
    for line in lines[:2]:
        assert line["estimated"] - line["exact"] == pytest.approx(line["error"], abs=2e-4)
        assert line["exact_low"] <= line["exact"] <= line["exact_high"] and line["noise"] > 0
    assert "estimated" not in lines[2] and 0 < lines[2]["exact"] < np.log(100)

    capsys.readouterr()
    monkeypatch.setattr(figure2, "ROWS", (("tiny", flags, saq_flags), ("tiny again", flags, saq_flags)))
    options.table = options.plot = True
    figure2.main(options)
    assert f"| {lines[1]['exact']:.2f} |" in capsys.readouterr().out.splitlines()[2]
    assert (folder / "figure2.png").stat().st_size > 10_000


def test_no_results_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        figure2.main(figure2.Args(out=str(tmp_path / "none.jsonl"), plot=True))
    assert "run figure2.py without --plot" in capsys.readouterr().err
