"""Products with the operator of a fixed grid, tile by tile.

A regression onto narrow functions is local: its operator decays exponentially away from the diagonal, and what
`regression.cast` has set to zero need not be multiplied. At N = 512 the tiles hold a third of the operator, at 2,048 a
ninth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infty.memory import regression
from infty.memory.basis import CPU, gaussian, placement

TILES = 8, 16
"""Tiles an operator is cut into, at least and at most, one for each 64 functions in between: more would waste less and
launch more products."""
WORTHWHILE = 0.75
"""An operator is left whole when its tiles hold more than this share of it."""


@dataclass(frozen=True)
class Tiles:
    """A matrix [rows, columns], all of whose entries that are not zero lie in tiles."""

    entries: Tensor
    """[n, T, W]: tile i holds rows i*T to (i+1)*T (zero beyond the last) and columns starts[i] to starts[i] + W."""
    starts: tuple[int, ...]
    rows: int

    def to(self, device: torch.device) -> Tiles:
        """The same on a device."""
        return replace(self, entries=self.entries.to(device))

    @property
    def operations(self) -> int:
        """Multiplications of a product with one column."""
        return self.entries.numel()


@lru_cache(maxsize=16)
def grid_write(
    size: int, widths: tuple[float, ...], ridge: float, points: int, dtype: torch.dtype
) -> tuple[Tiles, Tiles]:
    """`regression.grid_write` in a working precision, transposed: [N, points], and [points, N] for gradients."""
    operator = regression.cast(regression.grid_write(size, widths, ridge, points), dtype)
    return both_ways(operator.T)


@lru_cache(maxsize=16)
def at_centers(
    size: int, widths: tuple[float, ...], device: torch.device = CPU
) -> tuple[Tiles, Tiles]:
    """psi at every centre, float32 [centres, N], and its transpose: what a signal is there."""
    if device != CPU:
        there, back = at_centers(size, widths)
        return there.to(device), back.to(device)
    with torch.inference_mode(False):  # it may be needed in training later
        centers, spread = placement(size, widths)
        psi = gaussian(centers[:: len(widths)], centers, spread)
        return both_ways(regression.cast(psi, torch.float32))


def both_ways(operator: Tensor) -> tuple[Tiles, Tiles]:
    """An operator [N, M] of a signal of N functions, in tiles, and its transpose."""
    count = min(max(len(operator) // 64, TILES[0]), TILES[1])
    return cut(operator, count), cut(operator.T, count)


def cut(operator: Tensor, count: int) -> Tiles:
    """The fewest columns that hold the entries of each of `count` groups of rows, all groups equally wide."""
    rows, columns = operator.shape
    height = -(-rows // count)
    groups = [
        (operator[i : i + height] != 0).any(0).nonzero().flatten().tolist()
        for i in range(0, rows, height)
    ]
    width = max((g[-1] - g[0] + 1 for g in groups if g), default=1)
    if width > WORTHWHILE * columns:
        return Tiles(operator.clone().unsqueeze(0), (0,), rows)
    starts = tuple(min(g[0] if g else 0, columns - width) for g in groups)
    entries = operator.new_zeros(len(groups), height, width)
    for tile, start, i in zip(entries, starts, range(0, rows, height)):
        part = operator[i : i + height, start : start + width]
        tile[: len(part)] = part
    return Tiles(entries, starts, rows)


def multiply(tiles: Tiles, transposed: Tiles, x: Tensor) -> Tensor:
    """The matrix times x [..., columns, c]: [..., rows, c]. `transposed` holds the same matrix transposed, for the
    gradient of x."""
    return _Product.apply(x, tiles, transposed)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tiles: Tiles, transposed: Tiles) -> Tensor:
        ctx.transposed = transposed
        return _multiply(tiles, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(ctx.transposed, grad), None, None


def _multiply(tiles: Tiles, x: Tensor) -> Tensor:
    width = tiles.entries.shape[-1]
    parts = [
        torch.matmul(tile, x[..., start : start + width, :])
        for tile, start in zip(tiles.entries, tiles.starts)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)[..., : tiles.rows, :]
