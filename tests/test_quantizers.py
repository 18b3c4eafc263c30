"""benchmark/quantizers.py: codes and errors by hand, a tiny run from the first update to the pictures."""

import json
import math

import pytest
import torch
from common import ROOT, load

quantizers = load(ROOT / "benchmark" / "quantizers.py", "quantizers")
Transitions = quantizers.saq_bc.Transitions
TINY = "--datasets maze2d-large-demos --hidden-dim 16 --updates 10 --episodes 0".split()
TINY += ["--classifier-updates", "10"]


# --- forms ---
def test_fsq_rounds_to_its_levels_and_the_gradient_skips_the_rounding():
    fsq = quantizers.FSQ(obs_dim=1, action_dim=1, levels=(3, 4))
    # tanh(0.3) = 0.291: (3 - 1)(1.291) / 2 = 1.29 -> 1; (4 - 1)(1.291) / 2 = 1.94 -> 2
    z = torch.tensor([[0.3, 0.3], [-9.0, 9.0], [9.0, -9.0]], requires_grad=True)
    level = fsq.quantize(z)
    assert level.tolist() == [[1, 2], [0, 3], [2, 0]]
    level.sum().backward()
    slope = 1 - math.tanh(0.3) ** 2  # of tanh; times (L - 1) / 2
    assert z.grad[0].tolist() == [pytest.approx(2 / 2 * slope), pytest.approx(3 / 2 * slope)]


@pytest.mark.parametrize("size, levels", quantizers.LEVELS.items())
def test_fsq_has_a_code_for_every_combination_and_decodes_it(size, levels):
    fsq = quantizers.FSQ(3, 2, levels)
    combinations = torch.cartesian_prod(*(torch.arange(count) for count in levels))
    codes = (combinations * fsq.radix).sum(1)
    assert sorted(codes.tolist()) == list(range(size))
    assert torch.equal(codes[:, None] // fsq.radix % fsq.levels, combinations)
    obs, action = torch.randn(50, 3), torch.randn(50, 2)
    error = (fsq.decode(obs, fsq.encode(obs, action)) - action).pow(2).sum(1).mean()
    assert error.item() == pytest.approx(fsq.loss(obs, action).item(), rel=1e-5)


def test_bins_by_hand():
    actions, obs = torch.tensor([[0.0, -1.0], [1.0, 1.0], [0.2, 0.9], [0.21, 0.95]]), torch.zeros(4, 1)
    bins = quantizers.Bins(actions, count=4)  # widths 0.25 and 0.5
    code = bins.encode(obs, actions)
    assert code.tolist() == [0, 2, 1, 1] and bins.occupied.tolist() == [[0, 0], [0, 3], [3, 3]]
    expected = torch.tensor([[0.125, -0.75], [0.875, 0.75], [0.125, 0.75], [0.125, 0.75]])
    assert torch.allclose(bins.decode(obs, code), expected)
    with pytest.raises(ValueError, match="combination of bins"):
        bins.encode(obs[:1], torch.tensor([[0.6, 0.1]]))
    constant = quantizers.Bins(torch.tensor([[0.5, 0.0], [0.5, 1.0]]), count=2)
    assert constant.decode(obs[:2], torch.arange(2)).tolist() == [[0.5, 0.25], [0.5, 0.75]]


def test_a_codebook_moves_after_every_step():
    torch.manual_seed(0)
    obs, action, rest = torch.randn(40, 3), torch.rand(40, 2), torch.zeros(40)
    data = Transitions(obs, action, rest, obs, rest, rest)
    quantizer, loss, _ = quantizers.make("VQ-VAE", 4, 0, 16, data)
    before = quantizer.codebook.clone()
    steps = quantizers.fit(quantizers.saq_bc.Args(), 2, quantizer, data, torch.arange(40), loss)
    assert list(steps) == [1, 2]
    assert not torch.equal(quantizer.codebook, before)


@pytest.mark.parametrize("form", quantizers.FORMS)
def test_every_form_decodes_what_it_encodes(form):
    """Only the quantizers without the state decode a code to the same action everywhere."""
    torch.manual_seed(0)
    obs, action, rest = torch.randn(40, 3), torch.rand(40, 2), torch.zeros(40)
    data = Transitions(obs, action, rest, obs, rest, rest)
    quantizer, loss, codes = quantizers.make(form, 4, 0, 16, data)
    assert codes == (16 if form == "bins" else 4) and (loss is None) == (form == "bins")
    if loss:
        loss(data).backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in quantizer.parameters())
    code = quantizer.eval().encode(obs, action)
    assert 0 <= code.min() and code.max() < codes and quantizer.decode(obs, code).shape == action.shape
    same = quantizer.decode(obs, torch.zeros(40, dtype=torch.long))
    assert torch.allclose(same, same[:1].expand(40, -1)) == (form in ("VQ-VAE, no state", "bins"))


# --- from the command line ---
def play(tmp_path, *flags):
    quantizers.main([*TINY, "--out", str(tmp_path / "lines.jsonl"), *flags])
    return [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]


def test_a_tiny_run_its_table_and_pictures_and_skipping(tmp_path, capsys):
    lines = play(tmp_path, "--sizes", "16")
    assert len(lines) == 5 + len(quantizers.BINS)
    for line in lines:
        assert 0 < line["heldout_error"] < 10 and 1 <= line["perplexity"] <= line["codes_used"] + 1e-3
        assert line["codes_used"] <= line["codes"]
        if "accuracy" in line:
            assert 0 <= line["accuracy"] <= 1 and line["log_p_code"] < 0
        if line["form"] == "VQ-VAE":
            assert line["curve"]["10"] == line["heldout_error"] < line["curve"]["1"]
    by_bins = [line["heldout_error"] for line in lines if line["form"] == "bins"]
    assert by_bins == sorted(by_bins, reverse=True)
    capsys.readouterr()
    assert play(tmp_path, "--sizes", "16") == lines and capsys.readouterr().out == ""  # nothing is run again

    assert play(tmp_path, "--table", "--plot", str(tmp_path)) == lines
    row = next(text for text in capsys.readouterr().out.splitlines() if "| VQ-VAE | 16 |" in text)
    assert row.split(" | ")[3] == f"{lines[0]['heldout_normalised']:.3g}"
    for name in ("quantizers", "quantizers_maze"):
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text()

    with pytest.raises(SystemExit, match="2"):  # lines of another budget are not mixed
        play(tmp_path, "--sizes", "16", "--updates", "20")
    assert "have --updates 10; give --updates 10" in capsys.readouterr().err


def test_the_line_of_a_played_dataset_has_a_score(tmp_path):
    (line,) = play(tmp_path, "--sizes", "4", "--forms", "VQ-VAE", "--episodes", "1")
    assert -5 < line["score"] < 110


@pytest.mark.parametrize(
    "flags, problem",
    [(["--datasets", "door-human"], "set SAQ_STANDIN_DIR"), (["--table"], "has no results to show")],
)
def test_bad_requests(flags, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SAQ_STANDIN_DIR", raising=False)
    with pytest.raises(SystemExit, match="2"):
        quantizers.main([*flags, "--out", str(tmp_path / "none.jsonl")])
    assert problem in capsys.readouterr().err
