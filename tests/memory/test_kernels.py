"""The Triton kernels against the plain forms: in Triton's interpreter, or on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: its kernels cannot be checked here")

from infty.memory import ContinuousMemory, MemoryConfig, density, resample
from infty.memory.basis import GaussianBasis
from infty.memory.kernels import fused, grid, histogram

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("tokens", "size", "d"), [(64, 64, 16), (37, 100, 8), (130, 72, 24)])
@pytest.mark.parametrize("widths", [(0.01,), (0.005, 0.02)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_read_is_the_plain_read(tokens, size, d, widths, dtype):
    g = torch.Generator().manual_seed(0)
    basis = GaussianBasis(size, widths)
    mu, variance = (
        torch.rand(1, 2, tokens, generator=g),
        10 ** (-5 * torch.rand(1, 2, tokens, generator=g)),
    )
    values = torch.randn(1, 2, size, d, generator=g).to(dtype)
    ours = [x.to(DEVICE).requires_grad_() for x in (mu, variance, values)]
    exact = [x.detach().double().cpu().requires_grad_() for x in ours]
    z = fused.read(*ours, *basis.on(DEVICE))
    expected = density.read_plain(*exact, basis)
    into = torch.randn(z.shape, generator=g)
    got = torch.autograd.grad((z * into.to(DEVICE)).sum(), ours)
    wanted = torch.autograd.grad((expected * into.double()).sum(), exact)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-2
    for a, b in zip((z, *got), (expected, *wanted)):
        assert torch.isfinite(a).all()
        assert (a.double().cpu() - b).norm() < tolerance * b.norm()
    assert z.dtype == torch.float32 and got[2].dtype == dtype


PLACES = {  # what a lane's old signal keeps, and where its new tokens end
    "a first segment": (0.0, 1.0),
    "a second": (0.5, 1.0),
    "room left": (0.25, 0.5),
    "a long book": (199 / 200, 1.0),
}


@pytest.mark.parametrize(
    ("size", "widths", "cells", "tokens", "channels", "groups"),
    [
        (72, (0.75 / 72,), 144, 70, 8, 1),
        (128, (0.002, 0.004), 150, 64, 24, 2),
        (40, (0.75 / 40,), 60, 1, 150, 1),
    ],
)
def test_the_grid_of_a_write_is_the_plain_one(size, widths, cells, tokens, channels, groups):
    g = torch.Generator().manual_seed(0)
    basis = GaussianBasis(size, widths)
    keep, end = torch.tensor(list(PLACES.values()), dtype=torch.float64, device=DEVICE).unbind(1)
    weight, u = resample.old_cells(keep, cells)
    weight[1] *= torch.rand(cells, generator=g).to(DEVICE)
    times = u[:, None].expand(-1, groups, -1) ** torch.arange(1, groups + 1, device=DEVICE)[:, None]
    shape = (len(PLACES), 2)
    ours = [
        torch.randn(*shape, n, channels, generator=g).to(DEVICE).requires_grad_()
        for n in (size, tokens)
    ]
    exact = [x.detach().double().requires_grad_() for x in ours]
    got = grid.grid(
        times, weight, ours[0], keep, end, ours[1], basis.on(DEVICE)[1], basis.each, resample.REACH
    )
    psi = basis.evaluate(times, torch.float64) * weight[:, None, :, None]
    expected = resample.heads_apart(psi, exact[0]) + resample.heads_apart(
        resample.coverage(keep, end, tokens, cells)[:, None], exact[1]
    )
    into = torch.randn(got.shape, generator=g).to(DEVICE)
    gradients = zip(
        torch.autograd.grad((got * into).sum(), ours),
        torch.autograd.grad((expected * into).sum(), exact),
    )
    for a, b in ((got, expected), *gradients):
        assert (a.double() - b).norm() < 1e-6 * b.norm()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bins", [128, 20])
def test_the_histogram_is_the_plain_one(bins, weighted):
    g = torch.Generator().manual_seed(0)
    mu, variance = (
        torch.rand(2, 3, 100, generator=g),
        10 ** (-5 * torch.rand(2, 3, 100, generator=g)),
    )
    weights = torch.rand(2, 100, generator=g) if weighted else None
    got = histogram.mass(
        *(x.to(DEVICE) for x in (mu, variance)),
        bins,
        None if weights is None else weights.to(DEVICE),
    )
    torch.testing.assert_close(
        got.cpu(), density.mass_plain(mu, variance, bins, weights), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("contraction", ["uniform", "doubling"])
def test_a_memory_does_on_a_gpu_what_it_does_on_a_cpu(contraction, monkeypatch):
    """Three segments, a lane reset on the way, the last segment shorter: signals, readings and gradients."""

    def document(device: str) -> list[torch.Tensor]:
        g = torch.Generator().manual_seed(0)
        core = ContinuousMemory(MemoryConfig(basis=96, contraction=contraction, bins=16), 40)
        state, everything = core.empty(2, 2, 16, device), []
        tokens = [
            torch.randn(2, 2, n, 16, generator=g).to(device).requires_grad_()
            for n in (40, 40, 40, 7)
        ]
        for i, x in enumerate(tokens):
            state = core.reset(state, torch.tensor([False, i == 2], device=device))
            state = core.write(state, x, torch.tensor([True, i != 1], device=device))
            mu, variance = (torch.rand(2, 2, 30, generator=g).to(device) for _ in range(2))
            state = core.with_histogram(
                state,
                density.histogram(mu, 0.1 * variance, 16).mean(1, keepdim=True),
                torch.tensor([True, True], device=device),
            )
            everything += [
                state.coefficients,
                state.histogram,
                density.read(mu, 0.1 * variance, state.coefficients, core.basis),
            ]
        gradients = torch.autograd.grad(everything[-1].square().sum(), tokens)
        return [x.detach().cpu() for x in (*everything, *gradients)]

    plain = document("cpu")
    for module in (density, resample):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)
    for a, b in zip(document(DEVICE), plain):
        assert (a - b).norm() < 1e-5 * b.norm() + 1e-12


COMPILE = """
import re, subprocess, sys
import torch
import triton, triton.language as tl
from pathlib import Path
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from infty.memory.kernels import fused, grid, histogram

