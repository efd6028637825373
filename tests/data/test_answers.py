"""Which tokens of a dataset count, and what is known of each answer."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.data import answers
from infty.data.answers import Answers, Counted
from infty.data.build import DatasetWriter
from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule, single_pass
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from infty_tools.tasks import sorting

LENGTHS = [9, 4, 30, 12]
ROWS = {
    0: [(1, 2, 0, 1, 0), (2, 4, 500, 2, 1), (8, 9, 10, 7, 0)],
    2: [(5, 17, 100, 3, 1), (29, 30, 1000, 4, 0)],
    3: [(11, 12, 0, 9, 1)],
}
TASK = {"task": "made", "seed": 7, "kinds": ["one", "two"], "options": {"n": 3}}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tokenizer.json"
    sorting.tokenizer().save(str(path))
    writer = DatasetWriter(tmp_path / "data", Tokenizer.load(path), TASK)
    for document, length in enumerate(LENGTHS):
        rows = np.array(ROWS.get(document, []), dtype=np.int64).reshape(-1, 5)
        writer.add(f"d{document}", np.arange(length) % 20, 0, rows)
    writer.finish({})
    return tmp_path / "data"


def counted(document: int) -> set[int]:
    return {i for row in ROWS.get(document, []) for i in range(row[0], row[1])}


def test_what_was_written_is_read(folder):
    documents = Documents.open(folder)
    found = documents.answers
    expected = [(document, *row) for document, rows in ROWS.items() for row in rows]
    assert found.rows.tolist() == [list(row) for row in expected]
    assert (found.task, found.seed, found.kinds, found.options) == (
        "made",
        7,
        ("one", "two"),
        {"n": 3},
    )
    for i, name in enumerate(answers.COLUMNS):
        assert getattr(found, name).tolist() == [row[i] for row in expected]
    assert [len(found.of(i)) for i in range(4)] == [3, 0, 2, 1]
    assert documents.info.answers == len(found) == 6
    assert documents.counted.total == sum(len(counted(i)) for i in range(4))
    documents.verify()
    assert not list(folder.glob("*.partial*"))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 3), st.integers(0, 30), st.integers(0, 30))
def test_counts_are_those_of_the_mask(document, one, other):
    start, stop = sorted(min(i, LENGTHS[document]) for i in (one, other))
    rows = np.array([(d, *row) for d, rows in ROWS.items() for row in rows], dtype=np.int64)
    some = Counted(LENGTHS, Answers(rows, ("one", "two"), "made", 7))
    everything = Counted(LENGTHS)
    for mask, wanted in ((some, counted(document)), (everything, set(range(1, 30)))):
        expected = [i in wanted for i in range(start, stop)]
        assert mask.mask(document, start, stop).tolist() == expected
        assert mask.count([document], [start], [stop]).tolist() == [sum(expected)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_windows_weigh_answers_alone(folder, lanes):
    documents = Documents.open(folder)
    readers = [single_pass(documents, lanes, [lane], 4) for lane in range(lanes)]
    seen = []
    while not readers[0].schedule.exhausted:
        windows = [reader.next_window(2) for reader in readers]
        assert {w.tokens_in_step for w in windows} == {int(sum(w.weights.sum() for w in windows))}
        for w in windows:
            lane, segment, place = w.weights.nonzero(as_tuple=True)
            label = w.labels[lane, segment, place]
            seen += zip(w.document[lane, segment].tolist(), label.tolist())
    expected = [(d, i % 20) for d in range(4) for i in counted(d)]
    assert sorted(seen) == sorted(expected)


def test_the_schedule_knows_nothing_of_answers(folder):
    """A run's order, and so its resuming, depends on lengths alone."""
    documents = Documents.open(folder)
    window = LaneReader(documents, LaneSchedule(LENGTHS, 2, 4, seed=1), [0, 1]).next_window(20)
    assert window.tokens_in_step == int(window.weights.sum()) > 0


def spoil_row(column: int, value: int):
    def spoil(folder):
        rows = np.load(folder / answers.ROWS)
        rows[1, column] = value
        np.save(folder / answers.ROWS, rows)

    return spoil


def cut(folder):
    path = folder / answers.ROWS
    path.write_bytes(path.read_bytes()[:-9])


def fewer(folder):
    np.save(folder / answers.ROWS, np.load(folder / answers.ROWS)[:-1])


def floats(folder):
    np.save(folder / answers.ROWS, np.load(folder / answers.ROWS).astype(float))


def without(name: str):
    return lambda folder: (folder / name).unlink()


def no_kinds(folder):
    (folder / answers.TASK).write_text(json.dumps({**TASK, "kinds": 3}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_row(0, 4), "not one of 4"),
        (spoil_row(1, 0), "does not lie in its document"),
        (spoil_row(2, 10), "does not lie in its document"),
        (spoil_row(1, 1), "do not follow each other"),
        (spoil_row(3, 1001), "cannot be"),
        (spoil_row(4, -1), "cannot be"),
        (spoil_row(5, 2), "a kind that is not one of 2"),
        (cut, "cannot be read"),
        (fewer, "holds 5 answers where dataset.json counts 6"),
        (floats, "is not a table of answers"),
        (without(answers.ROWS), "holds 0 answers"),
        (without(answers.TASK), "is missing"),
        (no_kinds, "does not hold task, seed, kinds and options"),
    ],
)
def test_damage_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(UserError, match=said):
        Documents.open(folder)


def test_a_changed_answer_is_found_by_reading_all(folder):
    spoil_row(4, 3)(folder)
    with pytest.raises(UserError, match="not the ones that were prepared"):
        Documents.open(folder).verify()


def test_datasets_of_earlier_versions(folder):
    """Where all counted they are read as ever; where not, they are refused."""
    path = folder / "dataset.json"
    values = json.loads(path.read_text())
    for name in (answers.ROWS, answers.TASK):
        (folder / name).unlink()
    del values["answers"]
    path.write_text(json.dumps(values | {"counted_from": []}))
    assert Documents.open(folder).counted.total == sum(n - 1 for n in LENGTHS)
    path.write_text(json.dumps(values | {"counted_from": [3] * 4}))
    with pytest.raises(UserError, match=r"earlier version of infty.*make it again"):
        Documents.open(folder)
