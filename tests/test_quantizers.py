"""benchmark/quantizers.py: codes and errors by hand, a tiny run from the first update to the table, resuming."""

import json
import math

import pytest
import torch
from common import ROOT, load

quantizers = load(ROOT / "benchmark" / "quantizers.py", "quantizers")
TINY = "--datasets maze2d-large-demos --hidden-dim 16 --updates 10 --classifier-updates 10 --episodes 0".split()


# --- forms ---
def test_fsq_rounds_to_its_levels():
    fsq = quantizers.FSQ(obs_dim=1, action_dim=1, levels=(3, 4))
    # tanh(0.3) = 0.291: (3 - 1)(1.291) / 2 = 1.29 -> 1; (4 - 1)(1.291) / 2 = 1.94 -> 2
    level = fsq.quantize(torch.tensor([[0.3, 0.3], [-9.0, 9.0], [9.0, -9.0]]))
    assert level.tolist() == [[1, 2], [0, 3], [2, 0]]


def test_fsq_passes_the_gradient_through_the_rounding():
    fsq, z = quantizers.FSQ(1, 1, levels=(3, 4)), torch.tensor([[0.3, 0.3]], requires_grad=True)
    fsq.quantize(z).sum().backward()
    slope = 1 - math.tanh(0.3) ** 2  # of tanh; times (L - 1) / 2
    assert z.grad.tolist() == [[pytest.approx(2 / 2 * slope), pytest.approx(3 / 2 * slope)]]


