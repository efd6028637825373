"""Short stories and questions about them: the first five kinds of bAbI (Weston et al., arXiv
1502.05698), simulated here, with real prose between the sentences if it is given, as in BABILong
(Kuratov et al., arXiv 2406.10149).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import typer

from infty.errors import UserError
from infty_tools.options import DatasetsOutput, any_path, listed, one_of, several, whole
from infty_tools.tasks import worlds
from infty_tools.tasks.base import MOST, Sample, Task, answer_row, save_words
from infty_tools.tasks.command import Samples, Seed, TokenizerOption, ValidationSamples, run
from infty_tools.tasks.haystack import Layout, check_length, in_prose, without_prose
from infty_tools.tasks.page import Page
from infty_tools.tasks.prose import Prose, open_prose
from infty_tools.tasks.worlds import KINDS, Question, Story

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

NAMES = re.compile(rf"\b(?:{'|'.join(worlds.ACTORS)})\b|\bis (?:{'|'.join(worlds.OPPOSITE)}) of\b")
"""What no sentence of the prose may have."""
MOST_STORIES = 1000
"""Until one has as many questions as are to be asked."""


@dataclass(frozen=True)
class Stories(Task):
    """Stories of `statements` sentences; document i has one length, depth and kind after another."""

    name: ClassVar[str] = "stories"
    story_kinds: tuple[str, ...] = tuple(KINDS)
    statements: int = 10
    questions: int = 1
    prose: Prose | None = None
    lengths: tuple[int, ...] = ()
    depths: tuple[int, ...] | None = None
    """Per cent of the prose before the oldest sentence that the first answer needs; None: any."""

    def __post_init__(self) -> None:
        most = len(worlds.PLACES) - 1
        if "two-arguments" in self.story_kinds and self.statements > most:
            raise UserError(
                f"--statements {self.statements}: two-arguments has {most + 1} places, which {most} "
                f"sentences locate; give at most {most}, or leave the kind out with --kind"
            )

    @property
    def disjoint(self) -> bool:  # type: ignore[override]
        return self.prose is not None

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.story_kinds

    @property
    def longest(self) -> int:
        return max(self.lengths, default=12 * (self.statements + self.questions)) + 1

    def options(self) -> dict[str, Any]:
        names = ("story_kinds", "statements", "questions", "lengths", "depths")
        values = {name: getattr(self, name) for name in names}
        if self.prose is None:
            return values
        tokenizer = self.prose.tokenizer.fingerprint
        return values | {"text": self.prose.fingerprint, "tokenizer": tokenizer}

    def tokenizer(self, folder: Path) -> Tokenizer:
        if self.prose is None:
            return save_words(worlds.words(), folder, split="punctuation")
        self.prose.tokenizer.save(folder)
        return self.prose.tokenizer

    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        length = depth = None
        if self.lengths:
            length = self.lengths[index % len(self.lengths)]
            index //= len(self.lengths)
        if self.depths is not None:
            depth = self.depths[index % len(self.depths)] / 100
            index //= len(self.depths)
        kind = index % len(self.story_kinds)
        layout, asked = self._layout(random, self.story_kinds[kind], depth)
        if self.prose is None:
            made = without_prose(layout, _own_tokenizer())
        else:
            made = in_prose(layout, self.prose, length, random, held_out, NAMES)
        rows = []
        for question, (start, end) in zip(asked, made.answers, strict=True):
            told = made.told[min(question.needs)][0]
            rows.append(answer_row(start, end, told, len(made.ids), kind, told))
        return Sample(made.ids, np.array(rows))

    def check(self) -> None:
        random = np.random.default_rng(0)
        layouts = [
            self._layout(random, kind, None)[0] for kind in self.story_kinds for _ in range(4)
        ]
        if self.prose is not None:
            check_length(layouts, self.prose.tokenizer, min(self.lengths))

    def _layout(
        self, random: np.random.Generator, kind: str, depth: float | None
    ) -> tuple[Layout, list[Question]]:
        """A document without its prose, and the questions it asks."""
        story, asked = self._story(random, kind)
        places = _places(random, len(story.statements), min(asked[0].needs), depth)
        told = [_teller(text) for text in story.statements]
        return Layout("", told, places, _asker(asked)), asked

    def _story(self, random: np.random.Generator, kind: str) -> tuple[Story, list[Question]]:
        """A story, and what is asked about it."""
        for _ in range(MOST_STORIES):
            story = KINDS[kind](random, self.statements)
            if len(story.questions) >= self.questions:
                chosen = random.choice(len(story.questions), self.questions, replace=False)
                return story, [story.questions[i] for i in chosen]
        raise UserError(
            f"--statements {self.statements}: almost no story of kind {kind} is long enough for "
            f"{self.questions} question(s): give more statements or fewer questions"
        )


def _places(
    random: np.random.Generator, count: int, first_needed: int, depth: float | None
) -> np.ndarray:
    """float64 [count]: how much of the prose comes before each statement."""
    if depth is None:
        return np.sort(random.random(count))
    before = np.sort(random.random(first_needed)) * depth
    after = depth + np.sort(random.random(count - first_needed - 1)) * (1 - depth)
    return np.concatenate([before, [depth], after])


def _teller(text: str) -> Callable[[Page], tuple[int, int]]:
    def tell(page: Page) -> tuple[int, int]:
        mark = page.mark(text)
        page.add(" ")
        return mark, mark

    return tell


def _asker(questions: list[Question]) -> Callable[[Page], list[int]]:
    def ask(page: Page) -> list[int]:
        marks = []
        for question in questions:
            page.add(f"\nQuestion: {question.text}\nAnswer: ")
            marks.append(page.mark(question.answer))
            page.add(".")
        return marks

    return ask


@lru_cache(maxsize=1)
def _own_tokenizer() -> Tokenizer:
    """That of stories without prose; it is in memory alone."""
    with tempfile.TemporaryDirectory() as folder:
        return save_words(worlds.words(), Path(folder), split="punctuation")


def stories(
    output: DatasetsOutput,
    kind: Annotated[
        str,
        typer.Option(
            parser=several(one_of(*KINDS)), metavar="NAMES", help="Kinds, separated by commas"
        ),
    ] = ",".join(KINDS),
    statements: Annotated[
        int,
        typer.Option(
            parser=whole(2, 10_000), metavar="N", help="Sentences of a story, needed or not"
        ),
    ] = 10,
    questions: Annotated[
        int, typer.Option(parser=whole(1, 1000), metavar="N", help="Questions at its end")
    ] = 1,
    text: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Prose between the sentences: a prepared output or dataset, or text files",
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    length: Annotated[
        str | None,
        typer.Option(
            parser=several(whole(64, MOST)),
            metavar="NUMBERS",
            help="With --text: tokens that a model reads of a document; several with commas "
            "between them; left out: 4096",
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            parser=several(whole(0, 100)),
            metavar="NUMBERS",
            help="With --text: per cent of the prose before the oldest sentence that the first "
            "answer needs; left out: any",
        ),
    ] = None,
    samples: Samples = 8000,
    validation_samples: ValidationSamples = 160,
    seed: Seed = 0,
) -> None:
    """Stories of people, places and things, with questions that one to three sentences answer.

    one-fact: where somebody is. two-facts: where a thing is. three-facts: where it was before.
    two-arguments: which place is north of which. three-arguments: who gave what to whom. All other
    sentences distract. With --text, prose stands between them. Documents cycle through the lengths,
    then depths, then kinds. Only the answers count for loss and accuracy.

    Examples:

      infty task stories --output data/stories --kind one-fact --statements 6

      infty task stories --output data/stories-8k --text data/books --length 8192
    """
    if text is None and (tokenizer is not None or length is not None or depth is not None):
        raise UserError(
            "--tokenizer, --length and --depth are for stories with prose between their sentences, "
            "which --text gives: give it too, or leave them out"
        )
    task = Stories(
        tuple(listed(kind)),
        statements,
        questions,
        None if text is None else open_prose(text, tokenizer),
        () if text is None else tuple(map(int, listed(length or "4096"))),
        None if depth is None else tuple(map(int, listed(depth))),
    )
    run(task, output, samples, validation_samples, seed)
