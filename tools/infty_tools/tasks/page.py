"""Text under construction, and the tokens of marked parts of it, at an exact length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from infty.errors import UserError

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer


@dataclass
class Page:
    """A document's text, part by part."""

    parts: list[str] = field(default_factory=list)
    marks: list[tuple[int, int]] = field(default_factory=list)
    """Characters start..end-1 of what is to be found again."""
    prose: list[tuple[int, int]] = field(default_factory=list)
    """Characters of the stretches of prose, of which some may be left out."""
    length: int = 0

    def add(self, text: str) -> None:
        """Append a text."""
        self.parts.append(text)
        self.length += len(text)

    def mark(self, text: str) -> int:
        """Append a text and remember where it is; returns the mark's number."""
        self.marks.append((self.length, self.length + len(text)))
        self.add(text)
        return len(self.marks) - 1

    def fill(self, text: str) -> None:
        """Append prose."""
        if self.prose and self.prose[-1][1] == self.length:
            self.prose[-1] = (self.prose[-1][0], self.length + len(text))
        else:
            self.prose.append((self.length, self.length + len(text)))
        self.add(text)

    def encode(
        self, tokenizer: Tokenizer, tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The ids, int64, closed by the end token; and the tokens of the marks, int64 [marks, 2].

        With `tokens`, as many before the end token: what is too much is left out of the longest
        stretches of prose, from their start. None when the page is too short. Raises UserError.
        """
        ids, ends = tokenizer.encode_with_ends("".join(self.parts))
        places = _token_ranges(ends, self.marks)
        if tokens is not None and len(ids) < tokens:
            return None
        if tokens is not None:
            kept = _kept(len(ids), _token_ranges(ends, self.prose), tokens)
            ids = ids[kept]
            places = np.concatenate([[0], np.cumsum(kept)])[places]
        return np.append(ids, tokenizer.eos_id), places


def _kept(count: int, prose: np.ndarray, tokens: int) -> np.ndarray:
    """bool [count]: which of a page's tokens stay, so that there are `tokens`. Raises UserError."""
    kept = np.ones(count, dtype=bool)
    spare = count - tokens
    for start, end in sorted(prose.tolist(), key=lambda r: r[0] - r[1]):
        # Not the first: a tokenizer may have marked the beginning of a text by it.
        cut = min(spare, end - start - 1)
        kept[start + 1 : start + 1 + cut] = False
        spare -= cut
    if spare:
        raise UserError(
            f"a document has {tokens + spare:,} tokens without its prose: give a larger --length"
        )
    return kept


def _token_ranges(ends: np.ndarray, characters: list[tuple[int, int]]) -> np.ndarray:
    """int64 [ranges, 2]: the tokens that hold each range of characters, whose ends are given."""
    ranges = np.array(characters, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, ranges[:, 0], side="right")
    last = np.searchsorted(ends, ranges[:, 1], side="left")
    return np.stack([first, last + 1], 1)
