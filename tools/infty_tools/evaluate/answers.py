"""The share of right answers in a dataset that carries answers: by length, depth, age and kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from infty.data.answers import Answers
from infty.data.lanes import Window
from infty.parallel import groups
from infty_pretrain import bootstrap
from infty_pretrain.tally import bins_of, borders, positions

DEPTHS = 10
"""Rows of a table by depth: tenths of the document."""


class AnswerTally:
    """Counts right tokens of every answer; every rank adds its own, `reduce` adds up the ranks'.

    An answer is right when every one of its tokens was the most likely one. Answers that were not read to their end
    (a limit came before) do not count.
    """

    def __init__(self, answers: Answers, lengths: np.ndarray, device: str) -> None:
        """lengths int64 [documents]: those that are evaluated, the first of the dataset."""
        self.rows = np.asarray(answers.rows[answers.document < len(lengths)])
        self.lengths, self.kinds = lengths, answers.kinds
        # Documents in a row: every token of the dataset has a number.
        offsets = np.cumsum(lengths) - lengths
        of = offsets[self.rows[:, 0]]
        self._offsets = torch.from_numpy(offsets).to(device)
        self._starts = torch.from_numpy(of + self.rows[:, 1]).to(device)
        self._ends = torch.from_numpy(of + self.rows[:, 2]).to(device)
        self.counts = torch.zeros(len(self.rows), 2, dtype=torch.float64, device=device)
        """[answers, 2]: tokens that were right, and tokens that were read."""

    def add(self, window: Window, correct: Tensor, seen: Tensor) -> None:
        """See `infty_pretrain.tally.Tally.add`."""
        if not len(self.rows):
            return
        document = window.document.clamp(min=0)
        label = positions(seen, correct.shape[2]) + 1
        number = self._offsets[document][..., None] + label
        answer = torch.searchsorted(self._starts, number, right=True) - 1
        inside = (answer >= 0) & (number < self._ends[answer.clamp(min=0)])
        inside &= (window.document >= 0)[..., None] & (window.weights > 0)
        values = torch.stack([correct.double(), torch.ones_like(correct, dtype=torch.float64)], -1)
        self.counts.index_add_(0, answer[inside], values[inside])

    def reduce(self) -> None:
        """Add up what all data-parallel ranks have, and keep it on the host."""
        dist.all_reduce(self.counts, group=groups.data_group())
        self.counts = self.counts.cpu()

    @property
    def _judged(self) -> tuple[Tensor, Tensor]:
        """bool [answers] each: right, and read to the end."""
        length = torch.from_numpy(self.rows[:, 2] - self.rows[:, 1])
        return self.counts[:, 0] == length, self.counts[:, 1] == length

    @property
    def by_document(self) -> Tensor:
        """float64 [documents, 2]: right answers, and answers."""
        right, read = self._judged
        return self._by_document(right & read, read)

    def _by_document(self, right: Tensor, read: Tensor) -> Tensor:
        sums = torch.zeros(len(self.lengths), 2, dtype=torch.float64)
        both = torch.stack([right, read], 1).double()
        return sums.index_add_(0, torch.from_numpy(self.rows[:, 0].copy()), both)

    def figures(self) -> dict[str, Any]:
        """answers, accuracy and its interval over documents; the same by_length_and_depth, by_age and by_kind."""
        age = bins_of(torch.from_numpy(self.rows[:, 4].copy())).tolist()
        length = bins_of(torch.from_numpy(self.lengths[self.rows[:, 0]] - 1)).tolist()
        depth = (self.rows[:, 3] * DEPTHS // 1000).clip(0, DEPTHS - 1).tolist()
        found = self._share(torch.ones(len(self.rows), dtype=torch.bool))
        found["by_length_and_depth"] = [
            {"length": list(borders(n)), "depth": [d / DEPTHS, (d + 1) / DEPTHS]} | share
            for (n, d), share in self._each(list(zip(length, depth)))
        ]
        found["by_age"] = [{"age": list(borders(a))} | share for a, share in self._each(age)]
        kind = self.rows[:, 5].tolist()
        found["by_kind"] = [{"kind": self.kinds[k]} | share for k, share in self._each(kind)]
        return found

    def _each(self, keys: list[Any]) -> list[tuple[Any, dict[str, Any]]]:
        """The share of right answers for every key that occurs, in order; keys [answers]."""
        shares = []
        for key in sorted(set(keys)):
            share = self._share(torch.tensor([k == key for k in keys]))
            if share["answers"]:
                shares.append((key, share))
        return shares

    def _share(self, chosen: Tensor) -> dict[str, Any]:
        right, read = self._judged
        read = read & chosen
        sums = self._by_document(right & read, read)
        sums = sums[sums[:, 1] > 0]
        good, count = sums.sum(0).tolist()
        found: dict[str, Any] = {"answers": int(count)}
        if count:
            found["accuracy"] = good / count
        if len(sums) > 1:
            drawn = bootstrap.resampled(sums)
            ends = bootstrap.interval(drawn[:, 0] / drawn[:, 1])
            found |= {} if ends is None else {"interval": list(ends)}
        return found
