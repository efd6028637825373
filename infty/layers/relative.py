"""Relative positions as in Transformer-XL (Dai et al., arXiv 1901.02860, section 3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infty.config import ModelConfig
from infty.layers.linear import ColumnParallelLinear, normal, sharded_parameter


class RelativePositions(nn.Module):
    """What a query adds to its scores for how far back a key lies: (q + v) . W_R R(distance); and u, added to the
    query for the content of a key: (q + u) . k. R are sinusoids, W_R, u and v the layer's own, split by heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.size, self.head_size = config.hidden_size, config.head_size
        self.project = ColumnParallelLinear(
            config.hidden_size,
            config.heads * config.head_size,
            normal(f"{layer}.relative", config.init_std),
        )
        self.bias_content = self._bias(config, f"{layer}.relative.content")
        self.bias_position = self._bias(config, f"{layer}.relative.position")

    @staticmethod
    def _bias(config: ModelConfig, name: str) -> nn.Parameter:
        full = normal(name, config.init_std)(torch.empty(config.heads, config.head_size))
        return sharded_parameter(full)

    def forward(self, q: Tensor, before: int) -> tuple[Tensor, Tensor]:
        """q [n, H/tp, L, d], queries after `before` keys -> q + u, and what to add to the scores (already divided by
        sqrt(d)), [n, H/tp, L, before+L]. Scores of keys after a query are meaningless: mask them."""
        L, d = q.shape[2], self.head_size
        distance = torch.arange(before + L - 1, -1, -1, device=q.device)
        R = self.project(sinusoids(distance, self.size).to(q.dtype)).unflatten(
            -1, (-1, d)
        )  # [before+L, H, d]
        scores = torch.einsum(
            "nhid,rhd->nhir", q + self.bias_position[:, None].to(q.dtype), R
        ) / math.sqrt(d)
        return q + self.bias_content[:, None].to(q.dtype), shifted(scores)


def sinusoids(distance: Tensor, size: int) -> Tensor:
    """float32 [n, size]: sin and cos of the distances [n] at size/2 frequencies (the cosine of an odd size is cut)."""
    frequency = 10_000.0 ** (
        -torch.arange(0, size, 2, device=distance.device, dtype=torch.float32) / size
    )
    angle = distance.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :size]


def shifted(scores: Tensor) -> Tensor:
    """From scores by falling distance to scores by key: row i of [..., L, K] moves L-1-i to the left."""
    L, K = scores.shape[-2:]
    padded = torch.cat([scores.new_zeros(*scores.shape[:-1], 1), scores], -1)
    return padded.reshape(*scores.shape[:-2], K + 1, L)[..., 1:, :].reshape(scores.shape)
