"""Every family of densities against numerical integration in float64, with gradients."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import pytest
import torch

from infty.memory.basis import GaussianBasis
from infty.memory.densities import FAMILIES, Gibbs
from infty.memory.located import Located, Sparsemax, Truncated

F64 = torch.float64
LOCATED = [family for family in FAMILIES.values() if issubclass(family, Located)]
CASES = [(0.3, 0.1), (0.02, 0.05), (0.98, 0.5), (0.5, 0.003), (0.7, 30.0)]  # mu, sigma


def pdf(family, t, mu, sigma):
    """The density as its definition says, normalised by hand."""
    if family is Sparsemax:
        a = (1.5 * sigma**2) ** (1 / 3)
        return torch.clamp(a * a - (t - mu) ** 2, min=0) / (2 * sigma**2)
    p = torch.exp(-0.5 * ((t - mu) / sigma) ** 2)
    if family is Truncated:
        return torch.where((t >= 0) & (t <= 1), p, 0.0) / whole(mu, sigma)
    return p / (sigma * math.sqrt(2 * math.pi))


@lru_cache
def whole(mu, sigma):
    t = torch.linspace(0, 1, 1_000_001, dtype=F64)
    return torch.trapezoid(torch.exp(-0.5 * ((t - mu) / sigma) ** 2), t)


def integrated(family, mu, sigma, basis):
    """Integral of density times basis function, over where the function lives, on both sides of every kink."""
    out = []
    a = (1.5 * sigma**2) ** (1 / 3)
    for m, s in zip(*(x.double().tolist() for x in basis.on(torch.device("cpu")))):
        low, high = m - 10 * s, m + 10 * s
        kinks = [mu - a, mu + a] if family is Sparsemax else [0.0, 1.0]
        cuts = [low, *sorted(k for k in kinks if low < k < high), high]
        total = 0.0
        for x, y in pairwise(cuts):
            inner = 1e-12 * (y - x)  # stay on this side of the kink
            t = torch.linspace(x + inner, y - inner, 20_001, dtype=F64)
            psi = torch.exp(-0.5 * ((t - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
            total += float(torch.trapezoid(psi * pdf(family, t, mu, sigma), t))
        out.append(total)
    return torch.tensor(out, dtype=F64)


@pytest.mark.parametrize("family", LOCATED)
@pytest.mark.parametrize(("mu", "sigma"), CASES)
def test_expectations_are_integrals(family, mu, sigma):
    basis = GaussianBasis(16, (0.02, 0.06))
    place = family(torch.tensor([mu], dtype=F64), torch.tensor([sigma**2], dtype=F64))
    expected = integrated(family, mu, sigma, basis)
    torch.testing.assert_close(
        place.expectation(basis)[0], expected, rtol=1e-5, atol=1e-7 * float(expected.max())
    )


@pytest.mark.parametrize("family", LOCATED)
def test_gradients_by_finite_differences(family):
    basis = GaussianBasis(12, (0.05,))
    mu = torch.tensor([[0.3, 0.9, 0.5, 0.01]], dtype=F64, requires_grad=True)
    variance = torch.tensor([[0.01, 0.3, 1e-3, 0.05]], dtype=F64, requires_grad=True)
    values = torch.randn(1, 12, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, v, x: family(m, v).read(x, basis), (mu, variance, values)
    )


@pytest.mark.parametrize("family", LOCATED)
def test_single_precision_is_near_double(family):
    basis = GaussianBasis(128, (0.75 / 128,))
    g = torch.Generator().manual_seed(0)
    mu, variance = torch.rand(2, 3, 40, generator=g), 10 ** (-6 * torch.rand(2, 3, 40, generator=g))
    values = torch.randn(2, 3, 128, 5, generator=g)
    inputs = [x.requires_grad_() for x in (mu, variance, values)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    z, expected = (family(m, v).read(x, basis) for m, v, x in (inputs, exact))
    into = torch.randn(z.shape, generator=g)
    got = torch.autograd.grad((z * into).sum(), inputs)
    wanted = torch.autograd.grad((expected * into.double()).sum(), exact)
    for a, b in zip((z, *got), (expected, *wanted)):
        assert torch.isfinite(a).all()
        assert (a.double() - b).norm() < 2e-3 * b.norm()


@pytest.mark.parametrize("family", LOCATED)
def test_histograms_hold_the_masses(family):
    mu, variance = torch.tensor([[[0.3, 0.95]]]), torch.tensor([[[0.01, 0.04]]])
    p = family(mu, variance).histogram(8)[0, 0].double()
    edges = torch.linspace(0, 1, 9, dtype=F64)
    masses = torch.zeros(8, dtype=F64)
    for m, v in ((0.3, 0.01), (0.95, 0.04)):
        for i in range(8):
            t = torch.linspace(edges[i], edges[i + 1], 20_001, dtype=F64)
            masses[i] += torch.trapezoid(pdf(family, t, m, math.sqrt(v)), t)
    torch.testing.assert_close(p, masses / masses.sum(), rtol=1e-3, atol=1e-6)
    first = family(mu, variance).histogram(8, weights=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(first, family(mu[..., :1], variance[..., :1]).histogram(8))


@pytest.mark.parametrize("family", LOCATED)
def test_extremes_are_finite(family):
    basis = GaussianBasis(64, (0.75 / 64,))
    mu = torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0]], requires_grad=True)
    variance = torch.tensor([[1e-6, 1e-6, 1e4, 1e4, 1e-6]], requires_grad=True)
    z = family(mu, variance).read(torch.randn(1, 64, 4), basis)
    z.sum().backward()
    assert all(torch.isfinite(t).all() for t in (z, mu.grad, variance.grad))


@pytest.mark.parametrize(("size", "bins"), [(128, 128), (512, 128), (512, 16)])
def test_the_grid_of_a_gibbs_density_is_fine_enough(size, bins):
    """The default basis, queries and keys whose scores are of order 1: beside a grid sixteen times finer."""
    g = torch.Generator().manual_seed(0)
    basis = GaussianBasis(size, (0.75 / size,))
    q = torch.randn(1, 1, 40, 32, generator=g, dtype=F64)
    keys, values = (torch.randn(1, 1, size, 32, generator=g, dtype=F64) / size for _ in range(2))
    points = Gibbs.points_for(size, bins)
    assert points % bins == 0
    z, fine = (Gibbs(q, keys, basis, n).read(values, basis) for n in (points, 16 * points))
    assert (z - fine).norm() < 1e-3 * fine.norm()


def test_gibbs_is_the_integral_it_stands_for():
    torch.manual_seed(0)
    basis = GaussianBasis(16, (0.05,))
    q, keys, values = (
        torch.randn(s, dtype=F64) for s in ((1, 1, 3, 4), (1, 1, 16, 4), (1, 1, 16, 2))
    )
    keys /= 16
    place = Gibbs(q, keys, basis, 512)
    t = torch.linspace(0, 1, 2**17 + 1, dtype=F64)
    psi = basis.evaluate(t, F64)
    weight = torch.exp(q[0, 0] @ (psi @ keys[0, 0]).T / 2)
    p = weight / torch.trapezoid(weight, t)[:, None]
    expected = torch.stack([torch.trapezoid(row[:, None] * psi, t, dim=0) for row in p])
    torch.testing.assert_close(place.expectation(basis)[0, 0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(place.read(values, basis), place.expectation(basis) @ values)
    inputs = [x.requires_grad_() for x in (q, keys, values)]
    assert torch.autograd.gradcheck(lambda q, k, v: Gibbs(q, k, basis, 64).read(v, basis), inputs)
    masses = place.histogram(128)[0, 0]
    bins = p.mean(0)[:-1].reshape(128, -1).mean(1) / 128
    torch.testing.assert_close(masses.double(), bins / bins.sum(), rtol=1e-3, atol=1e-6)
