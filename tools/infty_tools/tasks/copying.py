"""The task of reading a passage of a book once more: its words are known to whoever remembers it.

A document is a stretch of one book, and behind it passages of the same stretch again. The first
tokens of a passage, its cue, say which it is, since they come nowhere else; the others count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import typer

from infty.errors import UserError
from infty_tools.options import DatasetsOutput, listed, several, whole
from infty_tools.tasks.base import MOST, Sample, Task, answer_row
from infty_tools.tasks.command import Samples, Seed, Text, TokenizerOption, ValidationSamples, run
from infty_tools.tasks.prose import Prose, open_prose

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

MOST_TRIES = 100
"""Stretches of books, until the passages of one have cues of their own."""


@dataclass(frozen=True)
class Copy(Task):
    """`lengths` tokens, the last `passages` * `passage` of which were there before."""

    name: ClassVar[str] = "copy"
    kinds: ClassVar[tuple[str, ...]] = ("passage",)
    disjoint: ClassVar[bool] = True  # the prose is
    prose: Prose = field(repr=False)
    lengths: tuple[int, ...] = (4096,)
    passage: int = 64
    cue: int = 16
    passages: int = 1
    after: tuple[int, ...] | None = None
    """Tokens from a passage's beginning to its repetition's; None: any."""

    def __post_init__(self) -> None:
        if self.cue >= self.passage:
            raise UserError(
                f"--cue {self.cue}: a passage has {self.passage} tokens, and some must be left to be "
                "answered; give a smaller --cue or a longer --passage"
            )
        for length in self.lengths:
            if length < 2 * self.passages * self.passage:
                raise UserError(
                    f"--length {length}: {self.passages} passage(s) of {self.passage} tokens, told and "
                    f"repeated, need {2 * self.passages * self.passage}; give more"
                )
        for after in self.after or ():
            least = self.passages * self.passage
            most = min(self.lengths) - least
            if not least <= after <= most:
                raise UserError(
                    f"--after {after}: a passage can be repeated {least:,} to {most:,} tokens after its "
                    "beginning in documents of these lengths"
                )

    @property
    def longest(self) -> int:
        return max(self.lengths) + 1

    def options(self) -> dict[str, Any]:
        names = ("lengths", "passage", "cue", "passages", "after")
        prose = {"text": self.prose.fingerprint, "tokenizer": self.prose.tokenizer.fingerprint}
        return {name: getattr(self, name) for name in names} | prose

    def tokenizer(self, folder: Path) -> Tokenizer:
        self.prose.tokenizer.save(folder)
        return self.prose.tokenizer

    def check(self) -> None:
        told = max(self.lengths) - self.passages * self.passage
        for held_out in (False, True):
            self.prose.ids(np.random.default_rng(0), held_out, told)

    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        length = self.lengths[index % len(self.lengths)]
        after = None
        if self.after is not None:
            after = self.after[index // len(self.lengths) % len(self.after)]
        told = length - self.passages * self.passage
        for _ in range(MOST_TRIES):
            stretch = self.prose.ids(random, held_out, told)
            starts = self._starts(random, told, after)
            passages = [stretch[start : start + self.passage] for start in starts]
            ids = np.concatenate([stretch, *passages, [self.prose.tokenizer.eos_id]])
            repeated = told + self.passage * np.arange(self.passages)
            if all(
                _places(ids, ids[place : place + self.cue]) == [start, place]
                for start, place in zip(starts, repeated.tolist())
            ):
                return Sample(ids, self._rows(starts, repeated.tolist(), len(ids)))
        raise UserError(
            f"almost no passage of --text begins with {self.cue} tokens that occur nowhere else in its "
            "document: give a longer --cue or other texts"
        )

    def _starts(self, random: np.random.Generator, told: int, after: int | None) -> list[int]:
        """Where the passages begin in the stretch, in the order of their repetitions."""
        if after is not None:  # all as far behind: one after another, as they are repeated
            return [told - after + i * self.passage for i in range(self.passages)]
        spare = told - self.passages * self.passage
        gaps = np.sort(random.integers(0, spare + 1, self.passages))
        starts = gaps + self.passage * np.arange(self.passages)
        return random.permutation(starts).tolist()

    def _rows(self, starts: list[int], repeated: list[int], tokens: int) -> np.ndarray:
        rows = []
        for start, place in zip(starts, repeated):
            told = start + self.cue
            first = place + self.cue
            rows.append(answer_row(first, place + self.passage, told, tokens, 0, told))
        return np.array(rows)


def _places(ids: np.ndarray, cue: np.ndarray) -> list[int]:
    """Where some tokens stand in a row."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(cue))
    candidates = np.flatnonzero(windows[:, 0] == cue[0])
    return candidates[(windows[candidates] == cue).all(1)].tolist()


def copy(
    output: DatasetsOutput,
    text: Text,
    tokenizer: TokenizerOption = None,
    length: Annotated[
        str,
        typer.Option(
            parser=several(whole(4, MOST)),
            metavar="NUMBERS",
            help="Length of a document in tokens; several separated by commas",
        ),
    ] = "4096",
    passage: Annotated[
        int, typer.Option(parser=whole(2, MOST), metavar="N", help="Tokens of a passage")
    ] = 64,
    cue: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST),
            metavar="N",
            help="Its first tokens, which are given and do not count",
        ),
    ] = 16,
    passages: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Passages that are repeated")
    ] = 1,
    after: Annotated[
        str | None,
        typer.Option(
            parser=several(whole(1, MOST)),
            metavar="NUMBERS",
            help="Tokens from the beginning of a passage to that of its repetition; left out: any",
        ),
    ] = None,
    samples: Samples = 2000,
    validation_samples: ValidationSamples = 160,
    seed: Seed = 0,
) -> None:
    """A stretch of a book, and passages of it again at its end.

    Only the repeated tokens behind a passage's cue count for loss and accuracy. Documents cycle
    through the lengths, then through --after.

    Example:

      infty task copy --output data/copy --text data/books --length 4096 --after 512,1024,2048
    """
    task = Copy(
        open_prose(text, tokenizer),
        lengths=tuple(map(int, listed(length))),
        passage=passage,
        cue=cue,
        passages=passages,
        after=None if after is None else tuple(map(int, listed(after))),
    )
    run(task, output, samples, validation_samples, seed)
