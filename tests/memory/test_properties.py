"""What must hold of every memory, whatever the policy: properties, with hypothesis choosing the cases."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from infty.errors import UserError
from infty.memory import ContinuousMemory, MemoryConfig, MemoryState, density
from infty.memory.basis import GaussianBasis
from infty.memory.densities import FAMILIES, Gibbs
from infty.memory.reading import statistics
from infty.memory.writing import grid_tiles
from infty.tree import Tree

POLICIES = [0.5, 0.75, "uniform", "doubling", "learned"]
WARPED = [
    (policy, warp)
    for policy in POLICIES
    for warp in ("off", "quantile", "multinomial")
    if warp != "multinomial" or isinstance(policy, float)
]
L, H, C = 16, 2, 3
few = settings(max_examples=15, deadline=None)
kinds = st.tuples(st.sampled_from(WARPED), st.sampled_from(["shared", "per_head"])).map(
    lambda x: (*x[0], x[1])
)


def memory(policy, warp, heads="shared", **more):
    config = MemoryConfig(
        basis=32,
        widths=(0.02, 0.05),
        bins=16,
        contraction=policy,
        sticky=warp,
        sticky_heads=heads,
        **more,
    )
    return ContinuousMemory(config, L)


def filled(core, lanes, seed, writes=4):
    """Lanes that have written different numbers of segments and were read in different places."""
    g = torch.Generator().manual_seed(seed)
    state = core.empty(lanes, H, C)
    everyone = torch.ones(lanes, dtype=torch.bool)
    for k in range(writes):
        active = torch.rand(lanes, generator=g) < 0.7 if k else everyone
        past = torch.rand(state.histogram.shape, generator=g) ** 4
        state = core.with_histogram(state, past / past.sum(-1, keepdim=True), everyone)
        state = core.write(state, torch.randn(lanes, H, L, C, generator=g), active)
    return state


def same(a: MemoryState, b: MemoryState, lanes=slice(None)) -> bool:
    """Equal to the bit: what is promised of products of the same shape in the same place (docs/exactness.md)."""
    pairs = ((a.coefficients, b.coefficients), (a.histogram, b.histogram), (a.written, b.written))
    return all(torch.equal(x[lanes], y[lanes]) for x, y in pairs)


@few
@given(kinds, st.integers(0, 99))
def test_a_write_is_linear_in_signal_and_tokens(kind, seed):
    core = memory(*kind)
    state = filled(core, 3, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x, y = torch.randn(3, H, L, C, generator=g), torch.randn(3, H, L, C, generator=g)
    other = torch.randn(state.coefficients.shape, generator=g)
    active = torch.ones(3, dtype=torch.bool)
    both = MemoryState(state.coefficients - 2 * other, state.histogram, state.written)
    second = MemoryState(other, state.histogram, state.written)
    left = core.write(both, x - 2 * y, active).coefficients
    right = (
        core.write(state, x, active).coefficients - 2 * core.write(second, y, active).coefficients
    )
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def close(a: MemoryState, b: MemoryState) -> None:
    """Equal up to float32 rounding: what is promised of lanes in another order, and of another number of heads."""
    for x, y in ((a.coefficients, b.coefficients), (a.histogram, b.histogram)):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 * float(x.abs().max()))
    assert torch.equal(a.written, b.written)


@few
@given(kinds, st.integers(0, 99), st.permutations(range(4)))
def test_the_order_of_lanes_does_not_matter(kind, seed, order):
    """Up to rounding: a product may round its first rows differently from its last."""
    core = memory(*kind)
    state, order = filled(core, 4, seed), torch.tensor(order)
    x = torch.randn(4, H, L, C, generator=torch.Generator().manual_seed(seed))
    active = torch.tensor([True, False, True, True])
    seeds = torch.arange(4) + seed
    written = core.write(state, x, active, seeds)
    shuffled = core.write(state.map(lambda t: t[order]), x[order], active[order], seeds[order])
    close(written.map(lambda t: t[order]), shuffled)


@few
@given(kinds, st.integers(0, 99))
def test_lanes_are_alone(kind, seed):
    """Another lane's content, activity, length or reset changes nothing here, to the bit."""
    core = memory(*kind)
    state = filled(core, 3, seed)
    g = torch.Generator().manual_seed(seed)
    x, other = torch.randn(3, H, L, C, generator=g), torch.randn(3, H, L, C, generator=g)
    other[1] = x[1]
    seeds = torch.tensor([1, 2, 3])
    a = core.write(state, x, torch.tensor([True, True, False]), seeds)
    changed = core.reset(state, torch.tensor([True, False, False]))
    b = core.write(changed, other, torch.tensor([False, True, True]), seeds)
    assert same(a, b, slice(1, 2))
    assert same(state, a, slice(2, 3)) and same(changed, b, slice(0, 1))


