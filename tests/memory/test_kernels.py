"""The Triton kernels against the plain read: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # must be set before triton is imported
pytest.importorskip("triton", reason="triton is not installed: its kernels cannot be checked here")

from infty.memory import density
from infty.memory.basis import GaussianBasis
from infty.memory.kernels import fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("tokens", "size", "d"), [(64, 64, 16), (37, 100, 8), (130, 72, 24)])
@pytest.mark.parametrize("widths", [(0.01,), (0.005, 0.02)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_read_is_the_plain_read(tokens, size, d, widths, dtype):
    g = torch.Generator().manual_seed(0)
    basis = GaussianBasis(size, widths).to(DEVICE)
    mu, variance = torch.rand(2, 3, tokens, generator=g), 10 ** (-5 * torch.rand(2, 3, tokens, generator=g))
    values = torch.randn(2, 3, size, d, generator=g).to(dtype)
    ours = [x.to(DEVICE).requires_grad_() for x in (mu, variance, values)]
    exact = [x.detach().double().cpu().requires_grad_() for x in ours]
    z = fused.read(*ours, basis.centers, basis.widths)
    expected = density.read_plain(*exact, basis.cpu())
    into = torch.randn(z.shape, generator=g)
    got = torch.autograd.grad((z * into.to(DEVICE)).sum(), ours)
    wanted = torch.autograd.grad((expected * into.double()).sum(), exact)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-2
    for a, b in zip((z, *got), (expected, *wanted)):
        assert torch.isfinite(a).all()
        assert (a.double().cpu() - b).norm() < tolerance * b.norm()
    assert z.dtype == torch.float32 and got[2].dtype == dtype
