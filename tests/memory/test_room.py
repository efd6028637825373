"""Tokens that share out their room by weights: against the formulas in float64, one cell at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infty.errors import UserError
from infty.memory import ContinuousMemory, MemoryConfig
from infty.memory.room import CAP, LEAST, edges, salience, spread, surprise
from support.reference import F64, basis, first_operator, psi

L = 12
SIZES = {"basis": 24, "widths": (0.04,), "bins": 8, "precision": "float64"}


def shares(config, weights):
    """(keep, end) of each write, as docs/memory.md states them: weights [L] float64 of each segment."""
    total = 0.0
    for k, a in enumerate(weights):
        if config.contraction == "doubling":
            room = 1
            while room < k + 1:
                room *= 2
            contracts = room != max(1, 2 ** max(0, (k - 1).bit_length())) or k == 0
            yield k / room, (k + 1) / room, not contracts
        else:
            yield total / (total + float(a.mean())), 1.0, False
        total += float(a.mean())


def by_loops(config, xs, weights):
    """Coefficients after all writes; xs [L, c] and weights [L] of each segment, float64."""
    cells = 2 * config.basis
    m, s = basis(config.basis, config.widths)
    g = first_operator(cells, m, s, config.ridge)
    B = torch.zeros(config.basis, xs[0].shape[1], dtype=F64)
    for x, a, (keep, end, append) in zip(xs, weights, shares(config, weights)):
        grid = torch.zeros(cells, x.shape[1], dtype=F64)
        for i in range(cells):
            low, high = i / cells, (i + 1) / cells
            if low < keep and not append:
                part = min(high, keep)
                middle = torch.tensor([(low + part) / 2 / keep], dtype=F64)
                grid[i] += cells * (part - low) * (psi(middle, m, s) @ B)[0]
            left = keep
            for token, weight in zip(x, a):
                right = left + (end - keep) * float(weight / a.sum())
                grid[i] += cells * max(0.0, min(right, high) - max(left, low)) * token
                left = right
        B = g.T @ grid + (B if append else 0)
    return B


def document(lanes: int, segments: int, seed: int = 0):
    """Tokens [S, b, 1, L, c], and weights [S, b, L] with one token in four that has much."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(segments, lanes, 1, L, 3, generator=g)
    weights = torch.rand(segments, lanes, L, generator=g) + 0.05
    much = torch.rand(segments, lanes, L, generator=g) < 0.25
    return x, torch.where(much, 20 * weights, weights)


def write_all(config, x, weights, active=None):
    core = ContinuousMemory(config, L)
    state = core.empty(x.shape[1], 1, x.shape[-1])
    for k in range(len(x)):
        on = torch.ones(x.shape[1], dtype=torch.bool) if active is None else active[k]
        a = None if weights is None else weights[k]
        state = core.write(state, x[k], on, weights=a)
    return state


@pytest.mark.parametrize("policy", ["uniform", "doubling"])
def test_a_document_against_plain_loops(policy):
    config = MemoryConfig(**SIZES, contraction=policy, sticky="off", room="salience")
    x, weights = document(2, 5)
    state = write_all(config, x, weights)
    for lane in range(2):
        expected = by_loops(config, x[:, lane, 0].double(), weights[:, lane].double())
        error = (state.coefficients[lane, 0].double() - expected).norm() / expected.norm()
        assert error < 1e-5, float(error)  # a state is float32 between writes


@pytest.mark.parametrize("sticky", ["off", "quantile"])
@pytest.mark.parametrize("policy", ["uniform", "doubling"])
def test_equal_weights_are_the_even_room(policy, sticky):
    even = MemoryConfig(**SIZES, contraction=policy, sticky=sticky)
    x, weights = document(2, 5)
    expected = write_all(even, x, None)
    got = write_all(replace(even, room="salience"), x, torch.full_like(weights, 0.3))
    torch.testing.assert_close(got.coefficients, expected.coefficients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.histogram, expected.histogram, rtol=1e-5, atol=1e-7)
    assert torch.equal(got.written, expected.written) and expected.weight is None


def test_a_token_keeps_room_as_the_weight_it_was_written_with():
    """Segment k's mark is 1 in channel k where its heavy tokens lie: that room is its share of all weight, whatever
    came after it."""
    config = MemoryConfig(basis=256, ridge=0.01, sticky="off", room="salience")
    weights = torch.full((4, 1, L), 0.1)
    weights[1, 0, 4:6] = 3.0
    x = torch.zeros(4, 1, 1, L, 1)
    x[1, 0, 0, 4:6] = 1.0
    core, state = ContinuousMemory(config, L), write_all(config, x, weights)
    held = core.at_centers(state.coefficients)[0, 0, :, 0].clamp(0, 1).mean()
    assert held.item() == pytest.approx(6.0 / weights.sum().item(), abs=0.02)


def test_what_is_read_keeps_room_beside_what_is_salient():
    """With a warp, attention on one place gives it more of the room that new tokens take; weights go on counting."""
    config = MemoryConfig(
        **SIZES, sticky="quantile", explore=0.0, attention_span=1, room="salience"
    )
    core, (x, weights) = ContinuousMemory(config, L), document(1, 3)
    state, on = core.empty(1, 1, 3), torch.tensor([True])
    for k in range(2):
        state = core.write(state, x[k], on, weights=weights[k])
    peak = torch.full((1, 1, 8), 0.01)
    peak[..., 2] = 1 - 0.07
    attended = core.with_histogram(state, peak, on)
    keep = core.writing.plan(state, None, weights[2]).keep
    total = state.weight + weights[2].mean()
    torch.testing.assert_close(keep, (state.weight / total).double(), rtol=1e-6, atol=0)
    room = core.writing.room(attended)[0, 0]
    assert room[2] > 2 * room[1] and room.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("policy", ["uniform", "doubling", "learned"])
