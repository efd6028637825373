"""Families of densities that are made from a mean and a variance.

| class     | density of a query on [0, 1]                                     |
|-----------|------------------------------------------------------------------|
| Gaussian  | N(t; mu, sigma^2), as the paper; its tails may leave [0, 1]       |
| Truncated | the same, cut off at 0 and 1 and renormalised                    |
| Sparsemax | the parabola (a^2 - (t - mu)^2)_+ / 2 sigma^2, a^3 = 3 sigma^2/2 |

The parabola is continuous sparsemax (Martins et al., NeurIPS 2020, arXiv 2006.07214): zero beyond
mu +- a. Every family computes in float32 (float64 for float64 inputs) and is differentiable in mu
and the variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from infty.memory import density
from infty.memory.basis import GaussianBasis
from infty.memory.costs import Costs, Layout
from infty.memory.kernels.blocked import BLOCK
from infty.memory.reading import Density, Parameter, mean_mass

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig

ROOT2 = math.sqrt(2)
# Spread of a fresh density that has a bias: its standard deviation is about this share of the
# document.
INITIAL_SIGMA = 0.05
# Size of a fresh map's weights, in units in which a pooled key has the size of a key. Small, so
# that densities begin where their biases say: at 1, the first segments of a document start with
# gradients fifty times too large.
INITIAL_WEIGHT = 0.1


@dataclass(frozen=True)
class Located(Density):
    """mu, variance [..., T]: mu = sigmoid(w_mu . s + b), and the variance from another such map,
    with scores s = K q / sqrt(d) over the N functions.

    Because w . (K q) = (w^T K) q, the N keys are pooled into two vectors and scores are never
    formed. A family is a class with `expectation` and `masses`; the rest is here.
    """

    mu: Tensor
    variance: Tensor

    pools = True
    of_tokens = ("mu", "variance")
    reads_each_width: ClassVar[bool] = False
    """Whether the read on a CPU keeps its result for each width of the basis."""

    def masses(self, bins: int) -> Tensor:
        """Share of each density that lies in each of the even bins of [0, 1]: float32 [..., T, bins]."""
        raise NotImplementedError

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        """A few rows at a time; weights are made again in the backward pass, never kept."""
        lead, tokens = self.mu.shape[:-1], self.mu.shape[-1]
        mu, variance = self.mu.reshape(-1, tokens), self.variance.reshape(-1, tokens)
        values = values.reshape(-1, *values.shape[-2:])

        def part(mu: Tensor, variance: Tensor, values: Tensor) -> Tensor:
            weights = type(self)(mu, variance).expectation(basis)
            return torch.matmul(weights, values.to(weights.dtype))

        rows = max(1, BLOCK // (tokens * basis.size))
        pieces = [
            checkpoint(part, *block, use_reentrant=False, preserve_rng_state=False)
            for block in zip(mu.split(rows), variance.split(rows), values.split(rows))
        ]
        return torch.cat(pieces).reshape(*lead, tokens, -1)

    @torch.no_grad()
    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        return mean_mass(self.masses(bins), weights)

    def outside(self) -> Tensor:
        return 1 - self.masses(1).squeeze(-1)

    def divergence(self, sigma: float) -> Tensor:
        return density.kl(self.mu, self.variance, sigma)

    def figures(self) -> dict[str, Tensor]:
        return {"mu": self.mu.float().mean(), "sigma": self.variance.float().sqrt().mean()}

    @classmethod
    def parameters(cls, memory: MemoryConfig, rows: int) -> dict[str, Parameter]:
        """The maps of mean and variance, and their biases: heads begin by looking at different
        places. Shared maps begin as the paper's do, a torch.nn.Linear without bias."""
        N = memory.basis
        std = 1 / math.sqrt(3 * N) if memory.maps == "shared" else INITIAL_WEIGHT
        maps = {f"weight_{part}": Parameter((rows, N), part, std) for part in ("mu", "sigma")}
        if not memory.map_bias:
            return maps
        places = torch.logit((torch.arange(rows) + 0.5) / rows)
        spread = torch.full((rows,), math.log(math.expm1(INITIAL_SIGMA**2)))
        return maps | {
            "bias_mu": Parameter((rows,), value=places),
            "bias_sigma": Parameter((rows,), value=spread),
        }

    @classmethod
    def pool(cls, memory: MemoryConfig, weights: dict[str, Tensor]) -> Tensor | None:
        """Coefficients of a signal of size 1 have size ~1/N, so a pooled key has size ~1 when its
        weights have ~sqrt(N). That is a factor here, so that an optimizer step means the same as
        for other weights."""
        scale = 1.0 if memory.maps == "shared" else math.sqrt(memory.basis)
        maps = [weights[f"weight_{part}"].float() * scale for part in ("mu", "sigma")]
        return torch.stack(maps)

    @classmethod
    def place(
        cls,
        memory: MemoryConfig,
        q: Tensor,
        keys: tuple[Tensor, ...],
        weights: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        key_mu, key_sigma = (key.flatten(1, 2) for key in keys)
        found = density.parameters(
            q.flatten(1, 2),
            key_mu,
            key_sigma,
            weights.get("bias_mu"),
            weights.get("bias_sigma"),
            memory.sigma_floor,
            memory.sigma_clamp,
        )
        return {
            name: x.unflatten(1, q.shape[1:3]).flatten(2) for name, x in zip(cls.of_tokens, found)
        }

    @classmethod
    def of(
        cls, memory: MemoryConfig, basis: GaussianBasis, keys: tuple[Tensor, ...], **place: Tensor
    ) -> Density:
        return cls(**place)

    @classmethod
    def costs(cls, memory: MemoryConfig, model: Any, layout: Layout) -> Costs:
        N, H, d = memory.basis, model.heads, model.head_size
        heads, kv = H / layout.tensor, model.kv_heads / layout.tensor
        windows = layout.segments * layout.lanes
        n = windows * model.segment_length
        cpu, widths = layout.device == "cpu", len(memory.widths)
        # In float32 and without grouped keys, queries are a view of all that was projected.
        view = layout.width == 4 and model.kv_heads == H
        queries = 4 * n * d * heads
        pooled = windows * heads * d * 2 * 4
        maps = 2 * 2 * 4 * heads * N
        densities = 4 * n * heads * (2 + 1 + (widths if cpu else 1))
        # The CPU's read makes its own float32 values; the slices for each width share one storage.
        values = (4 if cpu else layout.width) * windows * kv * N * d
        read = queries * widths if cpu and cls.reads_each_width else 0
        return Costs(
            reads=2.0 * N * d * H,
            exact=(10.0 * N + 4.0 * d) * H,
            saved=(0 if view else queries) + pooled + maps + densities + values + read,
            saved_together=3 * queries if view else 0.0,
        )


class Gaussian(Located):
    """Reads in closed form, on a GPU by kernels (`density`)."""

    reads_each_width = True

    def expectation(self, basis: GaussianBasis) -> Tensor:
        return density.expectation(self.mu, self.variance, basis)

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        return density.read(self.mu, self.variance, values, basis)

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        return density.histogram(self.mu, self.variance, bins, weights)

    def outside(self) -> Tensor:
        return 1 - _inside(self.mu.float(), self.variance.float().sqrt())


class Truncated(Located):
    """mu in [0, 1]: the Gaussian inside [0, 1], renormalised."""

    def expectation(self, basis: GaussianBasis) -> Tensor:
        m, s2, mu, variance = _columns(basis, self.mu, self.variance)
        total = variance + s2
        # The product of two Gaussians is one, of this mean and spread; its share of [0, 1] over theirs.
        center, spread = (mu * s2 + m * variance) / total, torch.sqrt(variance * s2 / total)
        share = _inside(center, spread) / _inside(mu, variance.sqrt())
        return density.expectation(self.mu, self.variance, basis) * share

    def masses(self, bins: int) -> Tensor:
        edges = torch.linspace(0, 1, bins + 1, device=self.mu.device)
        mu, sigma = self.mu.float().unsqueeze(-1), self.variance.float().sqrt().unsqueeze(-1)
        mass = torch.special.erf((edges - mu) / (sigma * ROOT2)).diff(dim=-1)
        return mass / mass.sum(-1, keepdim=True).clamp(min=1e-30)


class Sparsemax(Located):
    """A parabola of compact support around mu."""

    @property
    def reach(self) -> Tensor:
        """Half of the support: a = (3 sigma^2 / 2)^(1/3)."""
        return (1.5 * self.variance) ** (1 / 3)

    def expectation(self, basis: GaussianBasis) -> Tensor:
        m, s2, mu, variance = _columns(basis, self.mu, self.variance)
        a, x, s = self.reach.to(mu.dtype).unsqueeze(-1), mu - m, s2.sqrt()
        low, high = (x - a) / s, (x + a) / s
        at_low, at_high = _phi(low), _phi(high)
        # Moments 0, 1, 2 of the standard normal over (low, high), times the parabola in u = (t - m) / s.
        zeroth, first = _between(low, high), at_low - at_high
        second = zeroth + low * at_low - high * at_high
        return ((a * a - x * x) * zeroth + 2 * s * x * first - s2 * second) / (2 * variance)

    def masses(self, bins: int) -> Tensor:
        edges = torch.linspace(0, 1, bins + 1, device=self.mu.device)
        u = ((edges - self.mu.float().unsqueeze(-1)) / self.reach.float().unsqueeze(-1)).clamp(
            -1, 1
        )
        return (0.75 * (u - u**3 / 3)).diff(dim=-1)


def _columns(
    basis: GaussianBasis, mu: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres, squared widths, and mu and variance as columns, in the working precision."""
    dtype = density.working(mu)
    centers, widths = basis.on(mu.device)
    return (
        centers.to(dtype),
        widths.to(dtype) ** 2,
        mu.to(dtype).unsqueeze(-1),
        variance.to(dtype).unsqueeze(-1),
    )


def _inside(mean: Tensor, sigma: Tensor) -> Tensor:
    """Mass in [0, 1] of a Gaussian whose mean lies there: a sum of two positive terms, exact for any sigma."""
    return 0.5 * (
        torch.special.erf((1 - mean) / (sigma * ROOT2)) + torch.special.erf(mean / (sigma * ROOT2))
    )


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Phi(high) - Phi(low) without cancellation in the tails."""
    flipped = low > 0
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    tails = 0.5 * (torch.special.erfc(-high / ROOT2) - torch.special.erfc(-low / ROOT2))
    return torch.where(
        high > 0, 0.5 * (torch.special.erf(high / ROOT2) - torch.special.erf(low / ROOT2)), tails
    )


def _phi(u: Tensor) -> Tensor:
    return torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
