"""The sparse forms of a write against the plain ones, and a whole write against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from infty.memory import ContinuousMemory, MemoryConfig
from infty.memory.basis import GaussianBasis
from infty.memory.resample import band_of, banded, coverage, heads_apart, old_cells, pool, sample
from support.reference import F64, basis, carried, first_operator, psi, sticky_times


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("size", "widths"), [(256, (0.75 / 256,)), (512, (0.0005, 0.001))])
def test_banded_samples_are_samples(size, widths, groups):
    core = GaussianBasis(size, widths)
    assert band_of(size, widths) is not None
    times = torch.rand(2, groups, 300, dtype=F64)
    times[:, :, :3] = torch.tensor([0.0, 1.0, 0.5])
    times = times.sort().values
    weight = torch.rand(2, 300, dtype=F64)
    signal = torch.randn(2, 3, size, 5, dtype=F64, requires_grad=True)
    fast = sample(core, times, weight, signal)
    plain = heads_apart(core.evaluate(times, F64) * weight[:, None, :, None], signal)
    torch.testing.assert_close(
        fast, plain, rtol=1e-6, atol=1e-5 * float(plain.detach().abs().max())
    )
    into = torch.randn(fast.shape, dtype=F64)
    (a,) = torch.autograd.grad((fast * into).sum(), signal)
    (b,) = torch.autograd.grad((plain * into).sum(), signal)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5 * float(b.abs().max()))


def test_banded_gradients_by_finite_differences():
    core = GaussianBasis(128, (0.75 / 128,))
    times = torch.rand(1, 1, 7, dtype=F64).sort().values
    width = band_of(128, core.each)
    first = banded(core, times, width, F64).first
    assert first.min() >= 0 and first.max() + width <= 128
    signal = torch.randn(1, 1, 128, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: sample(core, times, None, s), signal)


@pytest.mark.parametrize("tokens", [1, 5, 31, 64, 200])
@pytest.mark.parametrize(("start", "end"), [(0, 1), (0.5, 1), (0.75, 0.875), (199 / 200, 1)])
def test_sparse_pooling_is_pooling(tokens, start, end):
    start, end = torch.tensor([start, 0.5], dtype=F64), torch.tensor([end, 1.0], dtype=F64)
    x = torch.randn(2, 3, tokens, 4, dtype=F64, requires_grad=True)
    fast = pool(start, end, x, 128)
    plain = heads_apart(coverage(start, end, tokens, 128)[:, None], x)
    torch.testing.assert_close(fast, plain)
    into = torch.randn(fast.shape, dtype=F64)
    a, b = (torch.autograd.grad((y * into).sum(), x)[0] for y in (fast, plain))
    torch.testing.assert_close(a, b)


def test_every_cell_is_covered_once():
    keep = torch.rand(20, dtype=F64)
    new = coverage(keep, torch.ones(20, dtype=F64), 50, 64).sum(-1)
    torch.testing.assert_close(old_cells(keep, 64)[0] + new, torch.ones(20, 64, dtype=F64))


def by_loops(config, xs, histograms):
    """Uniform and doubling as their definitions say, one cell at a time. xs: [L, c] float64 each."""
    cells = 2 * config.basis
    m, s = basis(config.basis, config.widths)
    g = first_operator(cells, m, s, config.ridge)
    B, room = torch.zeros(config.basis, xs[0].shape[1], dtype=F64), 0
    past = torch.ones(config.bins, dtype=F64) / config.bins
    for k, (x, p) in enumerate(zip(xs, histograms)):
        append = False
        if config.contraction == "uniform":
            keep, end = k / (k + 1), 1.0
        else:
            append = k < room
            room = room if append else max(1, 2 * room)
            keep, end = k / room, (k + 1) / room
        grid = torch.zeros(cells, x.shape[1], dtype=F64)
        follow = (1 - config.explore) * (
            1 - keep
        )  # attention shares out the room that new tokens take
        past = past + (p - past) / config.attention_span
        p = follow * past + (1 - follow) / len(p)
        for i in range(cells):
            low, high = i / cells, (i + 1) / cells
            if low < keep and not append:
                part = min(high, keep)
                u = (low + part) / 2 / keep
                upper = torch.cumsum(p, 0)
                j = int((upper < u).sum())
                t = (j + 1 - (float(upper[j]) - u) / float(p[j])) / len(p)
                grid[i] += cells * (part - low) * (psi(torch.tensor([t], dtype=F64), m, s) @ B)[0]
            for j in range(len(x)):
                a, b = (keep + (end - keep) * q / len(x) for q in (j, j + 1))
                grid[i] += cells * max(0.0, min(b, high) - max(a, low)) * x[j]
        past = carried(past, p, keep, end, append)
        B = g.T @ grid + (B if append else 0)
    return B


@pytest.mark.parametrize("policy", ["uniform", "doubling"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_document_against_plain_loops(policy, precision):
    torch.manual_seed(0)
    config = MemoryConfig(
        basis=128,
        contraction=policy,
        sticky="quantile",
        bins=16,
        precision=precision,
        attention_span=3,
    )
    core = ContinuousMemory(config, 24)
    state = core.empty(1, 1, 3)
    xs = [torch.randn(n, 3) for n in (24, 24, 24, 24, 24, 7)]
    histograms = [torch.softmax(2 * torch.randn(16), 0) for _ in xs]
    for x, p in zip(xs, histograms):
        state = core.with_histogram(state, p[None, None], torch.tensor([True]))
        state = core.write(state, x[None, None], torch.tensor([True]))
    expected = by_loops(config, [x.double() for x in xs], [p.double() for p in histograms])
    error = (state.coefficients[0, 0].double() - expected).norm() / expected.norm()
    # Between writes a state is float32, the histogram too: a quantile is off by some 1e-7 of [0, 1],
    # which is N times as many functions' widths.
    assert error < (1e-5 if precision == "float32" else 5e-6), float(error)


def test_quantiles_place_samples_where_attention_fell():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=F64)
    times = sticky_times(p, "quantile", 10)
    assert ((times > 0.5) & (times <= 0.75)).sum() == 6 and math.isclose(float(times[-1]), 1.0)
