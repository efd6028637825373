"""The running average of past attention: its formulas in float64, and what it does for a memory."""

from __future__ import annotations

import pytest
import torch

from infty.errors import UserError
from infty.memory import ContinuousMemory, MemoryConfig, sticky
from support.reference import F64, carried


@pytest.mark.parametrize(
    ("keep", "end", "append"),
    [
        (0.5, 1.0, False),
        (0.9, 1.0, False),
        (0.5, 0.625, False),
        (0.5, 0.75, True),
        (0.75, 1.0, True),
    ],
)
def test_attention_moves_with_what_was_read(keep, end, append):
    g = torch.Generator().manual_seed(3)
    histogram, room = (torch.rand(8, generator=g, dtype=F64) + 0.05 for _ in range(2))
    histogram, room = histogram / histogram.sum(), room / room.sum()
    one = torch.ones(1, dtype=F64)
    found = sticky.carried(
        histogram[None, None], room[None, None], keep * one, end * one, torch.tensor([append])
    )
    torch.testing.assert_close(
        found[0, 0], carried(histogram, room, keep, end, append), rtol=0, atol=1e-12
    )


def test_the_first_write_gives_new_tokens_an_even_share():
    even = torch.full((1, 1, 8), 1 / 8, dtype=F64)
    zero, one = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    assert torch.equal(sticky.carried(even, even, zero, one, torch.tensor([False])), even)


def test_the_average_is_a_weighted_sum_of_what_came():
    g = torch.Generator().manual_seed(0)
    past = torch.softmax(torch.randn(4, 1, 1, 8, generator=g, dtype=F64), -1)
    average = torch.full((1, 1, 8), 1 / 8, dtype=F64)
    expected = 0.75**4 * average + sum(0.25 * 0.75 ** (3 - i) * p for i, p in enumerate(past))
    for p in past:
        average = sticky.averaged(average, p, 4)
    torch.testing.assert_close(average, expected)


@pytest.mark.parametrize("contraction", ["uniform", "doubling", "learned"])
def test_a_memory_keeps_attention_where_what_was_read_lies(contraction):
    """One segment gets all attention once; its share of the histogram follows it as the document grows."""
    core = ContinuousMemory(
        MemoryConfig(
            basis=32, bins=64, contraction=contraction, sticky="quantile", attention_span=4
        ),
        8,
    )
    state, yes = core.empty(1, 1, 1), torch.tensor([True])
    for _ in range(4):
        state = core.write(state, torch.zeros(1, 1, 8, 1), yes)
    last = torch.zeros(1, 1, 64)
    last[..., 48:] = 1 / 16  # the fourth of four
    state = core.with_histogram(state, last, yes)
    for written in range(5, 9):
        state = core.write(state, torch.zeros(1, 1, 8, 1), yes)
        density = state.histogram[0, 0] * 64
        room = 8 if contraction == "doubling" else written
        middles = [density[int(64 * (k + 0.5) / room)] for k in range(written)]
        assert max(middles) == middles[3], written
        assert density.sum() == pytest.approx(64, rel=1e-5)


def test_only_active_lanes_carry():
    core = ContinuousMemory(MemoryConfig(basis=32, bins=16), 8)
    state = core.empty(2, 1, 1)
    both = torch.tensor([True, True])
    state = core.write(state, torch.zeros(2, 1, 8, 1), both)
    past = torch.softmax(torch.arange(16.0), 0).expand(2, 1, 16)
    state = core.with_histogram(state, past, torch.tensor([True, False]))
    assert torch.equal(state.histogram[1], torch.full((1, 16), 1 / 16))
    after = core.write(state, torch.zeros(2, 1, 8, 1), torch.tensor([False, True]))
    assert torch.equal(after.histogram[0], state.histogram[0])


def test_a_constant_share_goes_by_the_last_segment():
    """The paper's: the histogram is replaced, and stays as it is while writing."""
    core = ContinuousMemory(MemoryConfig(basis=32, bins=16, contraction=0.5, sticky="quantile"), 8)
    yes = torch.tensor([True])
    state = core.write(core.empty(1, 1, 1), torch.zeros(1, 1, 8, 1), yes)
    past = torch.softmax(torch.arange(16.0), 0)[None, None]
    state = core.with_histogram(state, past, yes)
    assert torch.equal(state.histogram, past)
    assert torch.equal(core.write(state, torch.zeros(1, 1, 8, 1), yes).histogram, past)


def test_a_span_below_one_segment_is_refused():
    with pytest.raises(UserError, match="attention_span: 0 must be a whole number from 1 to"):
        MemoryConfig(attention_span=0)


@pytest.mark.parametrize(
    ("contraction", "warp"),
    [("uniform", "quantile"), ("learned", "quantile"), ("doubling", "off"), (0.5, "off")],
)
def test_what_is_not_stable_is_no_default(contraction, warp):
    """Where much is rewritten at once, a warp that follows attention amplifies any perturbation."""
    assert MemoryConfig(contraction=contraction).sticky == warp
    assert MemoryConfig(contraction=contraction, sticky="quantile").sticky == "quantile"
    own = MemoryConfig(
        basis=64,
        contraction=0.75,
        overrides={
            1: {"contraction": contraction},
            2: {"contraction": contraction, "sticky": "quantile"},
        },
    )
    assert [own.of(layer).sticky for layer in range(3)] == ["off", warp, "quantile"]
