"""Families of read densities behind one interface: what a query reads, and where its attention fell.

| name      | density of a query on [0, 1]                                     | made from         |
|-----------|------------------------------------------------------------------|-------------------|
| gaussian  | N(t; mu, sigma^2), as the paper; its tails may leave [0, 1]       | mu, sigma^2       |
| truncated | the same, cut off at 0 and 1 and renormalised                    | mu, sigma^2       |
| sparsemax | the parabola (a^2 - (t - mu)^2)_+ / 2 sigma^2, a^3 = 3 sigma^2/2 | mu, sigma^2       |
| gibbs     | p(t) ~ exp(q . K(t) / sqrt d) on an even grid: several modes     | queries, all keys |

The parabola is continuous sparsemax (Martins et al., NeurIPS 2020, arXiv 2006.07214): zero beyond mu +- a. Every
family computes in float32 (float64 for float64 inputs) and is differentiable in all it is made from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from infty.errors import UserError
from infty.memory import density
from infty.memory.basis import GaussianBasis
from infty.memory.kernels.blocked import BLOCK

ROOT2 = math.sqrt(2)


class Density(Protocol):
    """The densities of one batch of queries [..., T]."""

    def expectation(self, basis: GaussianBasis) -> Tensor:
        """E[psi_j]: [..., T, N]."""
        ...

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        """E[psi] values: [..., T, d] for values [..., N, d]. Does not store the T x N weights."""
        ...

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        """Mean mass in each bin over tokens [b, h, T]: float32 [b, h, bins], rows sum to 1. No gradient."""
        ...

    def outside(self) -> Tensor:
        """Share of each density's mass that lies outside [0, 1], where there is nothing to read: [..., T]."""
        ...


@runtime_checkable
class Located(Density, Protocol):
    """Densities that are made from a mean and a variance, [..., T] each."""

    @property
    def mu(self) -> Tensor: ...

    @property
    def variance(self) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """mu, variance [..., T]."""

    mu: Tensor
    variance: Tensor

    def expectation(self, basis: GaussianBasis) -> Tensor:
        return density.expectation(self.mu, self.variance, basis)

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        return density.read(self.mu, self.variance, values, basis)

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        return density.histogram(self.mu, self.variance, bins, weights)

    def outside(self) -> Tensor:
        return 1 - _inside(self.mu.float(), self.variance.float().sqrt())


@dataclass(frozen=True)
class Truncated:
    """mu in [0, 1], variance [..., T]: the Gaussian inside [0, 1], renormalised."""

    mu: Tensor
    variance: Tensor

    def expectation(self, basis: GaussianBasis) -> Tensor:
        m, s2, mu, variance = _columns(basis, self.mu, self.variance)
        total = variance + s2
        # The product of two Gaussians is one, of this mean and spread; its share of [0, 1] over theirs.
        center, spread = (mu * s2 + m * variance) / total, torch.sqrt(variance * s2 / total)
        share = _inside(center, spread) / _inside(mu, variance.sqrt())
        return density.expectation(self.mu, self.variance, basis) * share

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        return _by_blocks(Truncated, self.mu, self.variance, values, basis)

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        edges = torch.linspace(0, 1, bins + 1, device=self.mu.device)
        mu, sigma = self.mu.float().unsqueeze(-1), self.variance.float().sqrt().unsqueeze(-1)
        mass = torch.special.erf((edges - mu) / (sigma * ROOT2)).diff(dim=-1)
        return _mean_mass(mass / mass.sum(-1, keepdim=True).clamp(min=1e-30), weights)

    def outside(self) -> Tensor:
        return torch.zeros_like(self.mu)


@dataclass(frozen=True)
class Sparsemax:
    """mu, variance [..., T]: a parabola of compact support around mu."""

    mu: Tensor
    variance: Tensor

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

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        return _by_blocks(Sparsemax, self.mu, self.variance, values, basis)

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        return _mean_mass(
            self._between(torch.linspace(0, 1, bins + 1, device=self.mu.device)), weights
        )

    def outside(self) -> Tensor:
        return 1 - self._between(torch.tensor([0.0, 1.0], device=self.mu.device)).squeeze(-1)

    def _between(self, edges: Tensor) -> Tensor:
        """Mass between edges [n]: float32 [..., T, n - 1]."""
        u = ((edges - self.mu.float().unsqueeze(-1)) / self.reach.float().unsqueeze(-1)).clamp(
            -1, 1
        )
        return (0.75 * (u - u**3 / 3)).diff(dim=-1)


