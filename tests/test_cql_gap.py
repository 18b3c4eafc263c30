"""benchmark/cql_gap.py: gaps computed by hand, and what it says about a tiny run."""

import numpy as np
import pytest
import torch
from common import ROOT, load, run, tiny
from torch import nn

cql_gap = load(ROOT / "benchmark" / "cql_gap.py", "cql_gap")


def linear(*weights: float, bias: tuple[float, ...] = (0.0,)) -> nn.Linear:
    layer = nn.Linear(len(weights) // len(bias), len(bias))
    layer.weight.data, layer.bias.data = torch.tensor(weights).view(len(bias), -1), torch.tensor(bias)
    return layer


def test_gaps():
    """Q(s,a) = 20 a_1 + 2 a_2 + s on average, a policy at (0.5, 0) with hardly any noise."""
    critics = nn.ModuleList([linear(1.0, 10.0, 1.0), linear(1.0, 30.0, 3.0)])
    policy = linear(0.0, 0.0, 0.0, 0.0, bias=(float(np.arctanh(0.5)), 0.0, -5.0, -5.0))
    learner = nn.ModuleDict({"q": critics, "policy": policy})
    obs, action = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0, 0.25], [0.0, -1.0]])
    gap, mended, data_q = cql_gap.gaps(learner, obs, action)
    np.testing.assert_allclose(gap, [10.5, -12], atol=0.1)
    np.testing.assert_allclose(mended, [[0.5, 10], [-2, -10]], atol=0.1)
    np.testing.assert_allclose(data_q, [23.5, -2], rtol=1e-6)


def test_a_finished_run(tmp_path, capsys):
    folder = run("baselines/cql", tmp_path, *tiny("baselines/cql"), "--num-actions", 2, "--lr", 0.1)
    cql_gap.main([str(folder), "--share", "0.1"])
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in printed[-3:]]  # hopper has three actions
    assert [int(row[0]) for row in rows] == [0, 1, 2] and np.isfinite([float(x) for row in rows for x in row]).all()
    gap = float(printed[-6].split()[1])
    largest, others = (float(part.split()[i]) for part, i in zip(printed[-5].split(","), (3, 2), strict=True))
    assert largest > gap > others
    assert gap == pytest.approx(0.1 * largest + 0.9 * others, abs=0.1)  # to the digit that is printed


@pytest.mark.parametrize("arguments", [["nowhere"], ["{run}", "--share", "0"]])
def test_bad_input(arguments, tmp_path, capsys):
    folder = run("baselines/cql", tmp_path, *tiny("baselines/cql"), "--num-actions", 2)
    with pytest.raises(SystemExit) as stop:
        cql_gap.main([argument.format(run=folder) for argument in arguments])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("error: ")
