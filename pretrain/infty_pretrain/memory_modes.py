"""How a model may be read to see what its memory is worth: on, off, emptied, or another document's.

Everything goes through `Remembers` of `infty_pretrain.evaluation`: no mode knows a kind of memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infty.data.documents import Documents
from infty.data.lanes import Window
from infty.errors import UserError
from infty.models.lm import segments_seen
from infty_pretrain.evaluation import Reads, Remembers

MODES = {
    "on": "as it was trained",
    "off": "nothing is written to or read from the long-term memory",
    "emptied": "every segment is read as if its document began there",
    "other": "the long-term memory is that of a reading of other documents",
}
"""The modes by name, and what each means."""


def reading(model: Remembers, mode: str, documents: Documents) -> Reads:
    """The model as it reads in a mode. Raises UserError where the documents do not allow it."""
    if mode == "on":
        return model
    if mode == "off":
        return Off(model)
    return Emptied(model) if mode == "emptied" else Other(model, documents)


class _Mode:
    def __init__(self, model: Remembers) -> None:
        self.model = model
        self.segment_length, self.window_segments = model.segment_length, model.window_segments
        self.device = model.device

    def begin(self, lanes: int) -> Any:
        return self.model.begin(lanes)


class Off(_Mode):
    """Without the long-term memory; the short-term memory stays. The weights are those of a model that had one, and
    have leaned on it: this is not what a model trained without a memory would do."""

    def read(self, window: Window, state: Any) -> tuple[Tensor, Tensor, Any]:
        return self.model.read(window, state, enabled=False)


class Emptied(_Mode):
    """Every segment begins a document: it finds an empty long-term memory and an empty short-term memory."""

    def read(self, window: Window, state: Any) -> tuple[Tensor, Tensor, Any]:
        return self.model.read(replace(window, reset=torch.ones_like(window.reset)), state)


@dataclass(frozen=True)
class _Borrowing:
    own: Any
    donor: Any
    segments: Tensor
    """int64 [b]: how many segments of its document each lane has read."""


class Other(_Mode):
    """Every segment finds the long-term memory of a donor: a reading of other documents, as long as its own so far.

    The donor of document i reads i+1, i+2, ... as if they were one book, and again from the front, but never i. So
    figures depend on no number of lanes, and a memory is lent to whom has read as many segments.
    """

    def __init__(self, model: Remembers, documents: Documents) -> None:
        super().__init__(model)
        if len(documents) < 2 or not (documents.lengths.sum() > documents.lengths).all():
            raise UserError(
                f"{documents.folder} has no second document whose memory could be lent: leave 'other' out of --memory"
            )
        self._documents = documents
        self._ends = np.cumsum(documents.lengths)

    def begin(self, lanes: int) -> _Borrowing:
        segments = torch.zeros(lanes, dtype=torch.int64, device=self.device)
        return _Borrowing(self.model.begin(lanes), self.model.begin(lanes), segments)

    def read(self, window: Window, state: _Borrowing) -> tuple[Tensor, Tensor, _Borrowing]:
        seen = segments_seen(state.segments, window.reset)
        own, donor = state.own, state.donor
        read = []
        for s in range(window.reset.shape[1]):
            part = _segment(window, s)
            nll, correct, own = self.model.read(part, self.model.lend(own, donor))
            _, _, donor = self.model.read(self._donors(part, seen[:, s]), donor)
            read.append((nll, correct))
        nll, correct = (torch.cat(parts, 1) for parts in zip(*read))
        return nll, correct, _Borrowing(own, donor, seen[:, -1] + 1)

    def _donors(self, part: Window, seen: Tensor) -> Window:
        """What the donors read while the lanes read `part`, a window of one segment."""
        tokens = torch.zeros_like(part.tokens)
        for lane, document in enumerate(part.document[:, 0].tolist()):
            if document >= 0:
                start = int(seen[lane]) * self.segment_length
                text = self.text(document, start, self.segment_length)
                tokens[lane, 0] = torch.from_numpy(text)
        return replace(part, tokens=tokens, labels=tokens, weights=torch.zeros_like(part.weights))

    def text(self, document: int, start: int, count: int) -> np.ndarray:
        """int64 [count]: what the donor of a document reads from its token `start` on."""
        length = int(self._documents.lengths[document])
        everything = int(self._ends[-1])
        first = int(self._ends[document])  # where the next document begins, in all of them in a row
        parts = []
        while count:
            at = (first + start % (everything - length)) % everything
            which = int(np.searchsorted(self._ends, at, side="right"))
            inside = at - int(self._ends[which] - self._documents.lengths[which])
            take = min(count, int(self._documents.lengths[which]) - inside)
            parts.append(self._documents.read(which, inside, inside + take))
            start += take
            count -= take
        return np.concatenate(parts)


def _segment(window: Window, s: int) -> Window:
    """One segment of a window, as a window."""
    names = ("tokens", "labels", "weights", "reset", "document")
    return replace(window, **{name: getattr(window, name)[:, s : s + 1] for name in names})
