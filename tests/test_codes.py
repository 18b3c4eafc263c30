"""What codes tell beyond the state, on actions of which it is known."""

import numpy as np
import pytest
import torch

from d4rl import codes as d4rl_codes


def made():
    """A smooth function of the state, and noise that no state tells."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(6000, 4, generator=generator)
    smooth = torch.stack([obs[:, 0].sin(), obs[:, 1], obs[:, :2].prod(1).tanh()], dim=1)
    return (
        obs,
        smooth,
        torch.randn(6000, 3, generator=generator),
        torch.randperm(6000, generator=generator)[:600],
    )


@pytest.mark.parametrize(("known", "expected"), [(1.0, 1.0), (0.5, 0.75), (0.0, 0.0)])
def test_explained(known, expected):
    """Codes that tell half of the noise leave a quarter of its square."""
    obs, smooth, noise, heldout = made()
    decoded = (smooth + known * noise)[heldout]
    found = d4rl_codes.explained(obs, smooth + noise, decoded, heldout)
    assert found["vqvae/explained"] == pytest.approx(expected, abs=0.12)
    if known == 1:
        assert found["vqvae/explained"] == 1


def test_explained_is_of_heldout_rows():
    """The plain fit never sees them: there, actions of another function are a surprise."""
    obs, smooth, _, heldout = made()
    action = smooth.clone()
    action[heldout] += 3
    found = d4rl_codes.explained(obs, action, smooth[heldout], heldout)
    assert found["vqvae/explained"] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("scale", "expected"), [((1, 0, 0), 1), ((1, 1, 0), 2), ((1, 1, 1), 3)])
def test_directions(scale, expected):
    obs, smooth, noise, heldout = made()
    action = smooth + 3 * noise * torch.tensor(scale)
    assert d4rl_codes.explained(obs, action, action[heldout], heldout)["vqvae/directions"] == pytest.approx(
        expected, abs=0.15
    )


def test_rows_come_from_the_whole_data():
    """Of 60,000 rows every third is fitted: their last third has other actions."""
    obs, late = torch.zeros(60_000, 1), torch.arange(60_000) >= 40_000
    action, heldout = late[:, None].float(), torch.tensor([0, 59_999])
    found = d4rl_codes.explained(obs, action, torch.full((2, 1), 0.5), heldout)
    assert found["vqvae/explained"] == pytest.approx(1 - 0.25 / ((1 / 9 + 4 / 9) / 2), abs=1e-3)


def test_actions_that_never_change():
    """Nothing is open, and nothing is divided by zero: a number that is not finite would end the run."""
    obs, heldout = made()[0], made()[3]
    zeros = torch.zeros(6000, 3)
    for decoded in (zeros[heldout], zeros[heldout] + 0.1):
        found = d4rl_codes.explained(obs, zeros, decoded, heldout)
        assert np.isfinite(list(found.values())).all()


def test_sentence():
    measured = {"vqvae/codes_used": 15, "vqvae/explained": 0.888, "vqvae/directions": 2.84}
    good = d4rl_codes.sentence(measured, 16, 7)
    assert (
        good.startswith("15 of 16 codes are used; on held-out rows they explain 89% of")
        and "2.8 of 7" in good
    )
    assert "continuous learner" not in good
    assert "continuous learner" in d4rl_codes.sentence(measured | {"vqvae/explained": 0.49}, 16, 7)
    assert "explain 0%" in d4rl_codes.sentence(measured | {"vqvae/explained": -0.2}, 16, 7)