@dataclass(frozen=True)
class Gibbs:
    """queries [..., T, d], keys [..., N, d]: attention to the signal itself, on an even grid of `points`."""

    q: Tensor
    keys: Tensor
    basis: GaussianBasis
    points: int

    def probabilities(self) -> Tensor:
        """p of every grid cell's centre: [..., T, points], rows sum to 1."""
        dtype = density._working(self.q)
        along = torch.matmul(self._grid(self.basis, dtype), self.keys.to(dtype))
        scores = torch.matmul(self.q.to(dtype), along.transpose(-1, -2)) * self.q.shape[-1] ** -0.5
        return torch.softmax(scores, -1)

    def expectation(self, basis: GaussianBasis) -> Tensor:
        p = self.probabilities()
        return torch.matmul(p, self._grid(basis, p.dtype))

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        dtype = density._working(self.q)
        psi = self._grid(basis, dtype)
        keys, signal = (torch.matmul(psi, x.to(dtype)) for x in (self.keys, values))
        return torch.nn.functional.scaled_dot_product_attention(self.q.to(dtype), keys, signal)

    @torch.no_grad()
    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        if self.points % bins:
            raise UserError(
                f"model.memory.bins: {bins} does not divide the {self.points} points of a gibbs density"
            )
        return _mean_mass(self.probabilities().unflatten(-1, (bins, -1)).sum(-1), weights)

    def outside(self) -> Tensor:
        return torch.zeros_like(self.q[..., 0])

    def _grid(self, basis: GaussianBasis, dtype: torch.dtype) -> Tensor:
        return _on_grid(basis.size, basis.each, self.points, dtype, self.q.device)


@torch.no_grad()
def statistics(place: Density, bins: int) -> dict[str, Tensor]:
    """Scalars to watch, of densities [b, h, T]: share of mass `outside` [0, 1]; `entropy` over `bins` bins of a head's
    mean density (nats, at most log(bins)), averaged over lanes and heads; mean `mu` and `sigma` where there are any."""
    figures = {
        "outside": place.outside().mean(),
        "entropy": torch.special.entr(place.histogram(bins)).sum(-1).mean(),
    }
    if isinstance(place, Located):
        figures |= {"mu": place.mu.float().mean(), "sigma": place.variance.float().sqrt().mean()}
    return figures


def gibbs_points(functions: int, bins: int) -> int:
    """Grid points of a gibbs density: two for each function, so that what is read is off by less than a thousandth
    where scores are of order 1 (with one, by a percent); a multiple of the histogram's bins."""
    return -(-2 * functions // bins) * bins


@lru_cache(maxsize=16)
def _on_grid(
    size: int, widths: tuple[float, ...], points: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """psi at the middle of every cell: [points, N]."""
    with torch.inference_mode(False):
        cells = torch.arange(points, dtype=torch.float64, device=device)
        return GaussianBasis(size, widths).evaluate((cells + 0.5) / points, dtype)


FAMILIES: dict[str, Callable[[Tensor, Tensor], Located]] = {
    "gaussian": Gaussian,
    "truncated": Truncated,
    "sparsemax": Sparsemax,
}
"""Families that are made from a mean and a variance; `Gibbs` is made from queries and keys."""


def _by_blocks(
    family: type[Truncated] | type[Sparsemax],
    mu: Tensor,
    variance: Tensor,
    values: Tensor,
    basis: GaussianBasis,
) -> Tensor:
    """Read a few rows at a time; weights are made again in the backward pass, never kept."""
    lead, tokens = mu.shape[:-1], mu.shape[-1]
    mu, variance = mu.reshape(-1, tokens), variance.reshape(-1, tokens)
    values = values.reshape(-1, *values.shape[-2:])

    def part(mu: Tensor, variance: Tensor, values: Tensor) -> Tensor:
        weights = family(mu, variance).expectation(basis)
        return torch.matmul(weights, values.to(weights.dtype))

    rows = max(1, BLOCK // (tokens * basis.size))
    pieces = [
        checkpoint(part, *block, use_reentrant=False, preserve_rng_state=False)
        for block in zip(mu.split(rows), variance.split(rows), values.split(rows))
    ]
    return torch.cat(pieces).reshape(*lead, tokens, -1)


def _columns(
    basis: GaussianBasis, mu: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres, squared widths, and mu and variance as columns, in the working precision."""
    dtype = density._working(mu)
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


@torch.no_grad()
def _mean_mass(mass: Tensor, weights: Tensor | None) -> Tensor:
    """mass [b, h, T, D] of each token -> mean over tokens, rows sum to 1."""
    if weights is not None:
        mass = mass * weights[:, None, :, None]
    mass = mass.sum(-2).clamp(min=0)
    whole = mass.sum(-1, keepdim=True)
    return torch.where(whole > 0, mass / whole.clamp(min=1e-30), 1 / mass.shape[-1]).float()