def test_gradients_of_weights_by_finite_differences(policy):
    """In float64, through three writes: what a segment is given, and what is left to those before it."""
    config = MemoryConfig(**SIZES, contraction=policy, sticky="off", room="salience")
    writing = ContinuousMemory(config, L).writing
    x, weights = document(1, 3, seed=1)
    x = x.double()
    rate = torch.tensor([1.3], dtype=F64) if policy == "learned" else None

    def coefficients(log_weights: torch.Tensor) -> torch.Tensor:
        state = ContinuousMemory(config, L).empty(1, 1, 3)
        old, total = torch.zeros(1, 1, config.basis, 3, dtype=F64), torch.zeros(1, dtype=F64)
        for k, a in enumerate(log_weights.exp()):
            now = replace(state, written=torch.tensor([k]), weight=total)
            old, _ = writing.write(now, old, x[k], None, rate, a)
            total = total + a.mean(-1)
        return old

    at = weights.double().log().requires_grad_()
    assert torch.autograd.gradcheck(coefficients, at, eps=1e-7, atol=1e-5, rtol=1e-4)


def test_weights_are_the_exponentials_of_capped_scores():
    h = torch.randn(2, 5, 7, dtype=F64)
    w = torch.randn(7, dtype=F64) * 2
    found = salience(h, w)
    expected = torch.exp(CAP * torch.tanh((h @ w) / CAP)).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert salience(100 * h, w).min() > 1e-2 and salience(100 * h, w).max() < 60


def test_the_first_token_of_a_segment_is_as_surprising_as_the_others():
    losses = torch.tensor([[[1.0, 0.0, 5.0], [0.0, 0.0, 0.0]]])
    expected = [[2.0, 1.0, 0.0, 5.0], [0.0] * 4]
    assert torch.equal(surprise(losses), torch.tensor([expected]) + LEAST)


def test_lanes_that_do_not_write_and_lanes_that_begin_anew():
    config = MemoryConfig(**SIZES, room="salience")
    core, (x, weights) = ContinuousMemory(config, L), document(2, 2)
    state = write_all(config, x, weights)
    after = core.write(state, x[0], torch.tensor([True, False]), weights=weights[0])
    assert torch.equal(after.coefficients[1], state.coefficients[1])
    assert after.weight[1] == state.weight[1] and after.weight[0] > state.weight[0]
    again = core.reset(after, torch.tensor([False, True]))
    assert again.weight[1] == 0 and again.weight[0] == after.weight[0]
    first = core.write(again, x[0], torch.tensor([True, True]), weights=weights[0])
    alone = core.write(core.empty(2, 1, 3), x[0], torch.tensor([True, True]), weights=weights[0])
    assert torch.equal(first.coefficients[1], alone.coefficients[1])


def test_gradient_descent_finds_what_is_asked_for():
    """Two tokens in sixteen are asked for by their keys, among six segments; one channel of the hidden state tells
    which, the others tell nothing. The vector learns that channel, and what is asked for is read better."""
    config = MemoryConfig(basis=24, sticky="off", room="salience")
    core, g, on = ContinuousMemory(config, 16), torch.Generator().manual_seed(0), torch.ones(4) > 0
    w = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.3)
    losses = []
    for _ in range(30):
        x = torch.randn(6, 4, 1, 16, 32, generator=g)  # keys and values of 16 channels
        asked = torch.rand(6, 4, 16, generator=g).topk(2).indices
        h = torch.randn(6, 4, 16, 6, generator=g)
        h[..., 2] = torch.zeros(6, 4, 16).scatter(2, asked, 1.0)
        state = core.empty(4, 1, 32)
        for k in range(6):
            state = core.write(state, x[k], on, weights=salience(h[k], w))
        points = core.at_centers(state.coefficients)[:, 0]  # [b, N, 32]
        facts = x[:, :, 0].gather(2, asked[..., None].expand(-1, -1, -1, 32)).transpose(0, 1)
        keys, values = facts.flatten(1, 2).chunk(2, -1)  # [b, 12, 16]
        read = torch.softmax(keys @ points[..., :16].mT, -1) @ points[..., 16:]
        losses.append((read - values).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert w[2] > 2 and w[2] > 5 * w[torch.arange(6) != 2].abs().max()
    assert losses[0] > 0.9 and sum(losses[-5:]) / 5 < 0.1


def test_edges_fill_the_room_in_order():
    start, end = torch.tensor([0.0, 0.75], dtype=F64), torch.tensor([1.0, 0.8], dtype=F64)
    at = edges(start, end, torch.tensor([[1.0, 1e-4, 3.0], [5.0, 5.0, 5.0]]))
    assert torch.equal(at[:, 0], start) and (at.diff(dim=-1) > 0).all()
    torch.testing.assert_close(at[:, -1], end, rtol=0, atol=1e-15)


def test_the_spread_of_room():
    one = torch.full((1, 10), 1e-9)
    one[0, 3] = 1.0
    assert spread(torch.ones(2, 10)).item() == pytest.approx(1)
    assert spread(one).item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"room": "salience", "contraction": 0.5}, "room: 'salience' needs contraction: uniform"),
        ({"room": "surprise", "contraction": 0.5}, "room: 'surprise' needs contraction: uniform"),
        ({"room": "salient"}, "'salient' is not one of even, salience, surprise"),
    ],
)
def test_mistakes_are_named(values, problem):
    with pytest.raises(UserError, match=problem):
        MemoryConfig(**values)
