"""The texts that train a tokenizer: a share of every source, spread evenly over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from infty.data import sources
from infty.data.sources import Source

PACKED = 3
"""A packed file is taken to hold this many times its size."""
PIECE = 4096
"""Characters of a piece, at most: texts are taken in whole lines where these are short enough."""
PIECES = 32
"""A small share is still made of about this many pieces."""


def sample(train: list[Source], field: str, limit: int) -> Iterator[str]:
    """Pieces of the sources, in order: all of them if they have no more than `limit` bytes.

    Else every source contributes in proportion to its size, between half of its share and all of
    it, in evenly spaced pieces. The same sources give the same pieces. Every source is read once,
    and little more than its share is held in memory.
    """
    sizes = [_text_size(source) for source in train]
    total = sum(sizes)
    for source, size in zip(train, sizes):
        texts = (text.text for text in sources.read(source, field) if text.text is not None)
        if total <= limit:
            yield from texts
        else:
            yield from spread(texts, max(1, limit * size // total))


def _text_size(source: Source) -> int:
    """Bytes of the source's text, roughly."""
    return source.size * (PACKED if source.path.suffix.lower() in (".gz", ".zst") else 1)


def spread(texts: Iterable[str], budget: int) -> list[str]:
    """Every k-th piece of some texts, within `budget` bytes (one piece is always kept).

    k is the smallest power of two that does it. How much text there is shows only at its end, so k
    is doubled on the way.
    """
    longest = max(64, min(PIECE, budget // PIECES))
    kept: list[str] = []
    taken = 0
    step = 1
    for number, piece in enumerate(piece for text in texts for piece in _pieces(text, longest)):
        # The last of every k, not the first: a book does not begin with its own words.
        if number % step != step - 1:
            continue
        kept.append(piece)
        taken += len(piece.encode())
        while taken > budget and len(kept) > 1:
            kept = kept[1::2]
            taken = sum(len(p.encode()) for p in kept)
            step *= 2
    return kept


def _pieces(text: str, longest: int) -> Iterator[str]:
    """A text in pieces of at most `longest` characters, which end with a line where they can."""
    start = 0
    while start < len(text):
        end = start + longest
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            if line_end >= 0:
                end = line_end + 1
        yield text[start:end]
        start = end
