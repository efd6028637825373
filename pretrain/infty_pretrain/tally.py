"""What an evaluation adds up: losses by document and by position in the document."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infty.data.lanes import Window
from infty.parallel import groups
from infty_pretrain import bootstrap

FIRST = 64
"""Tokens of a document in the first bin of a curve; each bin after it ends twice as far."""
BINS = 24
LARGEST_EXPONENT = 700.0
"""Of a perplexity: e to this is about the largest float."""


def positions(seen: Tensor, L: int) -> Tensor:
    """int64 [b, S, L]: where in its document each input token stands; seen int64 [b, S]: segments before each."""
    return seen[..., None] * L + torch.arange(L, device=seen.device)


def bins_of(position: Tensor) -> Tensor:
    """The bin of a curve that each position lies in."""
    return torch.log2(position.double() / FIRST).floor().long().add(1).clamp(0, BINS - 1)


def borders(index: int) -> tuple[int, int]:
    """First position of a bin, and of the next."""
    return (0 if index == 0 else FIRST * 2 ** (index - 1)), FIRST * 2**index


class Tally:
    """Sums over the tokens that count, float64; every rank adds its own, `reduce` adds up the ranks'."""

    def __init__(self, documents: int, device: str) -> None:
        self.sums = torch.zeros(documents, BINS, 3, dtype=torch.float64, device=device)
        """[documents, BINS, 3]: nll, tokens, and tokens that were the most likely one."""

    def add(self, window: Window, nll: Tensor, correct: Tensor, seen: Tensor) -> None:
        """nll float32 and correct bool [b, S, L] of a window's tokens; seen int64 [b, S]: segments of the document
        before each."""
        weights = window.weights.double()
        values = torch.stack([nll.double() * weights, weights, correct * weights], -1)
        row = window.document.clamp(min=0)[..., None] * BINS + bins_of(
            positions(seen, nll.shape[2])
        )
        there = (window.document >= 0)[..., None].expand_as(row)
        self.sums.view(-1, 3).index_add_(0, row[there], values[there])

    def reduce(self) -> None:
        """Add up what all data-parallel ranks have, and keep it on the host."""
        dist.all_reduce(self.sums, group=groups.data_group())
        self.sums = self.sums.cpu()

    @property
    def by_document(self) -> Tensor:
        """[documents, 3]: sums over the positions."""
        return self.sums.sum(1)

    @property
    def read(self) -> Tensor:
        """bool [documents]: those of which any token counted."""
        return self.by_document[:, 1] > 0

    def curve(self) -> list[dict[str, Any]]:
        """nll by position in the document, in bins from..to (exclusive) that double; bins without tokens are left out.

        `interval`, of the nll, where two documents or more reach the bin.
        """
        sums = self.sums[self.read]
        total = sums.sum(0)
        drawn = bootstrap.resampled(sums.flatten(1)).unflatten(1, (BINS, 3))
        rows = []
        for i in total[:, 1].nonzero().flatten().tolist():
            start, end = borders(i)
            documents = int((sums[:, i, 1] > 0).sum())
            nll, tokens, _ = total[i].tolist()
            row = {"from": start, "to": end, "tokens": int(tokens), "documents": documents}
            row["nll"] = nll / tokens
            found = bootstrap.interval(drawn[:, i, 0] / drawn[:, i, 1]) if documents > 1 else None
            rows.append(row if found is None else row | {"interval": list(found)})
        return rows

    def perplexity(self, units: Tensor) -> dict[str, Any]:
        """Perplexity per unit, and its `interval` where two documents or more were read.

        units float64 [documents]: how many units (tokens, words, bytes) each document has. A perplexity that no float
        can hold says nothing that the nll does not say: it is left out.
        """
        sums = torch.stack([self.by_document[:, 0], units.double()], -1)[self.read]
        nll, count = sums.sum(0).tolist()
        if not count or nll / count >= LARGEST_EXPONENT:
            return {}
        found = {"perplexity": math.exp(nll / count)}
        if len(sums) < 2:
            return found
        drawn = bootstrap.resampled(sums)
        ends = bootstrap.interval(drawn[:, 0] / drawn[:, 1])
        if ends is None or ends[1] >= LARGEST_EXPONENT:
            return found
        return found | {"interval": [math.exp(end) for end in ends]}
