"""Products with matrices that have a few consecutive entries in each row: what a write does to signals.

A narrow basis function touches few samples, and a token few cells. Samples and tokens lie in order on [0, 1], so that
no row begins before the one above it: the transposed product needs no sorting, and adds up in the same order on every
device and every time, without atomic operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class Band:
    """A matrix of P rows for each lane, and each group of heads (g is 1, or the number of heads)."""

    first: Tensor
    """int64 [b, g, P]: the column of each row's first entry; never falls from row to row."""
    entries: Tensor
    """[b, g, P, k]: the entries of columns first to first + k - 1. No gradient reaches them."""


def multiply(band: Band, x: Tensor) -> Tensor:
    """The matrix times x [b, h, n, c]: [b, h, P, c]. The band must lie in the n columns."""
    return _Product.apply(band.first, band.entries, x, None)


def multiply_transposed(band: Band, x: Tensor, columns: int) -> Tensor:
    """The transposed matrix times x [b, h, P, c]: [b, h, columns, c]. The band must lie in these columns."""
    return _Product.apply(band.first, band.entries, x, columns)


class _Product(torch.autograd.Function):
    """Each direction is the other's gradient."""

    @staticmethod
    def forward(ctx, first: Tensor, entries: Tensor, x: Tensor, columns: int | None) -> Tensor:
        ctx.save_for_backward(first, entries)
        ctx.columns = x.shape[2] if columns is None else None
        return (
            _plain(first, entries, x)
            if columns is None
            else _transposed(first, entries, x, columns)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[None, None, Tensor, None]:
        first, entries = ctx.saved_tensors
        if ctx.columns is None:
            return None, None, _plain(first, entries, grad), None
        return None, None, _transposed(first, entries, grad, ctx.columns), None


def _plain(first: Tensor, entries: Tensor, x: Tensor) -> Tensor:
    (b, h, n, c), (P, k) = x.shape, entries.shape[-2:]
    index = (first.expand(b, h, P) + _offsets(x, n)).unsqueeze(-1) + torch.arange(
        k, device=x.device
    )
    return F.embedding_bag(
        index.view(-1, k),
        x.reshape(-1, c),
        mode="sum",
        per_sample_weights=entries.expand(b, h, P, k).reshape(-1, k),
    ).view(b, h, P, c)


def _transposed(first: Tensor, entries: Tensor, x: Tensor, columns: int) -> Tensor:
    """A column's entries lie in consecutive rows [low, high): all columns' entries one after the other, in bags."""
    (b, h, P, c), k = x.shape, entries.shape[-1]
    column = torch.arange(columns, device=x.device).expand(*first.shape[:2], columns)
    low = torch.searchsorted(first, column - (k - 1))
    counts = torch.searchsorted(first, column.contiguous(), right=True) - low
    ends = counts.cumsum(-1)
    starts = ends - counts
    entry = torch.arange(P * k, device=x.device).expand(*first.shape[:2], P * k)
    of = torch.searchsorted(
        ends, entry.contiguous(), right=True
    )  # the column that each entry belongs to
    row = (low - starts).gather(-1, of) + entry
    weights = entries.flatten(2).gather(-1, row * k + of - first.gather(-1, row))
    return F.embedding_bag(
        (row + _offsets(x, P)).view(-1),
        x.reshape(-1, c),
        (starts + _offsets(x, P * k)).view(-1),
        mode="sum",
        per_sample_weights=weights.expand(b, h, P * k).reshape(-1),
    ).view(b, h, columns, c)


def _offsets(x: Tensor, step: int) -> Tensor:
    """Where each lane's and head's rows begin when all are one table: int64 [b, h, 1]."""
    return torch.arange(len(x) * x.shape[1], device=x.device).view(len(x), x.shape[1], 1) * step
