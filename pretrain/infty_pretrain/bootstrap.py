"""Confidence intervals: a bootstrap over documents, the same draws for every model that read them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
AT_ONCE = 2**22
"""Draws that are held in memory."""


def resampled(sums: Tensor) -> Tensor:
    """Sums over documents that are drawn with replacement: float64 [documents, n] -> [RESAMPLES, n].

    The draws depend on the number of documents alone. So two models that have read the same
    documents are compared pair by pair: resample i holds the same documents for both.
    """
    return torch.cat([drawn @ sums for drawn in _draws(len(sums))])


def _draws(documents: int) -> Iterator[Tensor]:
    """How often each document is drawn: float64 [some, documents], RESAMPLES rows in all."""
    generator = torch.Generator().manual_seed(0)
    most = max(1, AT_ONCE // documents)
    for first in range(0, RESAMPLES, most):
        rows = min(most, RESAMPLES - first)
        chosen = torch.randint(documents, (rows, documents), generator=generator)
        counts = torch.zeros(rows, documents, dtype=torch.float64)
        yield counts.scatter_add_(1, chosen, torch.ones_like(counts))


def interval(values: Tensor) -> tuple[float, float] | None:
    """The middle LEVEL of resampled values [RESAMPLES]; those that are no number are left out.

    None where none is left: every resample missed the few documents that have a value.
    """
    values = values[~values.isnan()]
    if not len(values):
        return None
    tail = (1 - LEVEL) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=values.dtype)
    low, high = torch.quantile(values, ends).tolist()
    return low, high
