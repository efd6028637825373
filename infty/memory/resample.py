"""Putting signals on the grid of a write: samples of the old one, cell averages of the new tokens.

Both are products with matrices that have a few entries in each row (bands.py). The dense matrices are what the formulas
say; they are used where functions are wide, where gradients reach the positions of samples and tokens (a learned
contraction, salience), and where tokens share out their room unevenly. Which form runs depends on the configuration
alone, never on what lanes hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infty.memory import bands
from infty.memory.bands import Band
from infty.memory.basis import GaussianBasis, placement
from infty.memory.kernels import on_gpu
from infty.memory.room import edges

# Functions further than this many widths from a sample are left out of the band: psi < 2e-8 of its peak.
REACH = 6.0
# A band pays when it is this many times narrower than the basis.
BAND_GAIN = 8


def grid(
    basis: GaussianBasis,
    times: Tensor,
    weight: Tensor,
    signal: Tensor,
    start: Tensor,
    end: Tensor,
    x: Tensor,
    cells: int,
    weights: Tensor | None = None,
) -> Tensor:
    """What a write puts on its grid, the old signal and the new tokens: `sample` + `pool`, [b, h, cells, c].

    Of the cells, those with weight come first. On a GPU one kernel makes both (kernels/grid.py).
    """
    fixed = not (times.requires_grad or weight.requires_grad or start.requires_grad)
    if (
        fixed
        and weights is None
        and band_of(basis.size, basis.each)
        and signal.dtype == torch.float32
        and on_gpu(signal)
    ):
        from infty.memory.kernels import grid as kernel

        return kernel.grid(
            times, weight, signal, start, end, x, basis.on(x.device)[1], basis.each, REACH
        )
    return sample(basis, times, weight, signal) + pool(start, end, x, cells, weights)


def sample(basis: GaussianBasis, times: Tensor, weight: Tensor | None, signal: Tensor) -> Tensor:
    """weight * signal(times): [b, h, P, c] in the signal's dtype.

    times float64 [b, g, P], g = 1 or h, in order along P; weight [b, P] or None; signal: coefficients [b, h, N, c].
    Gradients reach the signal, and the times and weights where they need them (a learned contraction).
    """
    width = band_of(basis.size, basis.each)
    if width is not None and not (
        times.requires_grad or (weight is not None and weight.requires_grad)
    ):
        band = banded(basis, times, width, signal.dtype)
        return bands.multiply(
            band if weight is None else Band(band.first, _weighted(band.entries, weight)), signal
        )
    psi = basis.evaluate(times, signal.dtype)
    return heads_apart(psi if weight is None else _weighted(psi, weight), signal)


def _weighted(psi: Tensor, weight: Tensor) -> Tensor:
    """psi [b, g, P, n], its rows times weight [b, P]."""
    return psi * weight.to(psi.dtype)[:, None, :, None]


def heads_apart(operator: Tensor, x: Tensor) -> Tensor:
    """operator [b, g, P, N] times x [b, h, N, c]; heads that share an operator are one wide product."""
    if operator.shape[1] == x.shape[1]:
        return torch.matmul(operator, x)
    b, h, n, c = x.shape
    wide = torch.bmm(operator[:, 0], x.transpose(1, 2).reshape(b, n, h * c))
    return wide.view(b, -1, h, c).transpose(1, 2)


def band_of(size: int, widths: tuple[float, ...]) -> int | None:
    """How many consecutive functions of a basis lie within REACH widths of any point; None: too many for a band."""
    count = size // len(widths)  # of centers
    band = (math.floor(2 * REACH * max(widths) * max(count - 1, 1)) + 1) * len(widths)
    return band if band * BAND_GAIN <= size else None


def touched(cells: int, tokens: int) -> int:
    """How many cells a token touches at most, when `tokens` of them fill all of [0, 1]."""
    return min(cells, math.ceil(cells / tokens) + 1)


def banded(basis: GaussianBasis, times: Tensor, width: int, dtype: torch.dtype) -> Band:
    """The band of psi(times [b, g, P]), `width` functions wide."""
    each = len(basis.each)
    count = basis.size // each  # of centers
    near = torch.ceil(times * (count - 1) - REACH * max(basis.each) * (count - 1)).long()
    first = near.clamp(0, count - width // each) * each
    centers, widths = placement(basis.size, basis.each, times.device)
    index = first.unsqueeze(-1) + torch.arange(width, device=times.device)
    spread = widths[:width]  # the same at every center
    z = ((times.unsqueeze(-1) - centers[index]) / spread).to(dtype)
    return Band(first, torch.exp(-0.5 * z * z) / (spread * math.sqrt(2 * math.pi)).to(dtype))


def pool(
    start: Tensor, end: Tensor, x: Tensor, cells: int, weights: Tensor | None = None
) -> Tensor:
    """Averages over `cells` even cells of [0, 1] of the tokens x [b, h, l, c] that fill (start, end] evenly, or by
    their `weights` [b, l] > 0.

    start, end float64 [b]. Returns [b, h, cells, c]; a cell partly covered counts the rest as zero. Gradients reach x,
    and start, end and weights where they need them.
    """
    if weights is not None:
        at = edges(start, end, weights)[:, None]
        return heads_apart(_overlaps(at[..., :-1], at[..., 1:], cells).to(x.dtype)[:, None], x)
    if start.requires_grad:
        return heads_apart(coverage(start, end, x.shape[2], cells).to(x.dtype)[:, None], x)
    tokens = x.shape[2]
    step = (end - start)[:, None] / tokens
    left = start[:, None] + step * torch.arange(tokens, device=x.device, dtype=torch.float64)
    reach = touched(cells, tokens)
    first = (left * cells).floor().long().clamp(0, cells - reach)
    lower = (first.unsqueeze(-1) + torch.arange(reach, device=x.device)).double() / cells
    left, right = left.unsqueeze(-1), (left + step).unsqueeze(-1)
    overlap = torch.minimum(right, lower + 1 / cells) - torch.maximum(left, lower)
    band = Band(first[:, None], (overlap * cells).clamp(min=0).to(x.dtype)[:, None])
    return bands.multiply_transposed(band, x, cells)


def coverage(start: Tensor, end: Tensor, tokens: int, cells: int) -> Tensor:
    """How much of each cell each token covers: [b, cells, tokens], for tokens that fill (start, end] evenly."""
    step = (end - start)[:, None, None] / tokens
    left = start[:, None, None] + step * torch.arange(tokens, device=step.device, dtype=step.dtype)
    return _overlaps(left, left + step, cells)


def _overlaps(left: Tensor, right: Tensor, cells: int) -> Tensor:
    """How much of each cell each token from left to right, [b, 1, tokens], covers: [b, cells, tokens]."""
    lower = torch.arange(cells, device=left.device, dtype=left.dtype)[:, None] / cells
    overlap = torch.minimum(right, lower + 1 / cells) - torch.maximum(left, lower)
    return (overlap * cells).clamp(min=0)


def old_cells(keep: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The part of each of `cells` even cells that the old signal in [0, keep] covers, and where it lies.

    keep [b]. Returns weight [b, cells] in [0, 1] and u [b, cells]: the middle of the covered part as a share
    of [0, keep] (1 where nothing is covered).
    """
    lower = torch.arange(cells, device=keep.device, dtype=keep.dtype) / cells
    upper = torch.minimum(lower + 1 / cells, keep[:, None])
    weight = ((upper - lower) * cells).clamp(0, 1)
    return weight, ((lower + upper) / (2 * keep[:, None].clamp(min=1e-9))).clamp(0, 1)
