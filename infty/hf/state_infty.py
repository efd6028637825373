"""What the parts of a layer carry from piece to piece: its attention and each of its memories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infty.hf.pieces_infty import Piece
from infty.tree import Tree, fresh, reset

NOTHING = Tree({})


class OnDevices:
    """What accelerate asks of a layer's arguments when layers are spread over devices."""

    def map(self, f: Callable[[Tensor], Tensor]) -> Any:
        """Apply f to every tensor."""
        raise NotImplementedError

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Any:
        """The same on another device."""
        return self.map(lambda x: x.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class PartState(OnDevices):
    """The state of one part of a layer. Rows of the batch are dimension 0 of every tensor."""

    fields: Tree
    """What is declared of `kept` (`infty.tree.Field`)."""
    kept: Tree
    """What changes only where a segment ends."""
    segment: Tree = NOTHING
    """What is held of the segment that is being read, a place for each of its tokens in dimension
    2; w of them, of the row that is furthest. Empty before its first token."""
    made: Tree = NOTHING
    """What was made of `kept` for reading, or nothing."""

    @classmethod
    def begin(cls, fields: Tree, rows: int, device: torch.device) -> PartState:
        """Of rows that have read nothing."""
        return cls(fields, fresh(fields, rows, device))

    def map(self, f: Callable[[Tensor], Tensor]) -> PartState:
        """Apply f to every tensor."""
        return replace(
            self, kept=self.kept.map(f), segment=self.segment.map(f), made=self.made.map(f)
        )

    def keep(self, **kept: Any) -> PartState:
        """Some of `kept` exchanged; what was made of it is forgotten."""
        return replace(self, kept=self.kept.replace(**kept), made=NOTHING)

    def make(self, **made: Tensor) -> PartState:
        """With what was made of `kept` for reading."""
        return replace(self, made=Tree(made))

    def extend(self, piece: Piece, **new: Tensor) -> PartState:
        """The segment so far with a piece's tokens [b, x, t, ...] after it, each row at its own
        place."""
        longer = {name: piece.extend(self.held(name), x) for name, x in new.items()}
        return replace(self, segment=self.segment.replace(**longer))

    def held(self, name: str) -> Tensor | None:
        """[b, x, w, ...] of the segment so far; None before its first token."""
        return dict(self.segment).get(name)

    def end_segment(self, piece: Piece) -> PartState:
        """Nothing held of segments that are complete."""
        return replace(self, segment=_first(self.segment, piece.rest))

    def start_document(self, rows: Tensor, held: int) -> PartState:
        """Nothing read in the rows in `rows` (bool [b]), which begin a new document; the others as
        they were.

        held: tokens of the segment so far, of the row that is then furthest.
        """

        def cleared(x: Tensor) -> Tensor:
            where = rows.to(x.device).view(-1, *[1] * (x.dim() - 1))
            return torch.where(where, 0, x)

        return replace(
            self,
            kept=reset(self.kept, self.fields, rows),
            made=NOTHING,
            segment=_first(self.segment, held).map(cleared),
        )


def _first(segment: Tree, tokens: int) -> Tree:
    return segment.map(lambda x: x[:, :, :tokens]) if tokens else NOTHING


@dataclass(frozen=True)
class InftyLayerState(OnDevices):
    """One layer's short-term memory and memories, and what they have of the segment being read."""

    attention: PartState
    memories: dict[str, PartState]
    """By their names in the config."""

    def map(self, f: Callable[[Tensor], Tensor]) -> InftyLayerState:
        """Apply f to every tensor."""
        return self._each(lambda part: part.map(f))

    def start_document(self, rows: Tensor, held: int) -> InftyLayerState:
        """See `PartState.start_document`."""
        return self._each(lambda part: part.start_document(rows, held))

    def end_segment(self, piece: Piece) -> InftyLayerState:
        """See `PartState.end_segment`."""
        return self._each(lambda part: part.end_segment(piece))

    def with_memories(self, donor: InftyLayerState) -> InftyLayerState:
        """This short-term memory with the donor's memories."""
        return InftyLayerState(self.attention, donor.memories)

    def _each(self, f: Callable[[PartState], PartState]) -> InftyLayerState:
        return InftyLayerState(
            f(self.attention), {name: f(part) for name, part in self.memories.items()}
        )


__all__ = ["InftyLayerState", "PartState"]