@pytest.mark.parametrize("size", quantizers.SIZES)
def test_fsq_has_as_many_codes_as_combinations(size):
    levels = quantizers.LEVELS[size]
    assert math.prod(levels) == size
    fsq = quantizers.FSQ(2, 2, levels)
    grid = torch.cartesian_prod(*(torch.arange(count) for count in levels))
    codes = (grid * fsq.radix).sum(1)
    assert sorted(codes.tolist()) == list(range(size))
    assert torch.equal(codes[:, None] // fsq.radix % fsq.levels, grid)  # what decode() takes a code apart into


def test_fsq_decodes_the_code_that_it_trains():
    torch.manual_seed(0)
    fsq, obs, action = quantizers.FSQ(3, 2, (4, 4)), torch.randn(50, 3), torch.randn(50, 2)
    error = (fsq.decode(obs, fsq.encode(obs, action)) - action).pow(2).sum(1).mean()
    assert error.item() == pytest.approx(fsq.loss(obs, action)[0].item(), rel=1e-5)


def test_bins_by_hand():
    actions = torch.tensor([[0.0, -1.0], [1.0, 1.0], [0.2, 0.9], [0.21, 0.95]])
    bins = quantizers.Bins(actions, count=4)  # widths 0.25 and 0.5
    assert bins.bins(actions).tolist() == [[0, 0], [3, 3], [0, 3], [0, 3]]
    code = bins.encode(torch.zeros(4, 1), actions)
    assert code.tolist() == [0, 2, 1, 1] and len(bins.occupied) == 3
    expected = torch.tensor([[0.125, -0.75], [0.875, 0.75], [0.125, 0.75], [0.125, 0.75]])
    assert torch.allclose(bins.decode(torch.zeros(4, 1), code), expected)
    with pytest.raises(ValueError, match="combination of bins"):
        bins.encode(torch.zeros(1, 1), torch.tensor([[0.6, 0.1]]))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_no_action_is_farther_from_its_bins_than_half_a_width(count):
    actions, obs = torch.rand(5_000, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(5_000, 1)
    bins = quantizers.Bins(actions, count)
    error = bins.decode(obs, bins.encode(obs, actions)) - actions
    assert error.abs().max() <= 0.5 / count + 1e-6
    assert len(bins.occupied) == count**3  # 5,000 uniform actions reach all of them
    assert error.pow(2).mean().item() == pytest.approx(1 / 12 / count**2, rel=0.05)  # variance of a uniform bin


def test_an_entry_that_never_changes_is_one_bin():
    actions = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    bins = quantizers.Bins(actions, count=2)
    assert len(bins.occupied) == 2
    code = bins.encode(torch.zeros(2, 1), actions)
    assert bins.decode(torch.zeros(2, 1), code).tolist() == [[0.5, 0.25], [0.5, 0.75]]


@pytest.mark.parametrize("form", quantizers.FORMS)
def test_every_form_decodes_what_it_encodes(form):
    torch.manual_seed(0)
    data = {"observations": torch.randn(40, 3), "actions": torch.rand(40, 2)}
    quantizer, loss, codes = quantizers.make(form, 4, 0, 16, data)
    assert codes == (16 if form == "bins" else 4) and (loss is None) == (form == "bins")
    code = quantizer.encode(data["observations"], data["actions"])
    assert 0 <= code.min() and code.max() < codes
    assert quantizer.decode(data["observations"], code).shape == data["actions"].shape
    if loss:
        loss(torch.arange(40))[0].backward()
        assert any(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in quantizer.parameters())


def test_only_the_quantizer_without_the_state_ignores_it():
    data = {"observations": torch.randn(5, 3), "actions": torch.rand(5, 2)}
    for form in ("VQ-VAE", "VQ-VAE, no state", "VQ-VAE, small", "Aquadem", "FSQ"):
        quantizer = quantizers.make(form, 4, 0, 16, data)[0].eval()
        actions = quantizer.decode(data["observations"], torch.zeros(5, dtype=torch.long))
        assert torch.allclose(actions, actions[:1].expand(5, -1)) == (form == "VQ-VAE, no state")


# --- rules ---
def curve(errors: dict, likelihoods: dict | None = None) -> dict:
    likelihoods = likelihoods or errors
    return {size: {"heldout_error": errors[size], "log_p_action": likelihoods[size]} for size in errors}


def test_rules_by_hand():
    errors = {4: 1.0, 16: 0.2, 64: 0.11, 128: 0.105}
    assert quantizers.near_floor(curve(errors)) == 64  # 0.11 < 1.1 * 0.105 = 0.1155 < 0.2
    # Log error below the chord from (4, 1) to (128, 0.105): at 16 by 1.61 - 0.90, at 64 by 2.21 - 1.80.
    assert quantizers.elbow(curve(errors)) == 16
    assert quantizers.likeliest(curve(errors, {4: -3.0, 16: -2.0, 64: -2.5, 128: -2.2})) == 16


# --- from the command line ---
def play(tmp_path, *flags):
    quantizers.main([*TINY, "--out", str(tmp_path / "lines.jsonl"), *flags])
    return [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]


def test_a_tiny_run_and_its_tables_and_pictures(tmp_path, capsys):
    lines = play(tmp_path, "--sizes", "4", "16")
    assert len(lines) == 5 * 2 + len(quantizers.BINS)
    for line in lines:
        assert 0 < line["heldout_error"] < 10 and line["heldout_normalised"] > 0 and line["codes_used"] <= line["codes"]
        assert 1 <= line["perplexity"] <= line["codes_used"] + 1e-3
        if "accuracy" in line:
            assert 0 <= line["accuracy"] <= 1 and line["log_p_code"] < 0
    by_bins = [line["heldout_error"] for line in lines if line["form"] == "bins"]
    assert by_bins == sorted(by_bins, reverse=True)
    trained = [line for line in lines if line["form"] == "VQ-VAE"]
    assert all(line["curve"]["10"] == line["heldout_error"] for line in trained)

    capsys.readouterr()
    assert play(tmp_path, "--table") == lines
    printed = capsys.readouterr().out
    row = next(text for text in printed.splitlines() if text.startswith("| maze2d-large-demos |"))
    first = next(line for line in lines if (line["form"], line["codes"]) == ("VQ-VAE", 16))
    assert row.split("|")[2].strip() == f"{first['heldout_normalised']:.3g}"
    play(tmp_path, "--plot", str(tmp_path))
    for name in ("quantizers", "quantizers_maze"):
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text() and (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_finished_lines_are_skipped_and_a_kill_loses_none(tmp_path, monkeypatch):
    run, calls = quantizers.run, []

    def killed_at_the_third(options, job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(options, job)

    monkeypatch.setattr(quantizers, "run", killed_at_the_third)
    flags = ["--sizes", "4", "--forms", "VQ-VAE", "FSQ", "Aquadem", "VQ-VAE, no state"]
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, *flags)
    lines = play(tmp_path, *flags)
    assert [line["form"] for line in lines] == ["VQ-VAE", "FSQ", "Aquadem", "VQ-VAE, no state"]
    assert len(calls) == 5  # the first two are not run again


def test_bins_table_names_the_first_that_suffices(tmp_path):
    def line(form, size, codes, error, **more):
        numbers = dict(dataset="pen-expert", seed=0, rows=10, codes_used=5, heldout_error=error, heldout_normalised=0.1)
        return numbers | dict(form=form, size=size, codes=codes) | more

    lines = [line("VQ-VAE", 16, 16, 0.5), line("VQ-VAE", 16, 16, 0.3, seed=1)]  # mean 0.4
    lines += [line("bins", 2, 2**24, 0.9), line("bins", 3, 3**24, 0.39), line("bins", 4, 4**24, 0.2)]
    (row,) = [text for text in quantizers.bins_table(lines).splitlines() if text.startswith("| pen-expert")]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["pen-expert", "0.4", "3", "2.8e+11", "5", "10", "0.39"]


def test_lines_of_another_budget_are_not_mixed(tmp_path, capsys):
    play(tmp_path, "--sizes", "4", "--forms", "VQ-VAE")
    with pytest.raises(SystemExit) as error:
        play(tmp_path, "--sizes", "4", "16", "--forms", "VQ-VAE", "--updates", "20")
    assert error.value.code == 2 and "have --updates 10; give --updates 10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--datasets", "nothing"], "--datasets has no 'nothing'; choose from maze2d"),
        (["--sizes", "5"], "--sizes has no 5; choose from 4, 8"),
        (["--datasets", "door-human"], "set SAQ_STANDIN_DIR"),
        (["--table"], "has no results to show"),
    ],
)
def test_bad_requests(flags, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SAQ_STANDIN_DIR", raising=False)
    with pytest.raises(SystemExit) as error:
        quantizers.main([*flags, "--out", str(tmp_path / "none.jsonl")])
    assert error.value.code == 2 and problem in capsys.readouterr().err
