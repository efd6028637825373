"""Lanes: endless readings of whole documents, side by side, that never wait for each other.

`LaneSchedule` decides, from the documents' lengths alone, what every lane of the run reads in every segment. It is a
small simulation that every rank carries whole, so all ranks agree without a word on the order and on who reads what.
`LaneReader` fetches the tokens of the lanes a rank owns; every rank knows how many tokens of a step count in all lanes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infty.data.documents import Documents
from infty.errors import UserError


@dataclass(frozen=True)
class Piece:
    """What one lane reads in one segment."""

    document: int
    """Index of the document; -1: nothing (the lane has run dry, single pass only)."""
    start: int
    """First input token."""
    count: int
    """Predictions: inputs start..start+count-1, labels one further."""
    reset: bool
    """Whether the document begins here."""


def usable_documents(lengths: Sequence[int] | np.ndarray) -> int:
    """How many documents give a prediction: those of two tokens or more. Of more lanes than that, the others begin with
    a copy of a document that another lane reads, at the same time or nearly so."""
    return int((np.asarray(lengths) >= 2).sum())


NOTHING = Piece(-1, 0, 0, True)


@dataclass
class _Cursor:
    document: int = -1
    position: int = 0


class LaneSchedule:
    """Deals documents to lanes: the lane that finishes first takes the next document, ties by lane id.

    The order of an epoch is a permutation drawn from (seed, epoch); every document of an epoch is dealt exactly once
    before the next begins. A document of n tokens gives n-1 predictions; it starts at a segment boundary and its last
    segment is padded.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        lanes: int,
        segment_length: int,
        seed: int = 0,
        *,
        single_pass: bool = False,
    ) -> None:
        if lanes < 1 or segment_length < 1:
            raise UserError(
                f"there are {lanes} lanes and segments of {segment_length} tokens: both must be 1 or more"
            )
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.usable = np.flatnonzero(self.lengths >= 2)
        if len(self.usable) == 0:
            raise UserError(
                "the dataset has no document of two tokens or more: nothing to learn from"
            )
        self.segment_length, self.seed, self.single_pass = segment_length, seed, single_pass
        self.cursors = [_Cursor() for _ in range(lanes)]
        self.epoch, self.index = 0, 0
        self.returned: list[
            int
        ] = []  # unfinished documents of lanes that were retired, to be read from their start
        self.predictions = self.padding = 0
        self._order = self._permutation(0)

    @property
    def lanes(self) -> int:
        return len(self.cursors)

    def advance(self, segments: int) -> list[list[Piece]]:
        """What every lane reads in the next `segments` segments: [lane][segment]."""
        window: list[list[Piece]] = [[] for _ in self.cursors]
        for _ in range(segments):
            for lane, cursor in enumerate(self.cursors):
                window[lane].append(self._step(cursor))
        return window

    @property
    def exhausted(self) -> bool:
        """Single pass only: nothing is left to read in any lane."""
        dealt = self.index == len(self._order) and not self.returned
        return self.single_pass and dealt and all(c.document < 0 for c in self.cursors)

    @property
    def finished(self) -> int:
        """Documents that were read to their end, in all epochs."""
        dealt = self.epoch * len(self.usable) + self.index - len(self.returned)
        return dealt - sum(cursor.document >= 0 for cursor in self.cursors)

    @property
    def progress(self) -> float:
        """How far the lanes are in their documents, from 0 to 1: a mean over those that stand in one."""
        places = [c.position / self.lengths[c.document] for c in self.cursors if c.document >= 0]
        return float(np.mean(places)) if places else 1.0

    @property
    def padding_share(self) -> float:
        """Share of all tokens read so far that only pad the last segments of documents."""
        return self.padding / max(1, self.padding + self.predictions)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here, as plain JSON values; lanes by their id."""
        return {
            "lanes": {
                str(i): {"document": c.document, "position": c.position}
                for i, c in enumerate(self.cursors)
            },
            "epoch": self.epoch,
            "index": self.index,
            "returned": list(self.returned),
            "seed": self.seed,
            "segment_length": self.segment_length,
            "documents": len(self.lengths),
            "predictions": self.predictions,
            "padding": self.padding,
        }

    def restore(self, state: dict[str, Any]) -> list[int]:
        """Go on from a saved `state`, perhaps with another number of lanes.

        Lanes that both have are kept. Lanes that are new take the next documents. The unfinished documents of lanes
        that are retired go back to the head of the queue and are read again from their start. Returns the ids of the
        lanes that were kept. Raises UserError when the state belongs to other data.
        """
        if state["documents"] != len(self.lengths):
            raise UserError(
                f"the saved position belongs to a dataset with {state['documents']} documents, this one "
                f"has {len(self.lengths)}: resume with the dataset the run began with"
            )
        if state["segment_length"] != self.segment_length:
            raise UserError(
                f"the saved position counts segments of {state['segment_length']} tokens, the config has "
                f"model.segment_length {self.segment_length}"
            )
        self.seed, self.epoch, self.index = state["seed"], state["epoch"], state["index"]
        self.predictions, self.padding = state["predictions"], state["padding"]
        self._order = self._permutation(self.epoch)
        saved = {int(k): v for k, v in state["lanes"].items()}
        self.returned = list(state["returned"])
        self.returned += [
            v["document"]
            for k, v in sorted(saved.items())
            if k >= self.lanes and v["document"] >= 0
        ]
        kept = [i for i in range(self.lanes) if i in saved]
        self.cursors = [
            _Cursor(saved[i]["document"], saved[i]["position"]) if i in saved else _Cursor()
            for i in range(self.lanes)
        ]
        return kept

    def _step(self, cursor: _Cursor) -> Piece:
        if cursor.document < 0:
            cursor.document, cursor.position = self._next_document(), 0
            if cursor.document < 0:
                self.padding += self.segment_length
                return NOTHING
        left = int(self.lengths[cursor.document]) - 1 - cursor.position
        count = min(left, self.segment_length)
        piece = Piece(cursor.document, cursor.position, count, cursor.position == 0)
        self.predictions += piece.count
        self.padding += self.segment_length - piece.count
        cursor.position += piece.count
        if left <= self.segment_length:
            cursor.document = -1
        return piece

    def _next_document(self) -> int:
        if self.returned:
            return self.returned.pop(0)
        if self.index == len(self._order):
            if self.single_pass:
                return -1
            self.epoch, self.index = self.epoch + 1, 0
            self._order = self._permutation(self.epoch)
        self.index += 1
        return int(self._order[self.index - 1])

    def _permutation(self, epoch: int) -> np.ndarray:
        if self.single_pass:  # the longest first, so that lanes end close together
            return self.usable[np.argsort(-self.lengths[self.usable], kind="stable")]
        return np.random.default_rng([self.seed, epoch]).permutation(self.usable)


@dataclass(frozen=True)
class Window:
    """One training window of this rank's lanes (b of them)."""

    tokens: torch.Tensor
    """int64 [b, S, L]; padding is 0."""
    labels: torch.Tensor
    """int64 [b, S, L]: the token after each."""
    weights: torch.Tensor
    """float32 [b, S, L]: 1 where a prediction counts, 0 on padding and where a document is only read."""
    reset: torch.Tensor
    """bool [b, S]: segments that begin a document."""
    document: torch.Tensor
    """int64 [b, S]: index of the document; -1 where there is none."""
    tokens_in_step: int
    """Predictions that count in this window over all lanes of the run, not only this rank's."""

    def select(self, lanes: slice) -> Window:
        """Some of the lanes: a micro-batch."""
        return Window(
            self.tokens[lanes],
            self.labels[lanes],
            self.weights[lanes],
            self.reset[lanes],
            self.document[lanes],
            self.tokens_in_step,
        )

    def to(self, device: torch.device | str) -> Window:
        """The same window on a device."""
        tensors = (self.tokens, self.labels, self.weights, self.reset, self.document)
        return Window(*(t.to(device, non_blocking=True) for t in tensors), self.tokens_in_step)


