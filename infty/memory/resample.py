"""Putting signals on the grid of a write: samples of the old one, cell averages of the new tokens.

Each has a plain form, a matrix product that reads like the formula and is what a GPU does well, and a sparse form
for CPUs that exploits what the matrix looks like: a narrow basis function touches few samples, and a token few
cells. Which form runs depends on the device and on shapes alone, never on what other lanes hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infty.memory.basis import GaussianBasis, placement

# Functions further than this many widths from a sample are left out of the band: psi < 2e-8 of its peak.
REACH = 6.0
# A band pays when it is this many times narrower than the basis.
BAND_GAIN = 8
# Cells a token may touch for the sparse form of `pool`.
MAX_CELLS = 6


def sample(basis: GaussianBasis, times: Tensor, weight: Tensor | None, signal: Tensor) -> Tensor:
    """weight * signal(times): [b, h, P, c] in the signal's dtype.

    times float64 [b, g, P], g = 1 or h; weight [b, P] or None; signal: coefficients [b, h, N, c]. Gradients reach
    the signal, and the times and weights where they need them (a learned contraction).
    """
    band = band_of(basis)
    if signal.device.type == "cpu" and not times.requires_grad and band * BAND_GAIN <= basis.size:
        index, psi = banded(basis, times, band, signal.dtype)
        psi = psi if weight is None else psi * weight.to(psi.dtype)[:, None, :, None]
        return _Banded.apply(index, psi, signal)
    psi = basis.evaluate(times, signal.dtype)
    psi = psi if weight is None else psi * weight.to(psi.dtype)[:, None, :, None]
    return heads_apart(psi, signal)


def heads_apart(operator: Tensor, x: Tensor) -> Tensor:
    """operator [b, g, P, N] times x [b, h, N, c]; heads that share an operator are one wide product."""
    if operator.shape[1] == x.shape[1]:
        return torch.matmul(operator, x)
    b, h, n, c = x.shape
    wide = torch.bmm(operator[:, 0], x.transpose(1, 2).reshape(b, n, h * c))
    return wide.view(b, -1, h, c).transpose(1, 2)


def band_of(basis: GaussianBasis) -> int:
    """How many consecutive functions lie within REACH widths of any point."""
    places = basis.size // len(basis.each)
    return (math.floor(2 * REACH * max(basis.each) * max(places - 1, 1)) + 1) * len(basis.each)


def banded(basis: GaussianBasis, times: Tensor, band: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The band of psi(times): index of its first function int64 [..., P], and values [..., P, band]."""
    each = len(basis.each)
    places = basis.size // each
    near = torch.ceil(times * (places - 1) - REACH * max(basis.each) * (places - 1)).long()
    first = near.clamp(0, places - band // each) * each
    centers, widths = placement(basis.size, basis.each)
    index = first.unsqueeze(-1) + torch.arange(band)
    width = widths[:band]  # the same at every place
    z = ((times.unsqueeze(-1) - centers[index]) / width).to(dtype)
    return first, torch.exp(-0.5 * z * z) / (width * math.sqrt(2 * math.pi)).to(dtype)


class _Banded(torch.autograd.Function):
    """Weighted sums of a few consecutive rows: y[i] = sum_k psi[i, k] * x[first[i] + k]."""

    @staticmethod
    def forward(ctx, first: Tensor, psi: Tensor, x: Tensor) -> Tensor:
        (b, h, n, c), (samples, band) = x.shape, psi.shape[-2:]
        ctx.save_for_backward(first, psi)
        ctx.rows = n
        rows = first.expand(b, h, samples) + _offsets(b, h, n)
        index = (rows.unsqueeze(-1) + torch.arange(band)).view(-1, band)
        weights = psi.expand(b, h, samples, band).reshape(-1, band)
        return _bag(index, x.reshape(-1, c), weights).view(b, h, samples, c)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, None, Tensor]:
        first, psi = ctx.saved_tensors
        (b, h, samples, c), band, n, groups = grad.shape, psi.shape[-1], ctx.rows, first.shape[1]
        # Transposed: for each row, the samples that touch it, in order.
        touched = (first.unsqueeze(-1) + torch.arange(band)).flatten(2)
        order = touched.argsort(dim=-1, stable=True)
        starts = torch.searchsorted(touched.gather(-1, order), torch.arange(n).expand(b, groups, n).contiguous())
        weights = psi.flatten(2).gather(-1, order).expand(b, h, -1).reshape(-1)
        index = ((order // band).expand(b, h, -1) + _offsets(b, h, samples)).reshape(-1)
        starts = (starts.expand(b, h, n) + _offsets(b, h, samples * band)).reshape(-1)
        return None, None, _bag(index, grad.reshape(-1, c), weights, starts).view(b, h, n, c)


def _bag(index: Tensor, rows: Tensor, weights: Tensor, offsets: Tensor | None = None) -> Tensor:
    return torch.nn.functional.embedding_bag(index, rows.contiguous(), offsets, mode="sum",
                                             per_sample_weights=weights)


def _offsets(b: int, h: int, step: int) -> Tensor:
    return torch.arange(b * h).view(b, h, 1) * step


def pool(start: Tensor, end: Tensor, x: Tensor, cells: int) -> Tensor:
    """Averages over `cells` even cells of [0, 1] of the tokens x [b, h, l, c] that fill (start, end] evenly.

    start, end float64 [b]. Returns [b, h, cells, c]; a cell partly covered counts the rest as zero.
    """
    b, h, tokens, c = x.shape
    spread = math.ceil(cells / tokens) + 1
    if x.device.type != "cpu" or spread > MAX_CELLS:
        return heads_apart(coverage(start, end, tokens, cells).to(x.dtype)[:, None], x)
    step = (end - start)[:, None] / tokens
    left = start[:, None] + step * torch.arange(tokens, dtype=torch.float64)
    first = (left * cells).floor().long().clamp(0, cells - 1)
    out = x.new_zeros(b * h * cells, c)
    for k in range(spread):
        lower = (first + k).double() / cells
        overlap = torch.minimum(left + step, lower + 1 / cells) - torch.maximum(left, lower)
        weight = (overlap * cells).clamp(min=0).to(x.dtype)
        rows = (first + k).clamp(max=cells - 1)[:, None] + _offsets(b, h, cells)
        out = out.index_add(0, rows.view(-1), (x * weight[:, None, :, None]).reshape(-1, c))
    return out.view(b, h, cells, c)


def coverage(start: Tensor, end: Tensor, tokens: int, cells: int) -> Tensor:
    """How much of each cell each token covers: [b, cells, tokens], for tokens that fill (start, end] evenly."""
    step = (end - start)[:, None, None] / tokens
    left = start[:, None, None] + step * torch.arange(tokens, device=step.device, dtype=step.dtype)
    lower = torch.arange(cells, device=step.device, dtype=step.dtype)[:, None] / cells
    overlap = torch.minimum(left + step, lower + 1 / cells) - torch.maximum(left, lower)
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
