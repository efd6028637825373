"""The Triton kernels against the plain read: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

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


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from infty.memory.kernels import fused

for precision, name in ((tl.float32, "fp32"), (tl.bfloat16, "bf16")):
    chosen = {"PRECISION": precision, "INTERPRETED": False, "B": fused.TILE, "D": 64}
    for kernel in (fused._forward, fused._backward_density, fused._backward_values):
        kinds = {"T": "i32", "N": "i32", "d": "i32", "values": "*" + name, "dvalues": "*" + name}
        signature = {n: "constexpr" if n in chosen else kinds.get(n, "*fp32") for n in kernel.arg_names}
        constants = {n: chosen[n] for n in kernel.arg_names if n in chosen}
        triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """Needs no GPU: Triton brings its own assembler."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300,
                          env=environment | {"TRITON_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr[-2000:]
