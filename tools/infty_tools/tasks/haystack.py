"""Documents of an exact length: sentences that are told among prose, questions, and answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infty.errors import UserError
from infty_tools.tasks.page import Page
from infty_tools.tasks.prose import Prose

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

SPARE = 16
"""Tokens of prose beyond what should suffice: a page's tokens are a few fewer than its parts'."""
WIDER = (1.0, 1.2, 1.6, 2.5)
"""How much prose is taken, as shares of a document, until it suffices."""


@dataclass(frozen=True)
class Layout:
    """What a document consists of, beside its prose."""

    before: str
    """Its beginning."""
    told: list[Callable[[Page], tuple[int, int]]]
    """Each appends something that is told; returns its marks, the first and the last."""
    places: np.ndarray
    """float64 [told]: how much of the prose comes before each, 0 to 1; not needed without prose."""
    ask: Callable[[Page], list[int]]
    """Appends questions and answers; returns the answers' marks."""


@dataclass(frozen=True)
class Document:
    """A layout's tokens."""

    ids: np.ndarray
    """int64 [tokens], closed by the end token."""
    told: list[tuple[int, int]]
    """For each thing told, its first token, and that of the last time."""
    answers: list[tuple[int, int]]
    """Tokens start..end-1 of each answer."""


def check_length(layouts: list[Layout], tokenizer: Tokenizer, length: int) -> None:
    """Raise UserError when `length` tokens do not hold documents like these, and some prose."""
    fixed = max(len(without_prose(layout, tokenizer).ids) for layout in layouts)
    needed = fixed + max(SPARE, fixed // 16)  # others may be a little longer
    if length < needed:
        raise UserError(_too_short(length, fixed, needed))


def _too_short(length: int, fixed: int, needed: int) -> str:
    return f"--length {length}: what is told and asked alone has {fixed:,} tokens; give {needed:,} or more"


def without_prose(layout: Layout, tokenizer: Tokenizer) -> Document:
    """The document that tells one thing after another and then asks. Raises UserError."""
    page = Page()
    page.add(layout.before)
    told = [put(page) for put in layout.told]
    answers = layout.ask(page)
    return _document(page.encode(tokenizer), told, answers)


def in_prose(
    layout: Layout,
    prose: Prose,
    length: int,
    random: np.random.Generator,
    held_out: bool,
    avoid: re.Pattern[str],
) -> Document:
    """The document with prose in it, `length` tokens and the end token. Raises UserError.

    No sentence of the prose holds what `avoid` finds.
    """
    fixed = len(without_prose(layout, prose.tokenizer).ids)
    if fixed + SPARE > length:
        raise UserError(_too_short(length, fixed, fixed + SPARE))
    for wider in WIDER:
        tokens = round(wider * (length - fixed)) + 8 * SPARE
        sentences = prose.sentences(random, held_out, tokens, avoid)
        made = _laid_out(layout, sentences, length - fixed + SPARE, prose.tokenizer, length)
        if made is not None:
            return made
    raise UserError("--text has too few sentences for documents of --length: give more")


def _laid_out(
    layout: Layout, sentences: list[str], wanted: int, tokenizer: Tokenizer, length: int
) -> Document | None:
    """The document, with `wanted` tokens of prose before some are left out; None: too little."""
    _, ends = tokenizer.encode_with_ends("".join(sentences))
    borders = np.cumsum([len(sentence) for sentence in sentences])
    counts = np.searchsorted(ends, borders, side="right")  # tokens up to each sentence's end
    if not len(counts) or counts[-1] < wanted:
        return None
    used = int(np.searchsorted(counts, wanted)) + 1
    before = np.searchsorted(counts[:used], layout.places * counts[used - 1])
    page = Page()
    page.add(layout.before)
    told: dict[int, tuple[int, int]] = {}
    order = np.argsort(before, kind="stable").tolist()
    for number in range(used + 1):
        while order and before[order[0]] <= number:
            told[order[0]] = layout.told[order[0]](page)
            order.pop(0)
        if number < used:
            page.fill(sentences[number])
    answers = layout.ask(page)
    encoded = page.encode(tokenizer, length)
    if encoded is None:
        return None
    return _document(encoded, [told[i] for i in range(len(told))], answers)


def _document(
    encoded: tuple[np.ndarray, np.ndarray], told: list[tuple[int, int]], answers: list[int]
) -> Document:
    ids, where = encoded
    return Document(
        ids,
        [(int(where[first, 0]), int(where[last, 0])) for first, last in told],
        [(int(where[mark, 0]), int(where[mark, 1])) for mark in answers],
    )
