"""The quantizer of SAQ: a VQ-VAE of actions whose encoder and decoder see the state (SAQ, Luo et al. 2023).

    action -> code      k  = argmin_j ||e(s, a) - e_j||     encode: nearest of K codebook vectors
    code -> action      a~ = d(s, e_k)                      decode: in the current state

A code may mean another action in another state, so few codes are enough. Explained in docs/quantizer.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU in between: `mlp(11, 256, 256, 3)` maps (B, 11) to (B, 3)."""
    layers = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class VQVAE(nn.Module):
    """State-conditioned vector quantizer of actions.

    Args:
        obs_dim, action_dim: sizes of one observation and one action.
        codebook_size: K, the number of codes.
        embedding_dim: D, the size of a code's vector.
        hidden_dim: width of the two hidden layers of encoder and decoder.
        form: how the codebook learns. "ema": each vector moves to the running mean of the embeddings that
            chose it (van den Oord et al. 2017, Appendix A.1). "official": by gradient, as in the authors'
            code. "paper": by gradient, Eq. 11 to the letter: norms summed over D, in the others means.
        revive: move the vector of a code that is (almost) never chosen onto an embedding of the batch.
        condition_on_obs: False hides the state from encoder and decoder (the paper's Table 3).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        codebook_size: int = 16,
        embedding_dim: int = 16,
        hidden_dim: int = 256,
        form: str = "ema",
        revive: bool = True,
        condition_on_obs: bool = True,
    ):
        super().__init__()
        self.form, self.revive, self.condition_on_obs = form, revive, condition_on_obs
        self.divisor = 1 if form == "paper" else embedding_dim  # of the squared norms: sum or mean over D
        state_dim = obs_dim if condition_on_obs else 0
        self.encoder = mlp(state_dim + action_dim, hidden_dim, hidden_dim, embedding_dim)  # e(s, a)
        self.decoder = mlp(state_dim + embedding_dim, hidden_dim, hidden_dim, action_dim)  # d(s, e_k)
        bound = (3 / codebook_size) ** 0.5  # the authors' start
        codebook = torch.empty(codebook_size, embedding_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(codebook, requires_grad=form != "ema")  # (K, D): the vectors e_k
        self.register_buffer("usage", torch.full((codebook_size,), 1 / codebook_size))  # (K,): running share
        self.register_buffer("usage_times_mean", codebook / codebook_size)  # (K, D): share x mean embedding

    def _join(self, obs: Tensor, x: Tensor) -> Tensor:
        return torch.cat([obs, x], dim=-1) if self.condition_on_obs else x

    def _nearest(self, embedding: Tensor) -> Tensor:
        """Eq. 7: argmin_k ||e - e_k||^2; ||e||^2 is the same for all codes and left out. (B, D) -> (B,)"""
        return (self.codebook.pow(2).sum(1) - 2 * embedding @ self.codebook.T).argmin(dim=1)

    @torch.no_grad()
    def encode(self, obs: Tensor, action: Tensor) -> Tensor:
        """Each action's code: (N, obs_dim), (N, action_dim) -> (N,) integers; N may be a whole dataset."""
        parts = zip(obs.split(65_536), action.split(65_536), strict=True)
        return torch.cat([self._nearest(self.encoder(self._join(s, a))) for s, a in parts])

    def decode(self, obs: Tensor, code: Tensor) -> Tensor:
        """The action that each code stands for in its state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self.decoder(self._join(obs, self.codebook[code]))

    def loss(self, obs: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Eq. 11: (B, obs_dim), (B, action_dim) -> loss, its terms by name, embedding (B, D), code (B,)."""
        embedding = self.encoder(self._join(obs, action))  # e(s, a)
        code = self._nearest(embedding)  # k
        quantized = self.codebook[code]  # e_k
        # Straight through: argmin has no gradient, so e(s, a) gets the one that arrives at e_k.
        straight_through = embedding + (quantized - embedding).detach()
        # -log p(a | s, e_k) = ||a - a~||^2 up to constants; summed over the action's dimensions.
        reconstruction = (self.decoder(self._join(obs, straight_through)) - action).pow(2).sum(1).mean()
        # ||e(s, a) - sg[e_k]||^2: the encoder stays near the vector that it chose.
        commitment = (embedding - quantized.detach()).pow(2).sum(1).mean() / self.divisor
        loss = reconstruction + commitment
        if self.form != "ema":  # ||sg[e(s, a)] - e_k||^2: the vector follows by gradient
            loss = loss + (embedding.detach() - quantized).pow(2).sum(1).mean() / self.divisor
        return loss, {"vqvae/reconstruction": reconstruction, "vqvae/commitment": commitment}, embedding, code

    @torch.no_grad()
    def move_codebook(self, embedding: Tensor, code: Tensor, decay: float = 0.99):
        """After a gradient step, with what `loss` returned: vectors follow embeddings, dead ones revive."""
        chosen = F.one_hot(code, len(self.codebook)).to(embedding.dtype)  # (B, K)
        self.usage.lerp_(chosen.mean(0), 1 - decay)
        self.usage_times_mean.lerp_(chosen.T @ embedding / len(embedding), 1 - decay)
        if self.form == "ema":
            mean = self.usage_times_mean / self.usage[:, None]  # (K, D): of the embeddings that chose k
            self.codebook.copy_(torch.where(self.usage[:, None] > 1e-6, mean, self.codebook))
        if self.revive:
            share = 1 / len(self.codebook)
            dead = (self.usage < 0.1 * share)[:, None]  # chosen ten times less often than if all were equal
            rows = torch.arange(len(self.codebook), device=code.device) % len(code)
            fresh = embedding[rows]  # (K, D)
            self.codebook.copy_(torch.where(dead, fresh, self.codebook))
            self.usage_times_mean.copy_(torch.where(dead, share * fresh, self.usage_times_mean))
            self.usage.masked_fill_(dead[:, 0], share)
