"""How a head reads a continuous memory: what the training model and its transformers twin both
compute.

b lanes, K key/value heads and G query heads for each, N basis functions, D bins, d channels of a
head.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from infty.memory import densities, density
from infty.memory.basis import GaussianBasis
from infty.memory.config import MemoryConfig

# Spread of a fresh density that has a bias: its standard deviation is about this share of the
# document.
INITIAL_SIGMA = 0.05
# Size of a fresh map's weights, in units in which a pooled key has the size of a key. Small, so
# that densities begin where their biases say: at 1, the first segments of a document start with
# gradients fifty times too large.
INITIAL_WEIGHT = 0.1


def map_rows(memory: MemoryConfig, heads: int) -> int:
    """Rows of a density map's weights: one a head, or one a layer."""
    return 1 if memory.maps == "shared" else heads


def map_scale(memory: MemoryConfig) -> float:
    """What a map's weights are multiplied with.

    Coefficients of a signal of size 1 have size ~1/N, so a pooled key has size ~1 when weights have
    ~sqrt(N). Kept as a factor, so that an optimizer step means the same as for other weights.
    """
    return 1.0 if memory.maps == "shared" else math.sqrt(memory.basis)


def map_std(memory: MemoryConfig) -> float:
    """Standard deviation of a fresh map's weights. Shared: the paper's, a torch.nn.Linear without
    bias."""
    return 1 / math.sqrt(3 * memory.basis) if memory.maps == "shared" else INITIAL_WEIGHT


def map_biases(rows: int) -> tuple[Tensor, Tensor]:
    """Biases of fresh maps for mean and variance, float32 [rows] each: heads begin by looking at
    different places."""
    position = (torch.arange(rows) + 0.5) / rows
    return torch.logit(position), torch.full((rows,), math.log(math.expm1(INITIAL_SIGMA**2)))


def pooled(maps: Tensor, keys: Tensor) -> Tensor:
    """The memory's keys [b, K, N, d], pooled by maps float32 [2, K, G, N] for mean and variance:
    [2, b, K, G, d].

    Because w . (K q) = (w^T K) q, the N keys are pooled into two vectors and scores are never
    formed.
    """
    return torch.einsum("pkgn,bknd->pbkgd", maps, keys)


def pooled_hidden(maps: Tensor, signal: Tensor) -> Tensor:
    """The same for a hidden signal [b, N, e] before it is projected to keys: [2, b, K, G, e]."""
    return torch.einsum("pkgn,bne->pbkge", maps, signal)


def place(
    memory: MemoryConfig,
    q: Tensor,
    key_mu: Tensor,
    key_sigma: Tensor,
    bias_mu: Tensor | None,
    bias_sigma: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the densities of queries q [b, K, G, t, d]: float32 [b, K, G*t] each.

    Pooled keys [b, K, G, d]; biases [K*G] or None.
    """
    found = density.parameters(
        q.flatten(1, 2),
        key_mu.flatten(1, 2),
        key_sigma.flatten(1, 2),
        bias_mu,
        bias_sigma,
        memory.sigma_floor,
        memory.sigma_clamp,
    )
    return tuple(x.unflatten(1, q.shape[1:3]).flatten(2) for x in found)


def density_of(
    memory: MemoryConfig, made_from: tuple[Tensor, Tensor], basis: GaussianBasis
) -> densities.Density:
    """The family of read densities that the config names, made from a mean and a variance; gibbs
    from queries and keys."""
    if memory.density == "gibbs":
        return densities.Gibbs(*made_from, basis, densities.gibbs_points(memory.basis, memory.bins))
    return densities.FAMILIES[memory.density](*made_from)


@torch.no_grad()
def histogram(
    memory: MemoryConfig,
    read: densities.Density,
    heads: int,
    total: Callable[[Tensor], Tensor] = lambda p: p,
) -> Tensor:
    """Where a segment's reads fell: [b, 1, D] for all `heads` key/value heads of the layer, or [b,
    K, D] for each.

    total: adds up over the ranks that share the heads out.
    """
    p = read.histogram(memory.bins)  # [b, K, D]
    return p if memory.sticky_heads == "per_head" else total(p.sum(1, keepdim=True)) / heads


def neighbours(h: Tensor) -> Tensor:
    """[n, L, ..., e] -> [n, L, ..., 3e]: each token beside its neighbours in its segment, zeros
    outside."""
    zero = torch.zeros_like(h[:, :1])
    return torch.cat([torch.cat([zero, h[:, :-1]], 1), h, torch.cat([h[:, 1:], zero], 1)], -1)
