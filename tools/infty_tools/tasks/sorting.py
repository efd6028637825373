"""The task of sorting symbols by how often they came, over sequences longer than any attention.

From the ∞-former (Martins et al., ACL 2022, section 4.1): the probability of the symbols changes along the sequence, so
that a model which has forgotten the beginning sorts wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import typer

from infty.errors import UserError
from infty_tools.options import DatasetsOutput, whole
from infty_tools.tasks.base import MOST, Sample, Task, answer_row, save_words, word_tokenizer
from infty_tools.tasks.command import Samples, Seed, ValidationSamples, run

if TYPE_CHECKING:
    import tokenizers

    from infty.data.tokenizer import Tokenizer

SYMBOLS = 20
SEPARATOR = SYMBOLS
END = SYMBOLS + 1
"""Never in a sequence; a tokenizer must have one."""
LARGEST_WEIGHT = 9


@dataclass(frozen=True)
class Sorting(Task):
    """Sequences of `length` tokens, answer included."""

    name: ClassVar[str] = "sorting"
    kinds: ClassVar[tuple[str, ...]] = ("order",)
    length: int = 4096

    def __post_init__(self) -> None:
        if not 2 * SYMBOLS <= self.length <= MOST:
            raise UserError(
                f"--length {self.length}: the answer alone has {SYMBOLS} tokens; give {2 * SYMBOLS} to "
                f"{MOST:,}"
            )

    @property
    def longest(self) -> int:
        return self.length + 1

    def tokenizer(self, folder: Path) -> Tokenizer:
        return save_words(_names(), folder)

    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        symbols = (
            self.length - SYMBOLS
        )  # a document has one token more than is read: the last label
        ids = sequence(symbols, random)
        row = answer_row(symbols + 1, len(ids), told=0, tokens=len(ids), kind=0, last=0)
        return Sample(ids, np.array([row]))


def sorting(
    output: DatasetsOutput,
    length: Annotated[
        int,
        typer.Option(
            parser=whole(2 * SYMBOLS, MOST),
            metavar="N",
            help="Length of a sequence in tokens, answer included",
        ),
    ] = 4096,
    samples: Samples = 8000,
    validation_samples: ValidationSamples = 160,
    seed: Seed = 0,
) -> None:
    """Sequences to sort: 20 symbols in random order, a separator, then the symbols, most frequent first.

    Symbols are drawn from a distribution that moves evenly from one to another along the sequence; each sequence has
    two distributions of its own, with weights drawn from 1 to 9. Symbols that came equally often are sorted by number.
    Only the answer's tokens count for loss and accuracy. A length that is a multiple of the segment fills segments
    exactly.

    Example:

      infty task sorting --output data/sorting-4k --length 4096
    """
    run(Sorting(length), output, samples, validation_samples, seed)


def sequence(symbols: int, random: np.random.Generator) -> np.ndarray:
    """One document, int64 [symbols + 21]: `symbols` symbols, the separator, the 20 symbols by falling count."""
    first, last = (w / w.sum() for w in random.integers(1, LARGEST_WEIGHT + 1, (2, SYMBOLS)))
    late = random.random(symbols) < np.linspace(0, 1, symbols)
    body = np.where(
        late, random.choice(SYMBOLS, symbols, p=last), random.choice(SYMBOLS, symbols, p=first)
    )
    return np.concatenate([body, [SEPARATOR], answer(body)])


def answer(body: np.ndarray) -> np.ndarray:
    """The symbols by falling count, ties by number."""
    return np.argsort(-np.bincount(body, minlength=SYMBOLS), kind="stable")


def tokenizer() -> tokenizers.Tokenizer:
    """The task's 22 tokens. Symbols are letters, in words of one letter: `infty generate` can be asked, too."""
    return word_tokenizer(_names())


def _names() -> list[str]:
    return [chr(ord("a") + i) for i in range(SYMBOLS)] + ["[SEP]"]
