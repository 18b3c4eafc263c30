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
    args = cql.parse_args(["--device", "cpu", "--hidden-dim", "16", "--num-actions", "3", "--seed", "5"])
    data = {name: torch.randn(40, 4) for name in ("observations", "next_observations")}
    data |= {"actions": torch.rand(40, 2) * 2 - 1, "rewards": torch.randn(40), "terminals": torch.zeros(40)}
    return args, cql.make_learner(args, 4, 2), data


def test_the_integral_of_a_linear_q_is_a_product_of_two_sinh():
    learner = nn.ModuleDict({"q": nn.ModuleList([Linear(3.0, -5.0), Linear(0.5, 20.0)])})
    found = figure2.exact_integral(learner, torch.tensor([[0.0], [300.0]]), side=401)  # exp 300 is beyond float32
    by_hand = [sum(np.log(2 * np.sinh(slope) / slope) for slope in slopes) for slopes in ((3, 5), (0.5, 20))]
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
    index = torch.arange(8)
    _, metrics = cql.learner_loss(args, learner, data, index)
    torch.manual_seed(args.seed * 10**6 + 1)  # learner_loss's own at its first update
    names = ("observations", "actions", "next_observations")
    found = figure2.estimated_penalty(learner, args.num_actions, *(data[name][index] for name in names))
    assert found.shape == (8,) and torch.allclose(found.mean(), metrics["losses/penalty"], atol=1e-5)


def test_the_estimate_of_a_flat_q_is_near_the_exact_value_and_a_peak_is_missed(learner_and_data):
    args, learner, data = learner_and_data
    flat = figure2.cql_penalties(args, learner, data)
    assert abs(flat["error"]) < 0.05 and flat["noise"] < 0.3
    for critic in learner["q"]:
        critic[0].weight.data[:, 4:] *= 50  # steep in the action
        critic[-1].weight.data *= 10
    peaked = figure2.cql_penalties(args, learner, data)
    assert peaked["noise"] > 5 * flat["noise"] and peaked["error_1"] < peaked["error_40"] < 0.1
    assert peaked["error_3"] == pytest.approx(peaked["error"])


def test_measuring_leaves_the_random_numbers_alone(learner_and_data):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    figure2.cql_penalties(*learner_and_data)
    assert torch.equal(torch.rand(3), expected)


def test_a_tiny_run_is_skipped_when_finished_and_drawn(tmp_path, monkeypatch, capsys):
    flags = " ".join(tiny("cql", steps=20, eval_every=10, episodes=1)) + " --num-actions 2"
    saq_flags = " ".join(tiny("saq_cql", steps=20, eval_every=10, episodes=1))
    monkeypatch.setattr(figure2, "RUNS", {flags: {"cql": (0,)}, saq_flags: {"saq_cql": (0,)}})
    monkeypatch.setattr(figure2, "STATES", 4)
    options = figure2.Args(out=str(tmp_path / "out.jsonl"), runs_dir=str(tmp_path), figures=str(tmp_path))
    figure2.main(options)
    written = (tmp_path / "out.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(x["script"], x["step"]) for x in lines] == [("cql", 10), ("cql", 20), ("saq_cql", 10), ("saq_cql", 20)]
    for x in lines[:2]:
        assert x["estimated"] - x["exact"] == pytest.approx(x["error"], abs=2e-4)
        assert x["exact_low"] <= x["exact"] <= x["exact_high"] and x["noise"] > 0
    assert "grid_error" not in lines[0] and 0 <= lines[1]["grid_error"] < 0.01
    assert "estimated" not in lines[2] and 0 < lines[2]["exact"] < np.log(100)

    figure2.main(options)
    assert (tmp_path / "out.jsonl").read_text() == written  # skipped

    capsys.readouterr()
    figure2.main(figure2.Args(out=options.out, table=True))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and f"| {lines[1]['exact']:.2f} | {lines[1]['error']:.2f} |" in printed[2]

    monkeypatch.setattr(figure2, "ROWS", (("tiny", flags, saq_flags), ("tiny again", flags, saq_flags)))
    options.plot = True
    figure2.main(options)
    first = (tmp_path / "figure2.svg").read_bytes()
    figure2.main(options)
    assert (tmp_path / "figure2.svg").read_bytes() == first and (tmp_path / "figure2.png").stat().st_size > 10_000


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    flags = " ".join(tiny("cql", steps=20, eval_every=10, episodes=1))
    monkeypatch.setattr(figure2, "RUNS", {flags: {"cql": (0,)}})
    monkeypatch.setattr(figure2, "STATES", 4)
    unbroken, killed = (
        figure2.Args(out=str(tmp_path / f"{name}.jsonl"), runs_dir=str(tmp_path / name))
        for name in ("unbroken", "killed")
    )
    figure2.main(unbroken)
    record = figure2.record

    def killed_after_one(out, args, name, flags, history):
        record(out, args, name, flags, history)
        if history:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(figure2, "record", killed_after_one)
        figure2.main(killed)
    both = [(tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("unbroken", "killed")]
    assert both[1] == both[0][:1]
    figure2.main(killed)
    assert (tmp_path / "killed.jsonl").read_text() == (tmp_path / "unbroken.jsonl").read_text()


def test_no_results_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        figure2.main(figure2.Args(out=str(tmp_path / "none.jsonl"), plot=True))
    assert stopped.value.code == 2 and "figure2.py" in capsys.readouterr().err
