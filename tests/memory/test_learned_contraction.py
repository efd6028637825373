"""A contraction whose rate is learned: where segments lie, and the gradient of the rate."""

from __future__ import annotations

import pytest
import torch

from infty.errors import UserError
from infty.memory import ContinuousMemory, MemoryConfig

L = 16


def write_all(core: ContinuousMemory, xs: torch.Tensor, rate: torch.Tensor | None):
    """Segments xs [S, L, c] into one lane, one head."""
    state = core.empty(1, 1, xs.shape[-1])
    for x in xs:
        state = core.write(state, x[None, None], torch.ones(1, dtype=torch.bool), rate=rate)
    return state


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_segments_lie_where_the_rate_says(rate):
    """Segment k of n is 1 in channel k and 0 in the others: [0, 1] is shared out as keep = k/(k + rate) says."""
    segments = 4
    core = ContinuousMemory(
        MemoryConfig(basis=256, ridge=0.01, contraction="learned", sticky="off"), L
    )
    xs = torch.eye(segments)[:, None].expand(segments, L, segments)
    state = write_all(core, xs, torch.tensor(rate))
    edges = [0.0, 1.0]
    for k in range(1, segments):
        keep = k / (k + rate)
        edges = [e * keep for e in edges] + [1.0]
    for k in range(segments):
        middle = torch.tensor([[[(edges[k] + edges[k + 1]) / 2]]], dtype=torch.float64)
        read = core.basis.evaluate(middle, torch.float32)[0, 0] @ state.coefficients[0, 0]
        torch.testing.assert_close(read[0], torch.eye(segments)[k], rtol=0, atol=0.05)


@pytest.mark.parametrize("sticky", ["off", "quantile"])
def test_at_rate_one_it_is_the_uniform_policy(sticky):
    g = torch.Generator().manual_seed(0)
    xs, states = torch.randn(5, L, 3, generator=g), []
    for policy, rate in (("uniform", None), ("learned", torch.ones(1))):
        core = ContinuousMemory(
            MemoryConfig(basis=32, contraction=policy, sticky=sticky, precision="float64"), L
        )
        states.append(write_all(core, xs, rate).coefficients)
    torch.testing.assert_close(*states, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["off", "quantile with an even histogram"])
def test_the_gradient_of_the_rate_by_finite_differences(kind):
    """In float64 but for the stored coefficients; the rate is away from where cells begin and end."""
    config = MemoryConfig(
        basis=16, contraction="learned", sticky=kind.split()[0], explore=1.0, precision="float64"
    )
    core, g = ContinuousMemory(config, L), torch.Generator().manual_seed(1)
    # Smooth tokens: at a jump inside a cell the derivative changes from cell to cell.
    xs = torch.linspace(0, 6, 4 * L)[:, None].mul(torch.tensor([1.0, 0.7])).sin().view(4, L, 2)
    weight = torch.randn(16, 2, generator=g)

    def value(log_rate: torch.Tensor) -> torch.Tensor:
        return (write_all(core, xs, log_rate.exp()).coefficients[0, 0] * weight).double().sum()

    at = torch.tensor([0.3], requires_grad=True)
    (slope,) = torch.autograd.grad(value(at), at)
    step = 2e-3
    with torch.no_grad():
        expected = (value(at + step) - value(at - step)) / (2 * step)
    assert slope.item() == pytest.approx(expected.item(), rel=2e-2)
    assert abs(expected.item()) > 1e-3


@pytest.mark.parametrize(
    "values, problem",
    [
        ({"contraction": "learned", "backprop": False}, "needs backprop"),
        ({"contraction": "lerned"}, "or one of uniform, doubling, learned"),
        ({"sticky": "quantiles"}, "is not one of"),
        ({"overrides": {0: {"density": "gibbs"}}}, r"overrides.0: density cannot differ"),
        ({"overrides": {2: {"basis": 0}}}, r"overrides\.2\.basis: 0 must be"),
        ({"overrides": {2: {"basis": "many"}}}, r"overrides\.2\.basis: many must be"),
    ],
)
def test_mistakes_are_named(values, problem):
    with pytest.raises(UserError, match=problem):
        MemoryConfig(**values)


def test_an_override_of_the_basis_brings_widths_that_fit():
    config = MemoryConfig(
        basis=64, overrides={"1": {"basis": 16}, "2": {"basis": 16, "widths": [0.2]}}
    )
    assert (
        config.of(0).widths == (0.75 / 64,)
        and config.of(1).widths == (0.75 / 16,)
        and config.of(2).widths == (0.2,)
    )
    assert MemoryConfig(basis=64, widths=(0.3,), overrides={1: {"basis": 16}}).of(1).widths == (
        0.3,
    )
