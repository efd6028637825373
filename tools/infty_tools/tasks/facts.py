"""The task of remembering facts: pairs of a key and a value, told first and asked for later.

A document is a part in which facts are told, whole segments long, and a part in which they are
asked for, among filler. A fact is two tokens in a row, its key and its value; a question is the key
and its answer the value behind it. So every question is also a telling: a document that asks twice
for a fact can be answered by whoever passes facts on from question to question.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import typer

from infty.errors import UserError
from infty_tools.options import DatasetsOutput, whole
from infty_tools.tasks.base import MOST, Sample, Task, answer_row, save_words
from infty_tools.tasks.command import Samples, Seed, ValidationSamples, run

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

FIRST, REPEATED = 0, 1
"""Indices into `Facts.kinds`: whether a fact is asked for the first time."""


@dataclass(frozen=True)
class Facts(Task):
    """`told` tokens with `facts` facts, then `asked` tokens with questions from `gap` on."""

    name: ClassVar[str] = "facts"
    kinds: ClassVar[tuple[str, ...]] = ("first", "repeated")
    facts: int = 16
    told: int = 32
    asked: int = 256
    gap: int = 0
    asks: int = 16
    validation_asks: int = 16
    keys: int = 64
    values: int = 64
    fillers: int = 16

    def __post_init__(self) -> None:
        if self.facts > self.keys:
            raise UserError(
                f"--facts {self.facts}: there are only {self.keys} keys; give fewer facts or more --keys"
            )
        slots = (self.asked - self.gap) // 2
        for option, asks in (("asks", self.asks), ("validation-asks", self.validation_asks)):
            if asks > slots:
                raise UserError(
                    f"--{option} {asks}: there is room for {max(0, slots)} questions in {self.asked} "
                    f"tokens of which {self.gap} come before the first; give more --segments, or a "
                    "smaller --gap"
                )

    @property
    def longest(self) -> int:
        return self.told + self.asked + 1

    def tokenizer(self, folder: Path) -> Tokenizer:
        counts = (("key", self.keys), ("value", self.values), ("filler", self.fillers))
        return save_words([f"{name}{i}" for name, n in counts for i in range(n)], folder)

    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        first_filler, end = self.keys + self.values, self.keys + self.values + self.fillers
        ids = random.integers(first_filler, end, self.told + self.asked + 1)
        ids[-1] = end  # only a label, and of no question
        keys = random.choice(self.keys, self.facts, replace=False)
        values = self.keys + random.integers(0, self.values, self.facts)
        told = 2 * np.sort(random.choice(self.told // 2, self.facts, replace=False))
        ids[told], ids[told + 1] = keys, values

        asks = self.validation_asks if held_out else self.asks
        slots = np.sort(random.choice((self.asked - self.gap) // 2, asks, replace=False))
        places = self.told + self.gap + 2 * slots
        rounds = -(-asks // self.facts)
        wanted = np.concatenate([random.permutation(self.facts) for _ in range(rounds)])[:asks]
        ids[places], ids[places + 1] = keys[wanted], values[wanted]
        return Sample(ids, self._rows(told + 1, places + 1, wanted, len(ids)))

    @staticmethod
    def _rows(told: np.ndarray, places: np.ndarray, wanted: np.ndarray, tokens: int) -> np.ndarray:
        """Answers at `places` to questions for the facts `wanted`, whose values are at `told`."""
        last = told.copy()
        rows = []
        for place, fact in zip(places.tolist(), wanted.tolist()):
            kind = FIRST if last[fact] == told[fact] else REPEATED
            rows.append(answer_row(place, place + 1, told[fact], tokens, kind, last[fact]))
            last[fact] = place
        return np.array(rows)


def facts(
    output: DatasetsOutput,
    facts: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Facts of a document")
    ] = 16,
    segments: Annotated[
        int,
        typer.Option(
            parser=whole(1, MOST), metavar="N", help="Segments that ask, after those that tell"
        ),
    ] = 8,
    segment_length: Annotated[
        int, typer.Option(parser=whole(2, MOST), metavar="N", help="Tokens of a segment")
    ] = 32,
    told_segments: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST),
            metavar="N",
            help="Segments that tell the facts, with filler between them; left out: as few as hold them",
        ),
    ] = None,
    asks: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST),
            metavar="N",
            help="Questions of a training document; left out: one for each fact",
        ),
    ] = None,
    filler: Annotated[
        int | None,
        typer.Option(
            parser=whole(0, 99),
            metavar="PERCENT",
            help="Instead of --asks: the share of filler in the segments that ask, in training documents",
        ),
    ] = None,
    validation_asks: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST),
            metavar="N",
            help="Questions of a held-out document; left out: one for each fact",
        ),
    ] = None,
    gap: Annotated[
        int,
        typer.Option(
            parser=whole(0, MOST),
            metavar="N",
            help="Tokens of filler before the first question: the least age of a fact",
        ),
    ] = 0,
    keys: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Keys to draw from")
    ] = 64,
    values: Annotated[
        int, typer.Option(parser=whole(2, 10**6), metavar="N", help="Values to draw from")
    ] = 64,
    fillers: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Kinds of filler tokens")
    ] = 16,
    samples: Samples = 8000,
    validation_samples: ValidationSamples = 160,
    seed: Seed = 0,
) -> None:
    """Facts told in the first segments of a document, and asked for in the later ones.

    A fact is a key and a value, two tokens; a question is the key, its answer the value. Only the
    answers count for loss and accuracy. A fact that is asked for again has been told again by the
    first answer: held-out documents ask once for each fact unless told otherwise, and `infty
    evaluate` counts first and repeated questions apart, and all by age.

    Examples:

      infty task facts --output data/facts --facts 16 --segments 8 --segment-length 32 --filler 50

      infty task facts --output data/facts-32 --segments 32 --gap 512
    """
    if asks is not None and filler is not None:
        raise UserError("--asks and --filler say the same in two ways: give one")
    told, asked = _lengths(facts, told_segments, segments, segment_length)
    if filler is not None:
        asks = max(1, round((1 - filler / 100) * ((asked - gap) // 2)))
    task = Facts(
        facts=facts,
        told=told,
        asked=asked,
        gap=gap,
        asks=facts if asks is None else asks,
        validation_asks=facts if validation_asks is None else validation_asks,
        keys=keys,
        values=values,
        fillers=fillers,
    )
    run(task, output, samples, validation_samples, seed)


def _lengths(facts: int, told_segments: int | None, segments: int, L: int) -> tuple[int, int]:
    """Tokens of the part that tells and of the part that asks. Raises UserError."""
    least = -(-2 * facts // L)
    if told_segments is not None and told_segments < least:
        raise UserError(
            f"--told-segments {told_segments}: {facts} facts have {2 * facts} tokens; give {least} or "
            f"more segments of {L}"
        )
    told, asked = (told_segments or least) * L, segments * L
    if told + asked > MOST:
        raise UserError(f"a document would have {told + asked:,} tokens; {MOST:,} is the most")
    return told, asked
