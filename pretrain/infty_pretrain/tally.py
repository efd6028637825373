"""What an evaluation adds up: losses by document, for intervals, and by place in the document, for curves."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infty.data.lanes import Window
from infty.parallel import groups

FIRST = 64
"""Tokens of a document in the first bin of a curve; each bin after it ends twice as far."""
BINS = 24
RESAMPLES = 2000
"""Of the documents, for an interval."""
LARGEST_EXPONENT = 700.0
"""Of a perplexity: e to this is about the largest float."""


class Tally:
    """Sums over the tokens that count, float64; every rank adds its own, `reduce` adds up the ranks'."""

    def __init__(self, documents: int, device: str) -> None:
        self.by_document = torch.zeros(documents, 2, dtype=torch.float64, device=device)
        """[documents, 2]: nll and tokens."""
        self.by_place = torch.zeros(BINS, 2, dtype=torch.float64, device=device)

    def add(self, window: Window, nll: Tensor, seen: Tensor) -> None:
        """nll float32 [b, S, L] of a window's tokens; seen int64 [b, S]: segments of the document before each."""
        weights = window.weights.double()
        both = torch.stack([nll.double() * weights, weights], -1)  # [b, S, L, 2]
        there = window.document >= 0
        self.by_document.index_add_(0, window.document[there], both.sum(2)[there])
        L = nll.shape[2]
        place = seen[..., None] * L + torch.arange(L, device=nll.device)
        bins = torch.log2(place.double() / FIRST).floor().long().add(1).clamp(0, BINS - 1)
        self.by_place.index_add_(0, bins.flatten(), both.flatten(0, 2))

    def reduce(self) -> None:
        """Add up what all data-parallel ranks have."""
        dist.all_reduce(self.by_document, group=groups.data_group())
        dist.all_reduce(self.by_place, group=groups.data_group())

    def curve(self) -> list[dict[str, Any]]:
        """nll by place in the document, in bins from..to (exclusive) that double; bins without tokens are left out."""
        rows = []
        for i, (nll, tokens) in enumerate(self.by_place.tolist()):
            if tokens:
                start = 0 if i == 0 else FIRST * 2 ** (i - 1)
                rows.append(
                    {"from": start, "to": FIRST * 2**i, "tokens": int(tokens), "nll": nll / tokens}
                )
        return rows

    def interval(self) -> tuple[float, float] | None:
        """A 95 % interval of the perplexity: a bootstrap over documents. None with fewer than two, or where a
        perplexity is too large for a float."""
        read = self.by_document[self.by_document[:, 1] > 0].cpu()
        if len(read) < 2:
            return None
        g = torch.Generator().manual_seed(0)
        drawn = read[torch.randint(len(read), (RESAMPLES, len(read)), generator=g)].sum(1)
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = torch.quantile(drawn[:, 0] / drawn[:, 1], ends).tolist()
        return (math.exp(low), math.exp(high)) if high < LARGEST_EXPONENT else None