INTEGERS = dict.fromkeys("T N d heads groups P places reach l c bins".split(), "i32")
PLACES = dict.fromkeys("times start end".split(), "*fp64")


def cases():
    for d in (64, 128):
        for kind, precision, name in ((torch.float32, tl.float32, "*fp32"), (torch.bfloat16, tl.bfloat16, "*bf16")):
            chosen = {"PRECISION": precision, "INTERPRETED": False, "B": fused.TILE[kind], "D": d}
            for kernel in (fused._forward, fused._backward_density, fused._backward_values):
                yield kernel, {"values": name, "dvalues": name}, chosen, fused.WARPS
        chosen = {"EACH": 1, "REACH": 6.0, "B": grid.TILE, "C": min(grid.CHANNELS, 2 * d)}
        for kernel in (grid._forward, grid._backward_signal, grid._backward_tokens):
            yield kernel, {}, chosen, grid.WARPS
    chosen = {"WEIGHTED": True, "TOKENS": histogram.TOKENS, "BINS": histogram.BINS}
    yield histogram._mass, {}, chosen, 4


for architecture in (80, 90):
    for kernel, types, chosen, warps in cases():
        types = INTEGERS | PLACES | types
        signature = {n: "constexpr" if n in chosen else types.get(n, "*fp32") for n in kernel.arg_names}
        constants = {n: chosen[n] for n in kernel.arg_names if n in chosen}
        made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", architecture, 32),
                              options={"num_warps": warps})
        binary = Path(sys.argv[1]) / "kernel.cubin"
        binary.write_bytes(made.asm["cubin"])
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True).stdout
        spilled = int(re.search(r"STACK:([0-9]+)", usage)[1])
        assert spilled == 0, (kernel.__name__, architecture, chosen, usage)
"""


def test_the_kernels_compile_for_gpus_and_fit_their_registers(tmp_path):
    """Needs no GPU: Triton brings its own assembler. A kernel that spills its registers would run many times slower."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
