"""The quantizer of SAQ: a VQ-VAE over actions whose encoder and decoder see the state (Luo et al. 2023, Section 4).

An action becomes one code, k = argmin_j ||e(s, a) - e_j||, and a code becomes an action again in the current state,
a~ = d(s, e_k). What a code means may therefore change from state to state, and few codes are enough. docs/quantizer.md.
"""

import torch
import torch.nn.functional as F
from torch import nn


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU in between: `mlp(11, 256, 256, 3)` maps (B, 11) to (B, 3)."""
    layers = [layer for pair in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class VQVAE(nn.Module):
    """State-conditioned vector quantizer of actions.

    Args:
        obs_dim, action_dim: sizes of one observation and one action.
        codebook_size: K, the number of codes.
        embedding_dim: D, the size of a code's vector.
        hidden_dim: width of the two hidden layers of encoder and decoder.
        form: how the codebook learns. "paper" is Eq. 11 to the letter: squared norms, summed over dimensions.
            "official" is the authors' code: the two codebook terms are means over D. "ema" moves every code to the
            running mean of the embeddings assigned to it (van den Oord et al. 2017, Appendix A.1).
        revive: move a code that is (almost) never chosen onto an embedding of the batch.
        condition_on_obs: False hides the state from encoder and decoder (the paper's Table 3).
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        codebook_size: int = 64,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        form: str = "ema",
        revive: bool = True,
        condition_on_obs: bool = True,
    ):
        super().__init__()
        self.form, self.revive, self.condition_on_obs = form, revive, condition_on_obs
        state_dim = obs_dim if condition_on_obs else 0
        self.encoder = mlp(state_dim + action_dim, hidden_dim, hidden_dim, embedding_dim)
        self.decoder = mlp(state_dim + embedding_dim, hidden_dim, hidden_dim, action_dim)
        bound = (3 / codebook_size) ** 0.5  # the authors' start
        codebook = torch.empty(codebook_size, embedding_dim).uniform_(-bound, bound)
        self.codebook = nn.Parameter(codebook, requires_grad=form != "ema")  # (K, D)
        # Running statistics of the codes: how often each is chosen, and the sum of the embeddings that chose it.
        self.register_buffer("usage", torch.full((codebook_size,), 1 / codebook_size))  # (K,)
        self.register_buffer("embedding_sum", codebook / codebook_size)  # (K, D)

    def _join(self, obs: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([obs, x], dim=-1) if self.condition_on_obs else x

    def _nearest(self, embedding: torch.Tensor) -> torch.Tensor:
        """Eq. 7: the index of the nearest code; ||e||^2 is the same for all codes and left out. (B, D) -> (B,)"""
        return (self.codebook.pow(2).sum(1) - 2 * embedding @ self.codebook.T).argmin(dim=1)

    @torch.no_grad()
    def encode(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """The code of each action: (N, obs_dim), (N, action_dim) -> (N,) integers, N up to a whole dataset."""
        pairs = zip(obs.split(65_536), action.split(65_536), strict=True)
        return torch.cat([self._nearest(self.encoder(self._join(*pair))) for pair in pairs])

    def decode(self, obs: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The action that each code stands for in its state: (B, obs_dim), (B,) -> (B, action_dim)."""
        return self.decoder(self._join(obs, self.codebook[code]))

    def loss(self, obs: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 11 on a batch: (B, obs_dim), (B, action_dim) -> (scalar, its terms by name).

        In training mode "ema" and `revive` move the codebook, as batch normalization moves its statistics.
        """
        embedding = self.encoder(self._join(obs, action))  # (B, D)
        code = self._nearest(embedding)  # (B,)
        quantized = self.codebook[code]  # (B, D)
        # Straight-through: the decoder sees e_k, the encoder receives e_k's gradient.
        straight_through = embedding + (quantized - embedding).detach()
        # -log p(a | s, e_k) of a Gaussian decoder: squared error, summed over action dimensions.
        reconstruction = (self.decoder(self._join(obs, straight_through)) - action).pow(2).sum(1).mean()
        codebook = (embedding.detach() - quantized).pow(2).sum(1).mean()
        commitment = (embedding - quantized.detach()).pow(2).sum(1).mean()
        if self.form != "paper":
            codebook, commitment = codebook / embedding.shape[1], commitment / embedding.shape[1]
        loss = reconstruction + commitment
        if self.form != "ema":
            loss = loss + codebook
        if self.training:
            self._move_codebook(embedding.detach(), code)
        return loss, {
            "vqvae/reconstruction": reconstruction,
            "vqvae/codebook": codebook,
            "vqvae/commitment": commitment,
        }

    @torch.no_grad()
    def _move_codebook(self, embedding: torch.Tensor, code: torch.Tensor, decay: float = 0.99):
        chosen = F.one_hot(code, len(self.codebook)).to(embedding.dtype)  # (B, K)
        self.usage.lerp_(chosen.mean(0), 1 - decay)
        self.embedding_sum.lerp_(chosen.T @ embedding / len(embedding), 1 - decay)
        if self.form == "ema":
            alive = self.usage[:, None] > 1e-6
            self.codebook.copy_(torch.where(alive, self.embedding_sum / self.usage[:, None], self.codebook))
        if self.revive:
            share = 1 / len(self.codebook)
            dead = (self.usage < 0.1 * share)[:, None]  # chosen ten times less often than if all were equal
            fresh = embedding[torch.arange(len(self.codebook), device=embedding.device) % len(embedding)]  # (K, D)
            self.codebook.copy_(torch.where(dead, fresh, self.codebook))
            self.embedding_sum.copy_(torch.where(dead, share * fresh, self.embedding_sum))
            self.usage.masked_fill_(dead[:, 0], share)
