"""Lanes: every document exactly once an epoch, nobody waits, and any stop can be resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.data.lanes import LaneReader, LaneSchedule, Piece, single_pass, usable_documents
from infty.errors import UserError
from support.small_data import InMemory

LENGTHS = [2, 9, 33, 17, 5, 64, 8, 3, 41, 20]
lengths = st.lists(st.integers(2, 60), min_size=1, max_size=12)
lanes = st.integers(1, 6)
segments = st.integers(1, 9)
seeds = st.integers(0, 2**31)


def begun(plan: list[list[Piece]]) -> list[int]:
    """Documents in the order in which they were dealt: by segment, then by lane."""
    return [
        lane[s].document
        for s in range(len(plan[0]))
        for lane in plan
        if lane[s].reset and lane[s].document >= 0
    ]


@settings(max_examples=60, deadline=None)
@given(lengths, lanes, segments, seeds)
def test_every_document_once_an_epoch(lengths, lanes, segment, seed):
    dealt = begun(
        LaneSchedule(lengths, lanes, segment, seed).advance(
            3 * (sum(lengths) // segment + len(lengths)) + 3
        )
    )
    n = len(lengths)
    assert len(dealt) >= 2 * n
    for epoch in range(len(dealt) // n):
        assert sorted(dealt[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(max_examples=60, deadline=None)
@given(lengths, lanes, segments, seeds)
def test_a_lane_reads_a_document_whole_and_in_order(lengths, lanes, segment, seed):
    for lane in LaneSchedule(lengths, lanes, segment, seed).advance(80):
        document, position = None, 0
        for piece in lane:
            if piece.reset:
                assert document is None or position == lengths[document] - 1
                document, position = piece.document, 0
            assert (piece.document, piece.start) == (document, position)
            assert piece.count == min(segment, lengths[document] - 1 - position) > 0
            position += piece.count


@settings(max_examples=60, deadline=None)
@given(lengths, lanes, segments, seeds, st.integers(0, 40), st.integers(1, 5))
def test_resuming_anywhere_changes_nothing(lengths, lanes, segment, seed, before, window):
    whole = LaneSchedule(lengths, lanes, segment, seed)
    whole.advance(before)
    saved = json.loads(json.dumps(whole.state()))
    resumed = LaneSchedule(lengths, lanes, segment, seed=0)
    assert resumed.restore(saved) == list(range(lanes))
    assert resumed.state() == saved
    for _ in range(6):
        assert resumed.advance(window) == whole.advance(window)
    assert resumed.state() == whole.state()


@settings(max_examples=40, deadline=None)
@given(lengths, lanes, segments, seeds, st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_windows_do_not_matter(lengths, lanes, segment, seed, windows):
    """Windows of any size cut the same reading."""
    whole = LaneSchedule(lengths, lanes, segment, seed).advance(sum(windows))
    cut = LaneSchedule(lengths, lanes, segment, seed)
    parts = [cut.advance(w) for w in windows]
    assert [[piece for part in parts for piece in part[lane]] for lane in range(lanes)] == whole


@settings(max_examples=60, deadline=None)
@given(lengths, lanes, lanes, segments, seeds, st.integers(0, 30))
def test_another_number_of_lanes(lengths, lanes, later, segment, seed, before):
    """Lanes both have go on as they were; new ones take the next documents; unfinished ones are read again."""
    old = LaneSchedule(lengths, lanes, segment, seed)
    read = begun(old.advance(before))
    saved = old.state()
    new = LaneSchedule(lengths, later, segment, seed)
    assert new.restore(saved) == list(range(min(lanes, later)))
    retired = [saved["lanes"][str(i)]["document"] for i in range(later, lanes)]
    unfinished = [d for d in retired if d >= 0]
    # Every lane that is gone may leave a document to be read again, by however few lanes there are.
    plan = new.advance((4 + lanes) * (sum(lengths) // segment + len(lengths)) + 4)
    for lane in range(min(lanes, later)):
        cursor = saved["lanes"][str(lane)]
        if cursor["document"] >= 0:
            assert (plan[lane][0].document, plan[lane][0].start) == (
                cursor["document"],
                cursor["position"],
            )
    dealt = begun(plan)
    assert dealt[: len(unfinished)] == unfinished
    rest = set(old.usable.tolist()) - set(read[len(read) - saved["index"] :])  # of this epoch
    assert sorted(dealt[len(unfinished) : len(unfinished) + len(rest)]) == sorted(rest)


def test_lanes_finish_together():
    """List scheduling: after any number of segments, no lane is behind: all have read the same number."""
    rng = np.random.default_rng(0)
    schedule = LaneSchedule(rng.integers(50, 5000, 200), 16, 64, seed=3)
    plan = schedule.advance(1000)
    counted = [sum(p.count for p in lane) for lane in plan]
    assert min(counted) > 0.97 * max(counted)
    assert schedule.predictions + schedule.padding == 16 * 1000 * 64
    assert schedule.predictions == sum(counted)
    assert schedule.padding / (16 * 1000 * 64) < 0.03


def test_order_depends_on_seed_and_epoch_alone():
    def first_two_epochs(lanes: int, seed: int) -> list[int]:
        return begun(LaneSchedule(LENGTHS, lanes, 4, seed).advance(400))[: 2 * len(LENGTHS)]

    assert first_two_epochs(1, 5) == first_two_epochs(3, 5) == first_two_epochs(4, 5)
    assert first_two_epochs(1, 5) != first_two_epochs(1, 6)
    order = first_two_epochs(2, 5)
    assert order[: len(LENGTHS)] != order[len(LENGTHS) :]


@settings(max_examples=30, deadline=None)
@given(
    lengths, segments, seeds, st.integers(1, 5), st.sampled_from([(4, 1), (4, 2), (6, 3), (6, 2)])
)
def test_ranks_together_read_what_one_reads(lengths, segment, seed, window, layout):
    lanes, ranks = layout
    share = lanes // ranks
    documents = InMemory(lengths)

    def reader(owned: range) -> LaneReader:
        return LaneReader(documents, LaneSchedule(lengths, lanes, segment, seed), owned)

    whole = reader(range(lanes))
    parts = [reader(range(r * share, (r + 1) * share)) for r in range(ranks)]
    for _ in range(4):
        expected, found = whole.next_window(window), [p.next_window(window) for p in parts]
        for name in ("tokens", "labels", "weights", "reset", "document"):
            assert torch.equal(
                getattr(expected, name), torch.cat([getattr(w, name) for w in found])
            )
        assert (
            {w.tokens_in_step for w in found}
            == {expected.tokens_in_step}
            == {int(expected.weights.sum())}
        )


def test_tokens_labels_weights_at_the_edges():
    """A document of 9 tokens in segments of 4: 8 predictions, two full segments; one of 6: a tail of one."""
    window = LaneReader(
        InMemory([9, 6]), LaneSchedule([9, 6], 1, 4, single_pass=True), [0]
    ).next_window(5)
    assert window.tokens[0].tolist() == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [1001, 1002, 1003, 1004],
        [1005, 0, 0, 0],
        [0] * 4,
    ]
    assert window.labels[0].tolist() == [
        [2, 3, 4, 5],
        [6, 7, 8, 9],
        [1002, 1003, 1004, 1005],
        [1006, 0, 0, 0],
        [0] * 4,
    ]
    assert window.weights[0].tolist() == [[1] * 4, [1] * 4, [1] * 4, [1, 0, 0, 0], [0] * 4]
    assert window.reset[0].tolist() == [True, False, True, False, True]
    assert window.document[0].tolist() == [0, 0, 1, 1, -1]
    assert window.tokens_in_step == 13
    assert (window.tokens.dtype, window.labels.dtype, window.weights.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )


def test_the_shortest_documents():
    schedule = LaneSchedule([2, 2, 0, 1], 2, 4)
    assert sorted(begun(schedule.advance(1))) == [
        0,
        1,
    ]  # documents without a prediction are never dealt
    with pytest.raises(UserError, match="no document of two tokens"):
        LaneSchedule([0, 1], 2, 4)


@settings(max_examples=60, deadline=None)
@given(lengths, lanes, segments, st.integers(1, 5))
def test_single_pass_reads_everything_once_and_ends(lengths, lanes, segment, window):
    readers = [single_pass(InMemory(lengths), lanes, [lane], segment) for lane in range(lanes)]
    seen, windows = [], 0
    while not readers[0].schedule.exhausted:
        parts = [r.next_window(window) for r in readers]
        assert (
            len({r.schedule.exhausted for r in readers}) == 1
        )  # every rank makes the same number of windows
        assert parts[0].tokens_in_step == sum(int(p.weights.sum()) for p in parts) > 0
        for part in parts:
            seen += part.labels[part.weights > 0].tolist()
        windows += 1
        assert windows <= sum(lengths) + 1
    assert sorted(seen) == [1000 * d + i + 1 for d, n in enumerate(lengths) for i in range(1, n)]
    assert readers[0].next_window(window).tokens_in_step == 0  # asking again is harmless


def test_a_state_of_other_data_is_refused():
    saved = LaneSchedule(LENGTHS, 2, 4).state()
    with pytest.raises(UserError, match="10 documents, this one has 9"):
        LaneSchedule(LENGTHS[1:], 2, 4).restore(saved)
    with pytest.raises(UserError, match=r"model\.segment_length 8"):
        LaneSchedule(LENGTHS, 2, 8).restore(saved)


def test_micro_batches_are_parts_of_the_window():
    window = LaneReader(InMemory(LENGTHS), LaneSchedule(LENGTHS, 4, 4), range(4)).next_window(3)
    half = window.select(slice(2, 4))
    assert (
        torch.equal(half.tokens, window.tokens[2:]) and half.tokens_in_step == window.tokens_in_step
    )


@pytest.mark.parametrize(
    "lengths, lanes, repeated",
    [([50, 60], 8, 6), ([50, 60], 2, 0), ([50, 1, 60, 0], 3, 1), ([5] * 9, 4, 0)],
)
def test_lanes_that_begin_with_a_copy(lengths, lanes, repeated):
    """Counted as what they read shows it."""
    assert max(0, lanes - usable_documents(lengths)) == repeated
    first = [lane[0].document for lane in LaneSchedule(lengths, lanes, 8).advance(1)]
    assert lanes - len(set(first)) == repeated


@pytest.mark.parametrize("lanes, segment", [(0, 8), (-1, 8), (2, 0)])
def test_numbers_of_lanes_and_tokens_that_cannot_be(lanes, segment):
    with pytest.raises(UserError, match="both must be 1 or more"):
        LaneSchedule([50, 60], lanes, segment)
