"""What a task is: documents with answers, every one drawn from random numbers of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    import tokenizers

    from infty.data.tokenizer import Tokenizer

MOST = 100_000_000
"""Tokens of a document, and documents: more is a slip of the keyboard."""


@dataclass(frozen=True)
class Sample:
    """One document of a task."""

    ids: np.ndarray
    """int64 [tokens]. A model reads all but the last, which is only a label."""
    answers: np.ndarray
    """int64 [answers, 5]: the columns of `infty.data.answers` after the document."""


class Task(ABC):
    """Makes documents. A subclass is a frozen dataclass whose fields are its options."""

    name: ClassVar[str]
    disjoint: ClassVar[bool] = False
    """Whether `draw` itself never gives a document for both sets; otherwise a digest of the tokens
    says to which set a document belongs, and one that belongs to the other is drawn again."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of questions, which the answers' last column counts."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Tokens of the longest document, about."""

    @abstractmethod
    def tokenizer(self, folder: Path) -> Tokenizer:
        """Write the tokenizer into a folder and load it."""

    @abstractmethod
    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        """Document number `index` of a set, if `random` is used for nothing else. Raises UserError."""

    def check(self) -> None:  # noqa: B027  (most have nothing to look at)
        """Raise UserError for options that leave no document, before anything is written."""

    def options(self) -> dict[str, Any]:
        """What decides, with the seed, what is made; JSON values."""
        return asdict(self)  # type: ignore[call-overload]


def answer_row(start: int, end: int, told: int, tokens: int, kind: int, last: int) -> list[int]:
    """A row for the answer at start..end-1 of `tokens` tokens, told at `told` and last at `last`."""
    return [start, end, 1000 * told // tokens, start - last, kind]


def save_words(words: list[str], folder: Path, split: str = "whitespace") -> Tokenizer:
    """A tokenizer whose tokens are these words and `</s>`, in this order; saved and loaded.

    `split`: what parts words, `whitespace` alone or `punctuation` too.
    """
    from infty.data.tokenizer import HUGGING_FACE, Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    word_tokenizer(words, split).save(str(folder / HUGGING_FACE))
    loaded = Tokenizer.load(folder)
    loaded.check_end()
    return loaded


def word_tokenizer(words: list[str], split: str = "whitespace") -> tokenizers.Tokenizer:
    """As `save_words`, in memory."""
    import tokenizers

    model = tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(words)}, unk_token=words[0]
    )
    made = tokenizers.Tokenizer(model)
    splitters = {
        "whitespace": tokenizers.pre_tokenizers.WhitespaceSplit,
        "punctuation": tokenizers.pre_tokenizers.Whitespace,
    }
    made.pre_tokenizer = splitters[split]()
    made.add_special_tokens(["</s>"])  # no word of the vocabulary: no text gives it
    return made
