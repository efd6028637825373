"""How text of any length, and rows that stand at different places, become pieces that end where a segment ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 4096
"""Tokens of all rows that go through the model at once, where they are whole segments."""
_FAR = 2**62  # beyond every token


@dataclass(frozen=True)
class Piece:
    """Tokens that go through the model at once: of each row at most the rest of its segment. Tensors are int64 [b]."""

    tokens: int
    """Columns t; rows with fewer tokens are filled up with what does not count."""
    fill: Tensor
    """Tokens of the row's segment before the piece."""
    segments: Tensor
    """Segments of the row's document before this one."""
    complete: Tensor
    """bool [b]: the row's segment ends with the piece."""
    even: bool
    """All rows stand at the same place and get t tokens."""
    width: int
    """Tokens of the segment after the piece, of the row that is furthest."""
    rest: int
    """The same, once complete segments have been put away."""
    ends: bool
    """Whether any row's segment ends."""
    begins: Tensor | None = None
    """bool [b]: rows that begin a document with the piece; None: no row does."""
    held: int = 0
    """Tokens of the segment before the piece, of the row that is furthest."""
    several: int = 1
    """Whole segments of every row, one after the other; or one segment, or a part of it."""

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Piece:
        """The same on another device: what accelerate asks of a layer's arguments when layers are spread out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Piece(
            **{
                name: x.to(device, non_blocking=non_blocking) if isinstance(x, Tensor) else x
                for name, x in values.items()
            }
        )

    def one_by_one(self) -> list[tuple[Piece, slice]]:
        """The segments of the piece, in order, and their columns."""
        t = self.tokens // self.several
        found = []
        for s in range(self.several):
            one = replace(self, tokens=t, segments=self.segments + s, several=1)
            found.append((one, slice(s * t, (s + 1) * t)))
        return found

    def side_by_side(self) -> Piece:
        """The segments of the piece as rows of one segment each: b * S rows, a text's one after the other."""
        if self.several == 1:
            return self
        numbers = torch.arange(self.several, device=self.fill.device)
        return replace(
            self,
            tokens=self.tokens // self.several,
            fill=self.fill.repeat_interleave(self.several),
            segments=(self.segments[:, None] + numbers).flatten(),
            complete=self.complete.repeat_interleave(self.several),
            several=1,
        )

    def places(self) -> Tensor:
        """int64 [b, t]: where each token stands, counted from the first token of the piece's first segment."""
        return self.fill[:, None] + torch.arange(self.tokens, device=self.fill.device)

    def extend(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The segment so far [b, x, w, ...] with the piece [b, x, t, ...] after it, each row at its own place."""
        if old is None:
            old = new[:, :, :0]
        old = old.to(new.dtype)  # a cache may go on in another precision
        if self.even:
            return torch.cat([old, new], 2)
        slot = torch.arange(self.width, device=new.device)
        source = (slot - self.fill[:, None]).clamp(0, self.tokens - 1)
        index = source.view(len(new), 1, -1, *[1] * (new.dim() - 3))
        moved = new.gather(2, index.expand(-1, new.shape[1], -1, *new.shape[3:]))
        padded = torch.cat(
            [old, old.new_zeros(*old.shape[:2], self.width - old.shape[2], *old.shape[3:])], 2
        )
        return where(slot < self.fill[:, None], padded, moved, dimensions=(0, 2))

    def where_complete(self, new: Tensor, old: Tensor) -> Tensor:
        return new if self.even else where(self.complete, new, old, dimensions=(0,))


def where(condition: Tensor, x: Tensor, y: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    """torch.where with the condition's dimensions being these ones of x and y."""
    shape = [x.shape[i] if i in dimensions else 1 for i in range(x.dim())]
    return torch.where(condition.reshape(shape), x, y)


class Borders:
    """Where documents begin among a row's tokens."""

    def __init__(self, starts: Tensor | None, rows: int) -> None:
        """starts bool [b, T]; None: nowhere."""
        self.starts = torch.zeros(rows, 1, dtype=torch.bool) if starts is None else starts
        self.columns = self.starts.shape[1]
        here = torch.where(self.starts, torch.arange(self.columns), _FAR)
        nearest = here.flip(1).cummin(1).values.flip(1)  # at or after each token
        self.following = F.pad(nearest[:, 1:], (0, 1), value=_FAR)

    def at(self, place: Tensor) -> Tensor:
        """bool [b]: whether a document begins with each row's token number `place` (int64 [b])."""
        found = self.starts.gather(1, place.clamp(max=self.columns - 1)[:, None])[:, 0]
        return found & (place < self.columns)

    def after(self, place: Tensor) -> Tensor:
        """int64 [b]: the next token that begins a document, after `place`; a very large number if none does."""
        return self.following.gather(1, place.clamp(max=self.columns - 1)[:, None])[:, 0]


class Reading:
    """Cuts columns of input into pieces, and keeps count of where each row stands; all on the host."""

    def __init__(
        self, segment_length: int, fill: Tensor | None, segments: Tensor | None, rows: int
    ) -> None:
        self.segment_length = segment_length
        self.fill = torch.zeros(rows, dtype=torch.int64) if fill is None else fill
        self.segments = torch.zeros(rows, dtype=torch.int64) if segments is None else segments
        self.source: Tensor | None = None

    def pieces(
        self, mask: Tensor | None, starts: Tensor | None, columns: int, device: torch.device
    ) -> Iterator[tuple[Tensor | slice, Piece]]:
        """Pieces and the columns they come from, int64 [b, t] or the same slice for all rows.

        mask bool [b, T]: which columns hold a token of each row; None: all. starts bool [b, T]: which tokens begin a
        document; None: none. Both on the host.
        """
        if mask is None and starts is None and bool((self.fill == self.fill[0]).all()):
            yield from self._even_pieces(columns, device)
            return
        mask = torch.ones(len(self.fill), columns, dtype=torch.bool) if mask is None else mask
        order = (~mask).long().argsort(dim=1, stable=True)
        left = mask.sum(1)
        done = torch.zeros_like(left)
        borders = Borders(None if starts is None else (starts & mask).gather(1, order), len(order))
        self.source = torch.full_like(order, -1)
        read = 0
        while bool((left > 0).any()):
            begins = borders.at(done) & (left > 0)
            self.fill = torch.where(begins, 0, self.fill)
            self.segments = torch.where(begins, 0, self.segments)
            counts = torch.minimum(self.segment_length - self.fill, left)
            counts = torch.minimum(counts, borders.after(done) - done)
            i = torch.arange(int(counts.max()))
            where = order.gather(1, (done[:, None] + i).clamp(max=columns - 1))
            row, column = (i < counts[:, None]).nonzero(as_tuple=True)
            self.source[row, where[row, column]] = read + column
            done = done + counts
            left = left - counts
            read += len(i)
            yield where.to(device), self._piece(counts, device, begins)

    def _even_pieces(self, columns: int, device: torch.device) -> Iterator[tuple[slice, Piece]]:
        """Pieces of rows that all stand at the same place and have a token in every column."""
        first, most = 0, max(1, AT_ONCE // (len(self.fill) * self.segment_length))
        while first < columns:
            fill, left = int(self.fill[0]), columns - first
            several = 1 if fill else max(1, min(left // self.segment_length, most))
            count = min(several * self.segment_length - fill, left)
            piece = self._piece(torch.full_like(self.fill, count), device, several=several)
            yield slice(first, first + count), piece
            first += count

    def _piece(
        self,
        counts: Tensor,
        device: torch.device,
        begins: Tensor | None = None,
        several: int = 1,
    ) -> Piece:
        """The piece that takes `counts` [b] tokens of each row, whose place moves on; or `several` whole segments."""
        after = self.fill + counts // several
        complete = after == self.segment_length
        rest = torch.where(complete, 0, after)
        even = bool((self.fill == self.fill[0]).all() and (counts == counts[0]).all())
        some = begins is not None and bool(begins.any())
        piece = Piece(
            tokens=int(counts.max()),
            fill=self.fill.to(device),
            segments=self.segments.to(device),
            complete=complete.to(device),
            even=even,
            width=int(after.max()),
            rest=int(rest.max()),
            ends=bool(complete.any()),
            begins=begins.to(device) if some else None,
            held=int(self.fill.max()),
            several=several,
        )
        self.fill = rest
        self.segments = self.segments + several * complete
        return piece

    def in_columns(self, pieces: list[Tensor], x: Tensor) -> Tensor:
        """The pieces' outputs [b, t, e] in the columns of the input x [b, T, e], zero where there is no token."""
        if not pieces:
            return torch.zeros_like(x)
        y = torch.cat(pieces, 1)
        if self.source is None:
            return y
        source = self.source.to(y.device)[..., None]
        return torch.where(source < 0, 0.0, y.take_along_dim(source.clamp(min=0), 1))


__all__ = ["Piece", "Reading"]
