"""Needles in a haystack: short facts hidden in real prose, and asked for at the end.

The forms are those of RULER (Hsieh et al., arXiv 2404.06654), and the passkey of Mohtashami and
Jaggi (arXiv 2305.16300).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import typer

from infty_tools.options import DatasetsOutput, listed, one_of, several, whole
from infty_tools.tasks.base import MOST, Sample, Task, answer_row
from infty_tools.tasks.command import Samples, Seed, Text, TokenizerOption, ValidationSamples, run
from infty_tools.tasks.haystack import Layout, check_length, in_prose
from infty_tools.tasks.page import Page
from infty_tools.tasks.prose import Prose, open_prose

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

FORMS = ("passkey", "key-value", "multi-key", "multi-value", "multi-query")
ADJECTIVES = (
    "ancient brave calm clever cold dark distant early eager fair faint famous gentle giant golden "
    "grand green happy hidden hollow humble idle jolly keen kind late lively lonely loud lucky mild "
    "modern narrow noble odd pale patient plain polite proud quick quiet rapid rare rough royal rusty "
    "sharp shy silent silver simple slow small smooth solid steep strange sunny sweet tall tender "
    "thin tiny vast warm weary wild wise young"
).split()
NOUNS = (
    "anchor apple arrow basket beacon bell bottle bridge button candle canyon carpet castle chain "
    "cherry clock cloud coach compass copper cottage cradle curtain desert dragon drum eagle ember "
    "engine feather fence ferry forest fountain garden glacier hammer harbor harvest hedge helmet "
    "island ivory jacket kettle kitten ladder lantern lemon marble meadow mirror monkey mountain "
    "needle ocean orchard oyster palace pebble pepper piano pillow planet pocket prairie puzzle rabbit "
    "ribbon river saddle sailor shadow shelter spider stable statue sugar summit table temple thunder "
    "ticket timber tower trumpet tunnel turtle valley velvet village violin wagon walnut window winter"
).split()
HINTS = re.compile(r"special magic|pass key", re.IGNORECASE)
"""What no sentence of the prose may have."""


@dataclass(frozen=True)
class Hidden:
    """A needle."""

    key: str
    """Two words; empty for a passkey."""
    value: str

    def put(self, page: Page) -> tuple[int, int]:
        """Append the needle; returns the marks of its value, the first and the last."""
        if self.key:
            page.add(f"One of the special magic numbers for {self.key} is: ")
            mark = page.mark(self.value)
            page.add(". ")
            return mark, mark
        page.add("The pass key is ")
        first = page.mark(self.value)
        page.add(". Remember it. ")
        last = page.mark(self.value)
        page.add(" is the pass key. ")
        return first, last


@dataclass(frozen=True)
class Question:
    """What is asked, and what is to be answered, in order."""

    before: str
    """Stands before the haystack."""
    after: str
    """Stands behind it, to where the answer begins."""
    answers: tuple[int, ...]
    """Indices of needles, whose values are the answer."""


@dataclass(frozen=True)
class Needle(Task):
    """Haystacks of `lengths` tokens; document i has one length, depth and form after another."""

    name: ClassVar[str] = "needle"
    disjoint: ClassVar[bool] = True  # the prose is
    prose: Prose = field(repr=False)
    forms: tuple[str, ...] = FORMS
    lengths: tuple[int, ...] = (4096,)
    depths: tuple[int, ...] | None = None
    """Per cent of the haystack before the needle that is asked for; None: anywhere."""
    distractors: int = 3
    values: int = 4
    queries: int = 4
    digits: int = 7

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.forms

    @property
    def longest(self) -> int:
        return max(self.lengths) + 1

    def options(self) -> dict[str, Any]:
        names = ("forms", "lengths", "depths", "distractors", "values", "queries", "digits")
        prose = {"text": self.prose.fingerprint, "tokenizer": self.prose.tokenizer.fingerprint}
        return {name: getattr(self, name) for name in names} | prose

    def tokenizer(self, folder: Path) -> Tokenizer:
        self.prose.tokenizer.save(folder)
        return self.prose.tokenizer

    def draw(self, random: np.random.Generator, index: int, held_out: bool) -> Sample:
        length = self.lengths[index % len(self.lengths)]
        index //= len(self.lengths)
        depth = None
        if self.depths is not None:
            depth = self.depths[index % len(self.depths)] / 100
            index //= len(self.depths)
        kind = index % len(self.forms)
        layout, asked = self._layout(random, self.forms[kind], depth)
        made = in_prose(layout, self.prose, length, random, held_out, HINTS)
        rows = []
        for i, (start, end) in zip(asked, made.answers, strict=True):
            told, last = made.told[i]
            rows.append(answer_row(start, end, told, len(made.ids), kind, last))
        return Sample(made.ids, np.array(rows))

    def check(self) -> None:
        random = np.random.default_rng(0)
        layouts = [self._layout(random, form, None)[0] for form in self.forms for _ in range(8)]
        check_length(layouts, self.prose.tokenizer, min(self.lengths))

    def _layout(
        self, random: np.random.Generator, form: str, depth: float | None
    ) -> tuple[Layout, tuple[int, ...]]:
        """A document without its prose, and which of its needles are the answer."""
        hidden, question = self._hidden(random, form)
        places = random.random(len(hidden))
        if form == "multi-value":
            places.sort()  # values are asked for in the order in which they are told
        elif depth is not None and len(question.answers) == 1:
            places[question.answers[0]] = depth
        values = [hidden[i].value for i in question.answers]
        layout = Layout(
            question.before,
            [needle.put for needle in hidden],
            places,
            lambda page: _ask(page, question.after, values),
        )
        return layout, question.answers

    def _hidden(self, random: np.random.Generator, form: str) -> tuple[list[Hidden], Question]:
        """The needles of a document, and what is asked about them."""
        asked = {"multi-query": self.queries}.get(form, 1)
        others = self.distractors if form == "multi-key" else 0
        keys = random.choice(len(ADJECTIVES) * len(NOUNS), asked + others, replace=False)
        names = [f"{ADJECTIVES[k % len(ADJECTIVES)]} {NOUNS[k // len(ADJECTIVES)]}" for k in keys]
        count = self.values if form == "multi-value" else asked + others
        numbers = self._numbers(random, count)
        if form == "passkey":
            return [Hidden("", numbers[0])], _passkey_question()
        if form == "multi-value":
            hidden = [Hidden(names[0], number) for number in numbers]
            return hidden, _question(names[:1], tuple(range(count)))
        hidden = [Hidden(name, number) for name, number in zip(names, numbers)]
        order = tuple(random.permutation(asked).tolist())
        return hidden, _question([names[i] for i in order], order)

    def _numbers(self, random: np.random.Generator, count: int) -> list[str]:
        """Different numbers of `digits` digits."""
        found: dict[str, None] = {}
        while len(found) < count:
            low = 10 ** (self.digits - 1)
            found[str(int(random.integers(low, 10 * low)))] = None
        return list(found)


def _ask(page: Page, question: str, values: list[str]) -> list[int]:
    """Append a question and its answer; returns the marks of its values."""
    page.add(question)
    marks = []
    for i, value in enumerate(values):
        page.add(" " if i == 0 else ", ")
        marks.append(page.mark(value))
    page.add(".")
    return marks


def _passkey_question() -> Question:
    before = (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
        "I will quiz you about the important information there.\n"
    )
    return Question(before, "\nWhat is the pass key? The pass key is", (0,))


def _question(names: list[str], answers: tuple[int, ...]) -> Question:
    """RULER's words."""
    several = len(answers) > 1
    number = "numbers" if several else "number"
    are = "are" if several else "is"
    for_names = ", ".join(names[:-1]) + (", and " if len(names) > 1 else "") + names[-1]
    before = (
        f"{'Some' if several else 'A'} special magic {number} {are} hidden within the following text. "
        f"Make sure to memorize it. I will quiz you about the {number} afterwards.\n"
    )
    all_the = "all the" if several else "the"
    after = (
        f"\nWhat {are} {all_the} special magic {number} for {for_names} mentioned in the provided text? "
        f"The special magic {number} for {for_names} mentioned in the provided text {are}"
    )
    return Question(before, after, answers)