@few
@given(kinds, st.integers(0, 99))
def test_a_reset_lane_is_a_fresh_lane(kind, seed):
    core = memory(*kind)
    state = core.reset(filled(core, 3, seed), torch.tensor([False, True, False]))
    fresh = core.empty(3, H, C)
    assert same(state, fresh, slice(1, 2))
    x = torch.randn(3, H, L, C, generator=torch.Generator().manual_seed(seed))
    active, seeds = torch.ones(3, dtype=torch.bool), torch.tensor([4, 5, 6])
    assert same(
        core.write(state, x, active, seeds), core.write(fresh, x, active, seeds), slice(1, 2)
    )


@few
@given(kinds, st.integers(0, 99))
def test_a_saved_and_loaded_state_goes_on_alike(kind, seed):
    core = memory(*kind)
    state = filled(core, 2, seed)
    lanes = Tree({"segments": torch.tensor([3, 5]), "memory": state.tree()})
    loaded = MemoryState(
        **lanes.map(torch.zeros_like).from_named(load(save(lanes.named())))["memory"]
    )
    assert same(state, loaded)
    x = torch.ones(2, H, L, C)
    active = torch.tensor([True, True])
    assert same(core.write(state, x, active), core.write(loaded, x, active))


@few
@given(kinds, st.integers(1, L), st.integers(0, 99))
def test_short_segments(kind, length, seed):
    """The last segment of a document, odd lengths and a single token."""
    core = memory(*kind)
    state = filled(core, 2, seed)
    x = torch.randn(2, H, length, C, generator=torch.Generator().manual_seed(seed))
    short = core.write(state, x, torch.tensor([True, True]))
    assert torch.isfinite(short.coefficients).all()
    assert torch.equal(short.written, state.written + 1)
    first = core.write(core.empty(2, H, C), x, torch.tensor([True, True]))
    assert torch.isfinite(first.coefficients).all()


@few
@given(
    kinds,
    st.sampled_from([family for family in FAMILIES.values() if not family.attends]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 99),
)
def test_extreme_queries_are_finite_with_their_gradients(kind, family, dtype, clamp, seed):
    core = memory(*kind)
    state = filled(core, 2, seed)
    coefficients = state.coefficients.requires_grad_()
    q = torch.randn(2, H, 40, C) * torch.logspace(-4, 4, 40)[:, None]
    q = q.to(dtype).requires_grad_()
    keys = torch.ones(2, H, C), -torch.ones(2, H, C)
    bias = torch.tensor([-30.0, 30.0])
    mu, variance = density.parameters(q, *keys, bias, bias, 1e-6, clamp)
    place = Gibbs(q, 32 * coefficients, core.basis, 64) if family is Gibbs else family(mu, variance)
    z, past, figures = (
        place.read(coefficients, core.basis),
        place.histogram(16),
        statistics(place, 16),
    )
    past = past if kind[2] == "per_head" else past.mean(1, keepdim=True)
    state = core.with_histogram(state, past, torch.tensor([True, True]))
    new = core.write(state, z[:, :, :L], torch.tensor([True, True])).coefficients
    (z.sum() + new.sum() + density.kl(mu, variance, 0.05).sum()).backward()
    everything = (mu, variance, z, past, new, q.grad, coefficients.grad, *figures.values())
    assert all(torch.isfinite(t).all() for t in everything)


@pytest.mark.parametrize(("policy", "warp"), WARPED)
def test_gradients_of_a_write(policy, warp):
    """Finite differences through two writes in float64, with lanes at their first and at later writes."""
    core = memory(policy, warp, precision="float64")
    state = filled(core, 2, 3)
    state = core.reset(state, torch.tensor([True, False]))
    x = torch.randn(2, H, L, C, requires_grad=True)
    old = state.coefficients.clone().requires_grad_()

    def twice(old, x):
        s = MemoryState(old, state.histogram, state.written)
        s = core.write(s, x, torch.tensor([True, True]))
        return core.write(s, x * x, torch.tensor([False, True])).coefficients

    into = torch.randn(state.coefficients.shape)
    gradients = torch.autograd.grad((twice(old, x) * into).sum(), (old, x))
    for variable, gradient in zip((old, x), gradients):
        direction = torch.randn(variable.shape)
        step = 1e-2 * direction
        with torch.no_grad():
            ends = [
                (twice(*(v + sign * step if v is variable else v for v in (old, x))) * into)
                .double()
                .sum()
                for sign in (1, -1)
            ]
        numeric = (ends[0] - ends[1]) / 2e-2
        expected = (gradient * direction).double().sum()
        torch.testing.assert_close(numeric, expected, rtol=1e-3, atol=1e-3)


