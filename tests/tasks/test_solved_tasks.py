"""For every task and many seeds: what counts is the answer that a solver finds in the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
import solvers

from infty.errors import UserError
from infty_tools.tasks import facts as facts_task
from infty_tools.tasks.base import Sample, Task
from infty_tools.tasks.copying import Copy
from infty_tools.tasks.facts import Facts
from infty_tools.tasks.making import sample
from infty_tools.tasks.needle import FORMS, Needle
from infty_tools.tasks.prose import open_prose
from infty_tools.tasks.stories import Stories
from infty_tools.tasks.worlds import KINDS

SEEDS = range(40)


@pytest.fixture(scope="module")
def prose(prose_folder):
    return open_prose(prose_folder / "data", None)


def rows_of(made: Sample) -> list[list[int]]:
    """The answers' rows, which lie one behind the other in their document."""
    rows = made.answers.tolist()
    for start, end, depth, age, _ in rows:
        assert 1 <= start < end <= len(made.ids)
        assert 0 <= depth <= 1000 and 0 <= age <= start
    assert all(a[1] <= b[0] for a, b in pairwise(rows))
    return rows


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(
    "task",
    [
        Facts(),  # 16 facts in 1 segment of 32, and 8 that ask
        Facts(facts=5, told=64, asked=100, gap=20, asks=40, validation_asks=3, keys=9, values=2),
        Facts(facts=16, told=32, asked=256, asks=128, validation_asks=128),
    ],
)
def test_facts(task, held_out):
    for seed in SEEDS:
        made = sample(task, seed, held_out, seed)
        assert len(made.ids) == task.told + task.asked + 1
        rows = rows_of(made)
        expected = solvers.facts(made.ids.tolist(), task.keys, task.values)
        asks = task.validation_asks if held_out else task.asks
        assert len(rows) == len(expected) == asks
        for start, end, depth, age, kind in rows:
            token, first, last = expected[start]
            assert end == start + 1 and made.ids[start] == token
            assert (depth, age) == (1000 * first // len(made.ids), start - last)
            assert kind == (facts_task.FIRST if first == last else facts_task.REPEATED)
            assert start >= task.told + task.gap and first < task.told


def test_each_fact_is_asked_for_once_unless_told_otherwise():
    made = sample(Facts(), 0, True, 0)
    assert len({int(made.ids[row[0] - 1]) for row in rows_of(made)}) == 16
    assert {row[4] for row in rows_of(made)} == {facts_task.FIRST}


def decoded(task: Task, made: Sample, tokenizer) -> list[str]:
    return [tokenizer.decode(made.ids[a:b]).strip() for a, b, *_ in rows_of(made)]


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_needle(prose, form, held_out):
    task = Needle(prose, forms=(form,), lengths=(700, 1500))
    for seed in SEEDS:
        made = sample(task, seed, held_out, seed)
        assert len(made.ids) == task.lengths[seed % 2] + 1
        assert made.ids[-1] == prose.tokenizer.eos_id
        assert decoded(task, made, prose.tokenizer) == solvers.needles(
            prose.tokenizer.decode(made.ids[:-1])
        )
        for start, end, depth, age, _ in rows_of(made):
            told = start - age  # the last time: the number itself stands there
            assert made.ids[told : told + end - start].tolist() == made.ids[start:end].tolist()
            assert abs(1000 * told // len(made.ids) - depth) <= (30 if form == "passkey" else 0)


def test_the_depth_of_a_needle(prose):
    task = Needle(prose, forms=("multi-key",), lengths=(4000,), depths=(0, 50, 100))
    for index in range(9):
        made = sample(task, 1, False, index)
        depth = rows_of(made)[0][2]
        assert abs(depth - 10 * task.depths[index % 3]) < 80


@pytest.mark.parametrize("in_prose", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_stories(prose, tmp_path, kind, in_prose):
    """The oldest sentence that a row names is needed, and nothing before it is."""
    task = Stories((kind,), statements=12, questions=2)
    if in_prose:
        task = Stories((kind,), 12, 2, prose, lengths=(900, 1700))
    tokenizer = task.tokenizer(tmp_path / "tokenizer")
    for seed in SEEDS:
        made = sample(task, seed, seed % 2 == 1, seed)
        assert not in_prose or len(made.ids) == task.lengths[seed % 2] + 1
        answers = solvers.story(tokenizer.decode(made.ids[:-1]))
        assert decoded(task, made, tokenizer) == answers and None not in answers
        for number, (start, _, depth, age, _) in enumerate(rows_of(made)):
            told = start - age
            assert depth == 1000 * told // len(made.ids)
            rest = tokenizer.decode(made.ids[told:-1])
            assert solvers.story(rest)[number] == answers[number]
            assert solvers.story(rest[rest.index(".") + 1 :])[number] != answers[number]


@pytest.mark.parametrize("after", [None, (130, 200)])
def test_copy(prose, after):
    task = Copy(prose, lengths=(400, 600), passage=40, cue=10, passages=3, after=after)
    for seed in SEEDS:
        made = sample(task, seed, seed % 2 == 1, seed)
        length = task.lengths[seed % 2]
        rows = rows_of(made)
        assert len(made.ids) == length + 1
        assert [row[:2] for row in rows] == [
            [length - 40 * n + 10, length - 40 * n + 40] for n in (3, 2, 1)
        ]
        for start, end, depth, age, _ in rows:
            expected = solvers.copied(made.ids.tolist(), start, 10, end - start)
            assert made.ids[start:end].tolist() == expected
            assert after is None or age == after[seed // 2 % 2]
            assert depth == 1000 * (start - age) // len(made.ids)


@pytest.mark.parametrize("held_out", [False, True])
def test_books_of_files_are_as_good(prose_folder, held_out):
    """Without held-out texts, the last tenth of every text is held out."""
    prose = open_prose(prose_folder / "books", prose_folder / "data" / "train")
    books = [path.read_text() for path in sorted((prose_folder / "books").iterdir())]
    copies = Copy(prose, lengths=(300,), passage=40, cue=10)
    needles = Needle(prose, forms=("key-value",), lengths=(600,))
    for seed in range(10):
        copy, needle = (sample(task, seed, held_out, 0) for task in (copies, needles))
        start, end, *_ = rows_of(copy)[0]
        assert copy.ids[start:end].tolist() == solvers.copied(copy.ids.tolist(), start, 10, 30)
        text = prose.tokenizer.decode(needle.ids[:-1])
        assert decoded(needles, needle, prose.tokenizer) == solvers.needles(text)
        lines = {*text.split("\n"), *prose.tokenizer.decode(copy.ids[:-1]).split("\n")}
        seen = 0
        for book in books:
            for line in lines & set(book.split("\n")):
                border = 0.9 * len(book)
                place = book.index(line)
                assert place >= border - 80 if held_out else place + len(line) <= border + 80
                seen += 1
        assert seen


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda prose: Facts(facts=65), "there are only 64 keys"),
        (lambda prose: Facts(asks=129), "room for 128 questions"),
        (lambda prose: Facts(gap=250), "room for 3 questions"),
        (lambda prose: Stories(statements=70), "two-arguments has"),
        (lambda prose: Copy(prose, passage=8, cue=8), "--cue 8"),
        (lambda prose: Copy(prose, lengths=(64,)), "need 128"),
        (lambda prose: Copy(prose, lengths=(256,), after=(250,)), "64 to 192"),
    ],
)
def test_options_that_leave_no_document_are_refused(prose, make, said):
    with pytest.raises(UserError, match=said):
        make(prose)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda prose: Needle(prose, lengths=(64,)), r"give \d+ or more"),
        (lambda prose: Copy(prose, lengths=(10**6,)), "the longest has"),
        (
            lambda prose: Copy(prose, lengths=(2000,), passage=20, cue=1, passages=30),
            "a longer --cue",
        ),
        (lambda prose: Stories(("three-facts",), statements=2), "almost no story"),
        (lambda prose: Facts(1, 2, 2, 0, 1, 1, 1, 1, 1), "so few different documents"),
    ],
)
def test_documents_that_cannot_be_are_named(prose, make, said):
    with pytest.raises(UserError, match=said):
        for held_out in (False, True):
            sample(make(prose), 0, held_out, 0)
