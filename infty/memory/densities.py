"""The families of read densities that a config can name.

| name        | density of a query on [0, 1]                                  | made from         |
|-------------|---------------------------------------------------------------|-------------------|
| gaussian    | a Gaussian, as the paper; its tails may leave [0, 1]          | mu, sigma^2       |
| truncated   | the same, cut off at 0 and 1 and renormalised                 | mu, sigma^2       |
| sparsemax   | a parabola: zero beyond where it meets the axis               | mu, sigma^2       |
| gibbs       | p(t) ~ exp(q . K(t) / sqrt d) on an even grid: several modes  | queries, all keys |
| joint       | points of the signal, in the softmax of local attention       | queries, all keys |

The first three are in `located.py`, joint in `attending.py`; `reading.py` is the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infty.errors import UserError
from infty.memory import density
from infty.memory.attending import Attending
from infty.memory.basis import GaussianBasis
from infty.memory.costs import Costs, Layout
from infty.memory.located import Gaussian, Sparsemax, Truncated
from infty.memory.reading import Density, Refused, mean_mass

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig


@dataclass(frozen=True)
class Gibbs(Density):
    """q [..., T, d], keys [..., N, d]: attention to the signal itself, on an even grid of `points`.

    Computes in float32 (float64 for float64 queries); differentiable in queries and keys.
    """

    q: Tensor
    keys: Tensor
    basis: GaussianBasis
    points: int

    of_tokens = ("q",)

    def probabilities(self) -> Tensor:
        """p of every grid cell's centre: [..., T, points], rows sum to 1."""
        dtype = density.working(self.q)
        along = torch.matmul(self._grid(self.basis, dtype), self.keys.to(dtype))
        scores = torch.matmul(self.q.to(dtype), along.transpose(-1, -2)) * self.q.shape[-1] ** -0.5
        return torch.softmax(scores, -1)

    def expectation(self, basis: GaussianBasis) -> Tensor:
        p = self.probabilities()
        return torch.matmul(p, self._grid(basis, p.dtype))

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        dtype = density.working(self.q)
        psi = self._grid(basis, dtype)
        keys, signal = (torch.matmul(psi, x.to(dtype)) for x in (self.keys, values))
        return torch.nn.functional.scaled_dot_product_attention(self.q.to(dtype), keys, signal)

    @torch.no_grad()
    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        if self.points % bins:
            raise UserError(
                f"model.memory.bins: {bins} does not divide the {self.points} points of a gibbs density"
            )
        return mean_mass(self.probabilities().unflatten(-1, (bins, -1)).sum(-1), weights)

    def outside(self) -> Tensor:
        return torch.zeros_like(self.q[..., 0])

    def _grid(self, basis: GaussianBasis, dtype: torch.dtype) -> Tensor:
        return _on_grid(basis.size, basis.each, self.points, dtype, self.q.device)

    @staticmethod
    def points_for(functions: int, bins: int) -> int:
        """Grid points: two for each function, so that what is read is off by less than a thousandth
        where scores are of order 1 (with one, by a percent); a multiple of the histogram's bins."""
        return -(-2 * functions // bins) * bins

    @classmethod
    def refused(cls, memory: MemoryConfig) -> Refused:
        problem = (
            f"regularises means and variances, and a {memory.density} density has none: must be 0"
        )
        return [("kl_weight", problem)] if memory.kl_weight else []

    @classmethod
    def place(
        cls,
        memory: MemoryConfig,
        q: Tensor,
        keys: tuple[Tensor, ...],
        weights: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        return {"q": q.flatten(2, 3)}

    @classmethod
    def of(
        cls, memory: MemoryConfig, basis: GaussianBasis, keys: tuple[Tensor, ...], **place: Tensor
    ) -> Density:
        [every] = keys
        return cls(place["q"], every, basis, cls.points_for(memory.basis, memory.bins))

    @classmethod
    def costs(cls, memory: MemoryConfig, model: Any, layout: Layout) -> Costs:
        """Keys and values on the grid, attention to it, all in float32; scores once more for the
        histogram."""
        H, d, L = model.heads, model.head_size, model.segment_length
        cells = cls.points_for(memory.basis, memory.bins)
        shared = H + memory.basis * model.kv_heads / L
        windows = layout.segments * layout.lanes
        heads, kv = H / layout.tensor, model.kv_heads / layout.tensor
        return Costs(
            reads=(4.0 + 2.0 * (memory.sticky != "off")) * cells * d * shared,
            exact=4.0 * d * H,
            saved=4 * windows * (L * heads * (2 * d + 1) + 2 * kv * cells * d),
        )


@lru_cache(maxsize=16)
def _on_grid(
    size: int, widths: tuple[float, ...], points: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """psi at the middle of every cell: [points, N]."""
    with torch.inference_mode(False):
        cells = torch.arange(points, dtype=torch.float64, device=device)
        return GaussianBasis(size, widths).evaluate((cells + 0.5) / points, dtype)


FAMILIES: dict[str, type[Density]] = {
    "gaussian": Gaussian,
    "truncated": Truncated,
    "sparsemax": Sparsemax,
    "gibbs": Gibbs,
    "joint": Attending,
}
"""What `model.memory.density` can name. A new family is a class of `infty.memory.reading` and a
line here."""