def needle(
    output: DatasetsOutput,
    text: Text,
    tokenizer: TokenizerOption = None,
    form: Annotated[
        str,
        typer.Option(
            parser=several(one_of(*FORMS)), metavar="NAMES", help="Forms, separated by commas"
        ),
    ] = ",".join(FORMS),
    length: Annotated[
        str,
        typer.Option(
            parser=several(whole(64, MOST)),
            metavar="NUMBERS",
            help="Length of a document in tokens; several separated by commas",
        ),
    ] = "4096",
    depth: Annotated[
        str | None,
        typer.Option(
            parser=several(whole(0, 100)),
            metavar="NUMBERS",
            help="How deep the needle that is asked for lies, in per cent of the prose; left out: anywhere",
        ),
    ] = None,
    distractors: Annotated[
        int,
        typer.Option(
            parser=whole(1, 1000), metavar="N", help="multi-key: needles that are not asked for"
        ),
    ] = 3,
    values: Annotated[
        int, typer.Option(parser=whole(2, 1000), metavar="N", help="multi-value: values of the key")
    ] = 4,
    queries: Annotated[
        int, typer.Option(parser=whole(2, 1000), metavar="N", help="multi-query: keys asked for")
    ] = 4,
    digits: Annotated[
        int, typer.Option(parser=whole(4, 18), metavar="N", help="Digits of a number")
    ] = 7,
    samples: Samples = 2000,
    validation_samples: ValidationSamples = 160,
    seed: Seed = 0,
) -> None:
    """Numbers hidden in real prose and asked for at the end, in RULER's forms.

    passkey: one number. key-value: one number under a name. multi-key: others under other names.
    multi-value: several numbers under one name, all asked for in their order. multi-query: several
    names, all asked for. Documents cycle through the lengths, then depths, then forms. Only the
    numbers of the answer count for loss and accuracy.

    Examples:

      infty task needle --output data/needle --text data/books --length 2048,8192 --depth 0,25,50,75,100

      infty task needle --output data/passkey --text books/ --tokenizer gpt2/tokenizer.json --form passkey
    """
    task = Needle(
        open_prose(text, tokenizer),
        forms=tuple(listed(form)),
        lengths=tuple(map(int, listed(length))),
        depths=None if depth is None else tuple(map(int, listed(depth))),
        distractors=distractors,
        values=values,
        queries=queries,
        digits=digits,
    )
    run(task, output, samples, validation_samples, seed)
