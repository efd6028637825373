"""Reading: parameters, the expected signal by every path, histograms and their edges."""

from __future__ import annotations

import math

import pytest
import torch

from infty.memory import density
from infty.memory.basis import GaussianBasis
from infty.memory.kernels import blocked
from infty.memory.located import Gaussian, Sparsemax, Truncated
from infty.memory.reading import statistics

F64 = torch.float64


def case(lead, tokens, size, d, sharp=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    mu = torch.rand(*lead, tokens, generator=g, dtype=F64)
    variance = 10 ** (-6 * torch.rand(*lead, tokens, generator=g, dtype=F64))
    values = torch.randn(*lead, size, d, generator=g, dtype=F64)
    return [x.requires_grad_() for x in (mu, variance, values)]


def integral(f, low=0.0, high=1.0, points=200_001):
    t = torch.linspace(low, high, points, dtype=F64)
    return torch.trapezoid(f(t), t)


def test_expectation_is_the_integral():
    basis = GaussianBasis(32, (0.01, 0.05))
    for mu, sigma in ((0.3, 0.1), (0.99, 0.02), (0.5, 2.0)):
        r = density.expectation(
            torch.tensor([mu], dtype=F64), torch.tensor([sigma**2], dtype=F64), basis
        )[0]
        for j in (0, 7, 31):
            m, s = (float(x[j]) for x in basis.on(torch.device("cpu")))

            def product(t, m=m, s=s, mu=mu, sigma=sigma):
                gaussian = torch.exp(-0.5 * ((t - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
                return (
                    gaussian
                    * torch.exp(-0.5 * ((t - mu) / sigma) ** 2)
                    / (sigma * math.sqrt(2 * math.pi))
                )

            assert float(r[j]) == pytest.approx(
                float(integral(product, m - 12 * s, m + 12 * s)), rel=1e-6
            )


@pytest.mark.parametrize("block", [1 << 8, 1 << 12, 1 << 19])
@pytest.mark.parametrize("widths", [(0.006,), (0.005, 0.01)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 1, 3)])
def test_the_blocked_read_is_the_plain_read(lead, widths, block, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", block)
    basis = GaussianBasis(128, widths)
    exact = case(lead, 37, 128, 8)
    ours = [x.detach().float().requires_grad_() for x in exact]
    expected, z = density.read_plain(*exact, basis), density.read(*ours, basis)
    into = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * into.double()).sum(), exact)
    got = torch.autograd.grad((z * into).sum(), ours)
    for a, b in zip((z, *got), (expected, *wanted)):
        assert a.dtype == torch.float32
        assert (
            a.double() - b
        ).norm() < 2e-4 * b.norm()  # a float32 mean is off by 1e-5 of the narrowest width


def test_gradients_of_the_plain_read():
    basis = GaussianBasis(12, (0.1,))
    assert torch.autograd.gradcheck(lambda *x: density.read_plain(*x, basis), case((2,), 5, 12, 3))


def test_pooled_keys_are_projected_scores():
    torch.manual_seed(0)
    q, keys = torch.randn(2, 3, 7, 8), torch.randn(2, 3, 20, 8)
    w_mu, w_sigma, b_mu, b_sigma = torch.randn(20), torch.randn(20), torch.randn(3), torch.randn(3)
    scores = q @ keys.transpose(-1, -2) / math.sqrt(8)
    pooled = [torch.einsum("n,bhnd->bhd", w, keys) for w in (w_mu, w_sigma)]
    mu, variance = density.parameters(q, *pooled, b_mu, b_sigma, 1e-4)
    torch.testing.assert_close(mu, torch.sigmoid(scores @ w_mu + b_mu[:, None]))
    torch.testing.assert_close(
        variance, torch.nn.functional.softplus(scores @ w_sigma + b_sigma[:, None]) + 1e-4
    )
    clamped = density.parameters(q, *pooled, None, None, 0.7, clamp=True)[1]
    torch.testing.assert_close(
        clamped, torch.nn.functional.softplus(scores @ w_sigma).clamp(min=0.7)
    )


def test_a_histogram_holds_the_masses():
    mu, variance = torch.tensor([[[0.25, 0.9]]]), torch.tensor([[[0.01, 4.0]]])
    p = density.histogram(mu, variance, 4)[0, 0].double()
    phi = torch.distributions.Normal(mu.double(), variance.double().sqrt()).cdf
    edges = torch.linspace(0, 1, 5, dtype=F64)
    masses = sum(
        (phi(edges[1:, None, None, None]) - phi(edges[:-1, None, None, None]))[:, 0, 0, i]
        for i in (0, 1)
    )
    torch.testing.assert_close(p, masses / masses.sum(), rtol=1e-5, atol=1e-7)
    one = density.histogram(mu, variance, 4, weights=torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(one, density.histogram(mu[..., :1], variance[..., :1], 4))
    none = density.histogram(mu, variance, 4, weights=torch.zeros(1, 2))
    torch.testing.assert_close(none, torch.full((1, 1, 4), 0.25))


def test_divergence_and_statistics():
    mu, variance = torch.full((2, 3), 0.5), torch.full((2, 3), 0.05**2)
    assert density.kl(mu, variance, 0.05).abs().max() < 1e-6
    exact = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(0.5, s) for s in (0.2, 0.05))
    )
    torch.testing.assert_close(density.kl(mu, torch.full((2, 3), 0.2**2), 0.05), exact.expand(2, 3))
    mu, variance = mu[None], variance[None]
    wide = statistics(Gaussian(mu, torch.full((1, 2, 3), 0.6931)), 128)
    assert wide["outside"] == pytest.approx(0.548, abs=0.01)  # the paper's initial densities
    narrow = statistics(Gaussian(mu, variance), 128)
    assert narrow["outside"] < 1e-6 and narrow["entropy"] < wide["entropy"] <= math.log(128) + 1e-5
    assert narrow["sigma"] == pytest.approx(0.05) and narrow["mu"] == pytest.approx(0.5)
    at_the_edge = statistics(Sparsemax(0 * mu, variance), 128)
    assert (
        at_the_edge["outside"] == pytest.approx(0.5)
        and statistics(Truncated(0 * mu, variance), 8)["outside"] == 0
    )
