"""What was found, in plain values for JSON: of each model, and of each model beside the first."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infty.data.documents import Documents
from infty_pretrain import bootstrap, evaluation
from infty_pretrain.tally import BINS, LARGEST_EXPONENT, Tally, borders
from infty_tools.evaluate.answers import AnswerTally

NO_MEMORY = "none"
"""The mode of a model that has no long-term memory."""


@dataclass
class Result:
    """One model's readings of the documents, by mode of its memory."""

    path: Path
    name: str
    """What tables and plots call it: no two are called alike."""
    description: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    answers: dict[str, AnswerTally] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The mode in which it stands beside other models: as it was trained, where that was asked for."""
        return "on" if "on" in self.tallies else next(iter(self.tallies))

    def figures(self, documents: Documents, text_bytes: Tensor | None) -> dict[str, Any]:
        """Plain values; see `infty_pretrain.evaluation.figures` and `AnswerTally.figures`."""
        modes = {}
        for mode, tally in self.tallies.items():
            modes[mode] = evaluation.figures(tally, documents, text_bytes)
            modes[mode]["by_document"] = _each(tally)
            if mode in self.answers:
                modes[mode]["answers"] = self.answers[mode].figures()
        return {
            "model": str(self.path),
            "name": self.name,
            "what": self.description,
            "memory": modes,
        }


def _each(tally: Tally) -> list[dict[str, Any]]:
    """Of every document that was read: its number, tokens that counted, and nats a token."""
    sums = tally.by_document.tolist()
    return [
        {"document": i, "tokens": int(tokens), "nll": nll / tokens}
        for i, (nll, tokens, _) in enumerate(sums)
        if tokens
    ]


def compared(first: Result, other: Result) -> dict[str, Any]:
    """`other` beside `first`, each in its main mode: `ratio` of perplexities, other ÷ first, whole and by position, and
    the difference of the shares of right answers, other - first. `interval` of each is 95 % of a paired bootstrap: in
    every resample both have read the same documents."""
    one, two = first.tallies[first.main], other.tallies[other.main]
    read = one.read
    both = torch.stack([one.sums[read], two.sums[read]], 1)  # [documents, 2, BINS, 3]
    found: dict[str, Any] = {
        "model": other.name,
        "memory": other.main,
        "beside": first.name,
        "beside_memory": first.main,
    }
    found |= _ratio(both.sum(2))
    rows = []
    for i in range(BINS):
        there = both[:, :, i]
        if there[..., 1].sum():
            start, end = borders(i)
            rows.append({"from": start, "to": end} | _ratio(there))
    found["by_position"] = rows
    if first.main in first.answers and other.main in other.answers:
        found["answers"] = _difference(first.answers[first.main], other.answers[other.main])
    return found


def _ratio(both: Tensor) -> dict[str, Any]:
    """both [documents, 2, 3]: sums of the first and of the other model."""
    both = both[both[:, 0, 1] > 0]
    if len(both) < 2:
        return _exponential(_logarithm(both.sum(0)[None]).item(), None)
    drawn = bootstrap.resampled(both.flatten(1)).unflatten(1, (2, 3))
    return _exponential(_logarithm(both.sum(0)[None]).item(), bootstrap.interval(_logarithm(drawn)))


def _logarithm(sums: Tensor) -> Tensor:
    """[n, 2, 3] -> [n]: nats a token of the other model less those of the first."""
    nll = sums[..., 0] / sums[..., 1]
    return nll[:, 1] - nll[:, 0]


def _exponential(value: float, ends: tuple[float, float] | None) -> dict[str, Any]:
    largest = max(abs(x) for x in (value, *(ends or ())))
    if not largest < LARGEST_EXPONENT:  # also where it is no number
        return {}
    found: dict[str, Any] = {"ratio": math.exp(value)}
    return found if ends is None else found | {"interval": [math.exp(x) for x in ends]}


def _difference(one: AnswerTally, two: AnswerTally) -> dict[str, Any]:
    both = torch.cat([one.by_document, two.by_document], 1)  # [documents, 4]
    both = both[both[:, 1] > 0]
    if not len(both):
        return {}
    shares = both.sum(0)
    found: dict[str, Any] = {"difference": (shares[2] / shares[3] - shares[0] / shares[1]).item()}
    if len(both) > 1:
        drawn = bootstrap.resampled(both)
        ends = bootstrap.interval(drawn[:, 2] / drawn[:, 3] - drawn[:, 0] / drawn[:, 1])
        if ends is not None:
            found["interval"] = list(ends)
    return found
