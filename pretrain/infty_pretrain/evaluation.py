"""Perplexity of held-out documents. Never touches training state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, Window, single_pass
from infty.errors import UserError
from infty.models.lm import InftyLM, segments_seen, with_memories
from infty.parallel import groups
from infty.tree import Tree
from infty_pretrain.tally import Tally


class Reads(Protocol):
    """What an evaluation asks of a model, whoever made it."""

    segment_length: int
    window_segments: int
    """Segments that it is given at once."""
    device: str

    def begin(self, lanes: int) -> Any:
        """The state of lanes that have read nothing."""

    def read(self, window: Window, state: Any) -> tuple[Tensor, Tensor, Any]:
        """Read a window: every token's nll, float32 [b, S, L]; whether the most likely token is the label, bool
        [b, S, L]; and the new state, which replaces the one given."""


class Remembers(Reads, Protocol):
    """A model with memories that can be switched off and exchanged."""

    def read(self, window: Window, state: Any, enabled: bool = True) -> tuple[Tensor, Tensor, Any]:
        """`enabled=False`: nothing is remembered."""

    def lend(self, own: Any, donor: Any) -> Any:
        """The lanes of `own` with the long-term memories of `donor`'s; both have read as many segments."""


class Trained:
    """A model of this program, whatever runs its forward pass: DeepSpeed's engine or the model itself."""

    def __init__(
        self, model: InftyLM, window_segments: int, device: str, forward: Callable | None = None
    ) -> None:
        self.segment_length = model.config.segment_length
        self.window_segments, self.device = window_segments, device
        self._model, self._forward = model, forward or model

    def begin(self, lanes: int) -> Tree:
        return self._model.initial_state(lanes, self.device)

    def read(
        self, window: Window, state: Tree, enabled: bool = True
    ) -> tuple[Tensor, Tensor, Tree]:
        _, out = self._forward(
            window.tokens,
            window.reset,
            state,
            labels=window.labels,
            weights=window.weights,
            memory_enabled=enabled,
        )
        return out.token_nll, out.token_correct, out.state

    def lend(self, own: Tree, donor: Tree) -> Tree:
        return with_memories(own, donor)


class Watches(Protocol):
    """What else may be added up of a reading."""

    def add(self, window: Window, correct: Tensor, seen: Tensor) -> None:
        """See `Tally.add`."""

    def reduce(self) -> None:
        """See `Tally.reduce`."""


@torch.no_grad()
def evaluate(
    model: Reads,
    documents: Documents,
    *,
    lanes: int,
    windows: int | None = None,
    beside: Watches | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tally:
    """Read every document once from its start (or only the first `windows` windows of each lane).

    `lanes` is a number for the whole run, shared out evenly over data-parallel ranks (rounded up; a lane without a
    document reads nothing with weight 0, so every rank does the same passes). Only tokens that count are added up; the
    memory that this takes does not depend on the documents' lengths. `progress` is told the tokens read, and of how
    many. Raises UserError when no token counts.
    """
    share = -(-lanes // groups.data_size())
    mine = range(groups.data_rank() * share, (groups.data_rank() + 1) * share)
    reader = single_pass(documents, share * groups.data_size(), mine, model.segment_length)
    state = model.begin(share)
    segments = torch.zeros(share, dtype=torch.int64, device=model.device)
    tally = Tally(len(documents), model.device)
    total = int((documents.lengths - 1).clip(0).sum())
    passes = 0
    while not reader.schedule.exhausted and (windows is None or passes < windows):
        window = reader.next_window(model.window_segments).to(model.device)
        nll, correct, state = model.read(window, state)
        seen = segments_seen(segments, window.reset)
        segments = seen[:, -1] + 1
        tally.add(window, nll, correct, seen)
        if beside is not None:
            beside.add(window, correct, seen)
        passes += 1
        if progress is not None:
            progress(reader.schedule.predictions, total)
    tally.reduce()
    if beside is not None:
        beside.reduce()
    if not bool(tally.read.any()):
        raise UserError("nothing was evaluated: no token of the dataset counts")
    return tally


def figures(tally: Tally, documents: Documents, text_bytes: Tensor | None = None) -> dict[str, Any]:
    """nll (nats a token), perplexity, accuracy (share of tokens that were the most likely one, given the true ones
    before), tokens and documents; `interval`, 95 % of the perplexity, over documents; and `by_position`, the nll by
    position in the document. Where whole texts were predicted, also the perplexity per word (total nll / words, as
    PG19's is given) and, with the documents' bytes (float64 [documents]), per byte.
    """
    sums = tally.by_document
    nll, tokens, correct = sums.sum(0).tolist()
    found: dict[str, Any] = {
        "documents": int(tally.read.sum()),
        "tokens": int(tokens),
        "nll": nll / tokens,
        "accuracy": correct / tokens,
    }
    found |= tally.perplexity(sums[:, 1])
    if int(tokens) == int((documents.lengths - 1).clip(0).sum()):
        words = words_of(documents)
        for unit, counts in (("word", words), ("byte", text_bytes)):
            if counts is not None and counts.sum():
                found[f"{unit}s"] = int(counts.sum())
                each = tally.perplexity(counts)
                found |= {f"{unit}_{name}": value for name, value in each.items()}
    return found | {"by_position": tally.curve()}


def words_of(documents: Documents) -> Tensor | None:
    """float64 [documents]: words of each; None where the dataset does not count them."""
    counts = documents.info.word_counts
    return torch.tensor(counts, dtype=torch.float64) if counts else None


def replay(
    forward: Callable[..., tuple],
    state: Any,
    reader: LaneReader,
    window_segments: int,
    device: str,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Rebuild the memories of lanes that stand in the middle of a document: read it again from its start.

    Lanes that stand further back begin later, so that all arrive together; every rank makes the same passes. Returns
    the state.
    """
    from infty.data.lanes import NOTHING, Piece

    schedule = reader.schedule
    L = schedule.segment_length
    behind = [c.position // L if c.document >= 0 else 0 for c in schedule.cursors]
    longest = max(behind, default=0)
    longest = -(-longest // window_segments) * window_segments
    plans = []
    for cursor, n in zip(schedule.cursors, behind):
        pieces = [Piece(cursor.document, i * L, L, i == 0) for i in range(n)]
        plans.append([NOTHING] * (longest - n) + pieces)
    with torch.no_grad():
        for first in range(0, longest, window_segments):
            plan = [lane[first : first + window_segments] for lane in plans]
            window = reader.read(plan).to(device)
            if progress is not None:
                progress(first, longest)
            state = forward(
                window.tokens, window.reset, state, labels=window.labels, weights=window.weights
            )[1].state
    return state
