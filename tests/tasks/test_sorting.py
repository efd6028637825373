"""The sorting task: its sequences, and which of their tokens count."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule, single_pass
from infty.errors import UserError
from infty_tools.cli import app
from infty_tools.tasks import sorting
from infty_tools.tasks.making import make
from infty_tools.tasks.sorting import Sorting

LENGTH, SEGMENT = 128, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sorting") / "data"
    make(Sorting(LENGTH), folder, 12, 5, seed=3)
    return folder


def test_a_sequence_is_symbols_a_separator_and_the_answer(data):
    for part, count in (("train", 12), ("validation", 5)):
        documents = Documents.open(data / part)
        assert len(documents) == count and documents.vocab_size == 22
        assert set(documents.lengths.tolist()) == {LENGTH + 1}
        for i in range(count):
            ids = documents.read(i, 0, LENGTH + 1).tolist()
            body, answer = ids[: LENGTH - 20], ids[LENGTH - 19 :]
            assert ids[LENGTH - 20] == sorting.SEPARATOR and max(body) < 20
            counts = Counter(body)
            assert answer == sorted(range(20), key=lambda symbol: (-counts[symbol], symbol))


def test_sequences_differ_and_follow_the_seed(data, tmp_path):
    train, held_out = (Documents.open(data / part) for part in ("train", "validation"))
    texts = {train.read(i, 0, LENGTH).tobytes() for i in range(12)} | {
        held_out.read(0, 0, LENGTH).tobytes()
    }
    assert len(texts) == 13
    prints = []
    for seed in (3, 4):
        make(Sorting(LENGTH), tmp_path / str(seed), 12, 5, seed=seed)
        prints.append(Documents.open(tmp_path / str(seed) / "train").fingerprint)
    assert prints[0] == train.fingerprint != prints[1]


def test_symbols_move_from_one_distribution_to_another():
    """Expected counts of the first and last tenth, from the two distributions that were drawn."""
    random, replay = np.random.default_rng(5), np.random.default_rng(5)
    body = sorting.sequence(200_000, random)[:200_000]
    first, last = (w / w.sum() for w in replay.integers(1, 10, (2, 20)))
    for part, share in ((body[:20_000], 0.05), (body[-20_000:], 0.95), (body[90_000:110_000], 0.5)):
        expected = (1 - share) * first + share * last
        np.testing.assert_allclose(
            np.bincount(part, minlength=20) / 20_000, expected, atol=6 * np.sqrt(0.1 / 20_000)
        )


def test_ties_are_sorted_by_number():
    assert sorting.answer(np.array([3, 3, 1, 1, 7])).tolist()[:4] == [1, 3, 7, 0]


def test_only_the_answer_counts(data):
    documents = Documents.open(data / "train")
    schedule = LaneSchedule(documents.lengths, 3, SEGMENT)
    reader = LaneReader(documents, schedule, [0, 2])
    for _ in range(3):
        window = reader.next_window(4)
        assert window.tokens_in_step == 3 * 20 and window.weights.sum() == 2 * 20
        for lane in range(2):
            counted = window.weights[lane].flatten().bool()
            tokens = window.tokens[lane].flatten()
            assert sorted(window.labels[lane].flatten()[counted].tolist()) == list(range(20))
            assert tokens[counted][0] == sorting.SEPARATOR
    beginning = LaneReader(
        documents,
        LaneSchedule(documents.lengths, 3, SEGMENT),
        [0],
    ).next_window(2)
    assert beginning.tokens_in_step == 0 and beginning.weights.sum() == 0


def test_a_single_pass_reads_every_answer_once_in_windows_without_any(data):
    reader = single_pass(Documents.open(data / "validation"), 2, [0, 1], SEGMENT)
    counted = []
    while not reader.schedule.exhausted:
        counted.append(reader.next_window(1).tokens_in_step)
    assert sum(counted) == 5 * 20 and 0 in counted


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--length", "30"], "30 is not a"),
        (["--length", "10000000000"], "10000000000 is not a"),
        (["--samples", "0"], "samples"),
        (["--samples", "1000000000"], "is not a whole"),
        (["--seed", "-1"], "-1 is not"),
        (["--seed", str(2**64)], "is not a whole"),
        ([], "was not made by infty task"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path, arguments, problem):
    output = tmp_path / "out"
    if not arguments:
        output.mkdir()
        (output / "other").touch()
    result = CliRunner().invoke(app, ["task", "sorting", "--output", str(output), *arguments])
    assert problem in str(result.exception) + result.output
    assert isinstance(result.exception, UserError) or result.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == (["out"] if not arguments else [])
