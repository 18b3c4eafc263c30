"""What the codes of a quantizer tell of an action that the state does not. Needs PyTorch."""

import math

import torch
from torch import Tensor


def explained(obs: Tensor, action: Tensor, decoded: Tensor, heldout: Tensor) -> dict[str, float]:
    """Held-out rows compared with a plain fit of the action to the state, which is behaviour cloning in a second.

    Args:
        obs, action: the data set, standardised: (N, obs_dim), (N, A).
        decoded: d(s, e_k) of the held-out rows, in their order.
        heldout: the numbers of the rows that the quantizer was not trained on, in random order; 5,000 are used.

    Returns:
        vqvae/explained: 1 - squared error of the decoded action / squared error of the plain fit. 1: codes hold all
            that the state leaves open, 0: nothing.
        vqvae/directions: along how many directions of the action, the participation ratio (sum of eigenvalues)^2 /
            sum of their squares of the covariance of decoded - plain.
    """
    fitted = torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    fitted[heldout] = False
    fitted = fitted.nonzero()[:, 0]
    fitted, tested = fitted[:: len(fitted) // 20_000 + 1], heldout[:5_000]
    plain = _cosines(obs[tested]) @ _ridge(_cosines(obs[fitted]), action[fitted].double())
    added = decoded[: len(tested)] - plain
    error = (decoded[: len(tested)] - action[tested]).pow(2).sum(1).mean()
    plain_error = (plain - action[tested]).pow(2).sum(1).mean()
    variances = torch.linalg.eigvalsh(added.T @ added)
    return {
        "vqvae/explained": (1 - error / plain_error.clamp(min=1e-12)).item(),
        "vqvae/directions": (variances.sum().pow(2) / variances.pow(2).sum().clamp(min=1e-30)).item(),
    }


def sentence(measured: dict, codebook_size: int, action_size: int) -> str:
    """Are the codes good enough? Of what a script's `measure_quantizer` gives."""
    text = f"{measured['vqvae/codes_used']} of {codebook_size} codes are used; on held-out rows they explain "
    text += f"{max(measured['vqvae/explained'], 0):.0%} of what the state leaves open in an action, along "
    text += f"{measured['vqvae/directions']:.1f} of {action_size} directions"
    if measured["vqvae/explained"] < 0.5:
        text += ": little, so a continuous learner (baselines/) may score more"
    return text


def _cosines(obs: Tensor, number: int = 512) -> Tensor:
    """Smooth functions of the state: random features (Rahimi and Recht 2007). (N, obs_dim) -> (N, features)"""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.randn(obs.shape[1], number, generator=generator) / obs.shape[1] ** 0.5
    phase = 2 * math.pi * torch.rand(number, generator=generator)
    obs = obs.clamp(-5, 5)
    cosines = torch.cos(obs @ frequency.to(obs.device) + phase.to(obs.device))
    return torch.cat([torch.ones_like(obs[:, :1]), obs, cosines], dim=1).double()


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights of least squares, kept small where the data do not decide: (N, F), (N, A) -> (F, A)"""
    gram = x.T @ x
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    return torch.linalg.solve(gram, x.T @ y)