class LaneReader:
    """Fetches the tokens of the lanes one rank owns."""

    def __init__(self, documents: Documents, schedule: LaneSchedule, lanes: Sequence[int]) -> None:
        self.documents, self.schedule, self.lanes = documents, schedule, list(lanes)

    def next_window(self, segments: int) -> Window:
        """Advance all lanes by `segments` segments and read this rank's."""
        return self.read(self.schedule.advance(segments))

    def read(self, plan: list[list[Piece]]) -> Window:
        """This rank's part of a window planned for all lanes: [lane][segment]."""
        counted = self._counted(piece for lane in plan for piece in lane)
        b, segments, L = len(self.lanes), len(plan[0]), self.schedule.segment_length
        tokens, labels = (torch.zeros(b, segments, L, dtype=torch.int64) for _ in range(2))
        weights = torch.zeros(b, segments, L)
        reset = torch.zeros(b, segments, dtype=torch.bool)
        document = torch.full((b, segments), -1, dtype=torch.int64)
        for row, lane in enumerate(self.lanes):
            for s, piece in enumerate(plan[lane]):
                reset[row, s], document[row, s] = piece.reset, piece.document
                if piece.count:
                    text = torch.from_numpy(
                        self.documents.read(
                            piece.document, piece.start, piece.start + piece.count + 1
                        )
                    )
                    tokens[row, s, : piece.count], labels[row, s, : piece.count] = (
                        text[:-1],
                        text[1:],
                    )
                    weights[row, s, : piece.count] = self._weights(piece)
        return Window(tokens, labels, weights, reset, document, counted)

    def _counted(self, pieces: Iterable[Piece]) -> int:
        """How many of the predictions of all pieces count (see `infty.data.answers`)."""
        read = [p for p in pieces if p.count]
        first = np.array([p.start + 1 for p in read], dtype=np.int64)  # of the labels
        count = np.array([p.count for p in read], dtype=np.int64)
        document = np.array([p.document for p in read], dtype=np.int64)
        return int(self.documents.counted.count(document, first, first + count).sum())

    def _weights(self, piece: Piece) -> torch.Tensor:
        """bool [count]: which predictions of a piece count."""
        first = piece.start + 1
        return torch.from_numpy(
            self.documents.counted.mask(piece.document, first, first + piece.count)
        )


def single_pass(
    documents: Documents, total_lanes: int, lanes: Sequence[int], segment_length: int
) -> LaneReader:
    """Every document exactly once, for evaluation: lanes that run dry read nothing, with weight 0.

    Every rank reads windows until `reader.schedule.exhausted`, so all make the same number.
    """
    schedule = LaneSchedule(documents.lengths, total_lanes, segment_length, single_pass=True)
    return LaneReader(documents, schedule, lanes)
