"""A book read in passages by an exported model, and what each token that it wrote was read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infty.data.as_read import as_read
from infty.errors import UserError
from infty_tools.look.tracing import Source, Tracer

if TYPE_CHECKING:
    from infty_tools.writer import Writer

MOST_PASSAGES = 512
"""As many as a page can show side by side; --passage may ask for more, up to LIMIT."""
LIMIT = 4096
FEWEST_TOKENS = 8


class Passages:
    """The tokens of a book in runs of `size`, and the text that each of them is."""

    def __init__(self, text: str, spans: list[tuple[int, int]], size: int) -> None:
        """spans: of each token of the book, where it stands in the text."""
        self.size, self.tokens = size, len(spans)
        self.texts: list[str] = []
        self.lines: list[int] = []
        """The line, from 1, in which each passage begins."""
        line, counted = 1, 0
        for first in range(0, len(spans), size):
            begin, end = spans[first][0], spans[min(first + size, len(spans)) - 1][1]
            line += text.count("\n", counted, begin)
            counted = max(counted, begin)
            self.texts.append(text[begin:end])
            self.lines.append(line)

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, places: Tensor) -> Tensor:
        """The passage of each token, int64 [n]; len(self) for what comes after the book."""
        return torch.where(places < self.tokens, places // self.size, len(self))


@dataclass(frozen=True)
class Look:
    """What a model wrote, and where it looked for each token of it."""

    passages: Passages
    question: str
    written: list[str]
    sources: list[Source]
    """Each with weights [H, m] of every written token; the last mark is what came after the book."""
    unmeasured: list[Source]

    def strongest(self, token: int, count: int) -> list[tuple[Source, int, int, float]]:
        """The `count` heads that read most from one passage of the book for a written token: the
        source, the head, the passage, and its weight."""
        found = []
        for source in self.sources:
            weights = source.weights[token][:, : len(self.passages)]
            where = weights.abs().argmax(1)
            for head, passage in enumerate(where.tolist()):
                found.append((source, head, passage, float(weights[head, passage])))
        return sorted(found, key=lambda row: -abs(row[3]))[:count]


def look(
    writer: Writer, book: str, question: str, size: int | None, count: int, file: Path
) -> Look:
    """Let the model read the book and then the question, and write at most `count` likeliest
    tokens. Raises UserError."""
    book, question = as_read(book), as_read(question)
    ids, spans = _encode(writer, book + question)
    of_book = [span for span in spans if span[0] < len(book)]
    if not of_book:
        raise UserError(
            f"{file} holds no token of this model's vocabulary: nothing can be looked at"
        )
    passages = Passages(book, of_book, _size(len(of_book), size))
    with Tracer(writer.model, len(passages) + 1, passages.of) as tracer:
        if ids.shape[1] > 1:
            writer.read(ids[:, :-1])
        tracer.recording = True
        writer.read(ids[:, -1:])
        tokens = list(writer.write(count, temperature=0.0, top_p=1.0))
    if not tokens:
        raise UserError(
            "the model ends the document at once: ask in another way (--ask), for it wrote nothing to look at"
        )
    written = list(_labels(writer, int(ids[0, -1]), tokens))
    return Look(passages, question, written, tracer.measured(), tracer.unmeasured())


def _encode(writer: Writer, text: str) -> tuple[Tensor, list[tuple[int, int]]]:
    """Token ids int64 [1, T], and where each token stands in the text."""
    found = writer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return torch.tensor([found["input_ids"]]), found["offset_mapping"]


def _size(tokens: int, asked: int | None) -> int:
    """Tokens in a passage. Raises UserError."""
    if asked is None:
        return max(FEWEST_TOKENS, -(-tokens // MOST_PASSAGES))
    if -(-tokens // asked) > LIMIT:
        raise UserError(
            f"--passage {asked} makes {-(-tokens // asked):,} passages of the book's {tokens:,} tokens, "
            f"and {LIMIT:,} can be told apart: give at least --passage {-(-tokens // LIMIT)}"
        )
    return asked


def _labels(writer: Writer, last: int, tokens: list[int]) -> Iterator[str]:
    """The text of each token, as it is after the one before."""
    for token in tokens:
        before = writer.tokenizer.decode([last])
        yield writer.tokenizer.decode([last, token])[len(before) :]
        last = token