def test_without_backprop_nothing_flows_through_old_segments():
    core = memory("uniform", "off", backprop=False)
    state = filled(core, 2, 1)
    old = state.coefficients.clone().requires_grad_()
    x = torch.randn(2, H, L, C, requires_grad=True)
    new = core.write(
        MemoryState(old, state.histogram, state.written), x, torch.tensor([True, True])
    )
    new.coefficients.sum().backward()
    assert old.grad is None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_an_even_histogram_is_no_warp(policy):
    """Quantiles of uniform attention are the plain contraction."""
    plain, warped = (memory(policy, warp, precision="float64") for warp in ("off", "quantile"))
    a, b = plain.empty(1, H, C), warped.empty(1, H, C)
    for k in range(5):
        x = torch.randn(1, H, L, C, generator=torch.Generator().manual_seed(k))
        a, b = plain.write(a, x, torch.tensor([True])), warped.write(b, x, torch.tensor([True]))
    torch.testing.assert_close(
        a.coefficients, b.coefficients, rtol=1e-4, atol=1e-4 * float(a.coefficients.abs().max())
    )


def test_doubling_appends_while_there_is_room():
    plan = memory("doubling", "off").writing.policy.plan(torch.arange(1, 9))
    room = torch.tensor([2, 4, 4, 8, 8, 8, 8, 16]).double()
    assert plan.append.tolist() == [False, False, True, False, True, True, True, False]
    torch.testing.assert_close(plan.keep, torch.arange(1, 9) / room)
    torch.testing.assert_close(plan.end, torch.arange(2, 10) / room)


def test_a_wrong_shape_is_refused():
    core = memory("uniform", "off")
    with pytest.raises(UserError, match="lanes, heads, tokens, channels"):
        core.write(core.empty(1, H, C), torch.zeros(1, H, C), torch.tensor([True]))


def test_autocast_does_not_reach_the_memory():
    core = memory("uniform", "quantile")
    state = filled(core, 2, 0)
    x, q, key = torch.randn(2, H, L, C), torch.randn(2, H, 5, C), torch.randn(2, H, C)

    def everything():
        new = core.write(state, x, torch.tensor([True, True]))
        place = density.parameters(q, key, key, None, None, 1e-6)
        z = density.read(*place, new.coefficients, core.basis)
        return new.coefficients, *place, z, density.histogram(*place, 8)

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        cast = everything()
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


def test_operators_do_not_depend_on_the_default_device():
    """A model may be made on the meta device; what is cached must not be."""
    config = memory("uniform", "off", ridge=0.25, samples=70).config
    with torch.device("meta"):
        made, _ = grid_tiles(config)
        centers, _ = GaussianBasis(13, (0.25,)).on(torch.device("cpu"))
    assert made.entries.device.type == centers.device.type == "cpu"
    assert made.entries.isfinite().all() and made.entries.abs().sum() > 0


def test_draws_need_a_constant_contraction():
    """With a policy they would be drawn anew at every segment of a book."""
    with pytest.raises(UserError, match="sticky: 'multinomial' forgets a book"):
        memory("uniform", "multinomial")


@pytest.mark.parametrize(("policy", "warp"), WARPED)
def test_heads_that_are_sampled_apart_are_memories_of_their_own(policy, warp):
    """`sticky_heads: per_head` with two heads, and two memories of one head each: equal up to rounding.

    Two heads are one wide product, one head is a narrow one: a BLAS may sum them in different orders.
    """
    both, one = memory(policy, warp, "per_head"), memory(policy, warp)
    state = both.empty(2, H, C)
    alone = [one.empty(2, 1, C) for _ in range(H)]
    everyone = torch.tensor([True, True])
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        x, past = (
            torch.randn(2, H, L, C, generator=g),
            torch.softmax(3 * torch.randn(2, H, 16, generator=g), -1),
        )
        state = both.write(both.with_histogram(state, past, everyone), x, everyone)
        alone = [
            one.write(
                one.with_histogram(s, past[:, i : i + 1], everyone), x[:, i : i + 1], everyone
            )
            for i, s in enumerate(alone)
        ]
        for i, s in enumerate(alone):
            close(
                MemoryState(
                    state.coefficients[:, i : i + 1], state.histogram[:, i : i + 1], state.written
                ),
                s,
            )


def test_what_generation_has_cached_can_be_trained_with():
    """Tensors made in inference mode can never be saved for a gradient."""
    config = MemoryConfig(basis=24, widths=(0.031,), bins=8, contraction=0.5, sticky="off")
    x = torch.randn(1, 1, 5, 2)
    with torch.inference_mode():
        core = ContinuousMemory(config, L)
        core.write(core.empty(1, 1, 2), x, torch.tensor([True]))  # operators of a shorter segment
        core.basis.evaluate(torch.rand(3, dtype=torch.float64))
    t = torch.rand(3, dtype=torch.float64, requires_grad=True)
    new = core.write(core.empty(1, 1, 2), x.requires_grad_(), torch.tensor([True]))
    (new.coefficients.sum() + core.basis.evaluate(t).sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(t.grad).all()
