"""Every kernel beside its plain form, and collectives of one rank: parts of `infty bench gpu`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from infty.hardware import GPU
from infty.memory import density, resample
from infty.memory.basis import GaussianBasis
from infty.memory.kernels import on_gpu


@dataclass(frozen=True)
class Shape:
    """What kernels are given: b lanes, h heads of d channels, T tokens, N functions."""

    b: int
    h: int
    d: int
    T: int
    N: int


SHAPES = {"tiny": Shape(1, 2, 16, 24, 32), "125m": Shape(8, 12, 64, 512, 512)}
BINS = 128
REPEATS = 10


@dataclass(frozen=True)
class Case:
    """A kernel: its two forms, what gradients reach, and what a forward and a backward pass of it needs at least."""

    kernel: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    operations: float
    bytes: float
    precision: str = "fp32"


def cases(shape: Shape, device: str) -> dict[str, Case]:
    """The kernels by name, with random inputs."""
    b, h, d, T, N = shape.b, shape.h, shape.d, shape.T, shape.N
    g = torch.Generator().manual_seed(0)
    basis = GaussianBasis(N, (0.75 / N,))
    mu = torch.rand(b, h, T, generator=g).to(device).requires_grad_()
    variance = (1e-5 + 0.01 * torch.rand(b, h, T, generator=g)).to(device).requires_grad_()
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        values = torch.randn(b, h, N, d, generator=g).to(device, dtype).requires_grad_()
        found[f"read, {name}"] = Case(
            lambda mu, variance, values: density.read(mu, variance, values, basis),
            lambda mu, variance, values: density.read_plain(mu, variance, values, basis),
            (mu, variance, values),
            8.0 * b * h * T * N * d,  # one product forward; for gradients D V^T twice, and r^T D
            b * h * (12.0 * T * d + 3 * values.element_size() * N * d),
            name,
        )
    found["grid of a write"] = _grid(shape, basis, device, g)
    found["histogram"] = Case(
        lambda mu, variance: density.histogram(mu, variance, BINS),
        lambda mu, variance: F.normalize(density.mass_plain(mu, variance, BINS, None), p=1, dim=-1),
        (mu.detach(), variance.detach()),
        4.0 * b * h * T * BINS,
        b * h * (8.0 * T + 4 * BINS),
    )
    return found


def _grid(shape: Shape, basis: GaussianBasis, device: str, g: torch.Generator) -> Case:
    b, h, N, cells, c = shape.b, shape.h, shape.N, 2 * shape.N, 2 * shape.d
    keep = torch.full((b,), 0.9, dtype=torch.float64, device=device)
    end = torch.ones_like(keep)
    weight, u = resample.old_cells(keep, cells)
    signal, x = (
        torch.randn(b, h, n, c, generator=g).to(device).requires_grad_() for n in (N, shape.T)
    )

    def kernel(signal: Tensor, x: Tensor) -> Tensor:
        return resample.grid(basis, u[:, None], weight, signal, keep, end, x, cells)

    def plain(signal: Tensor, x: Tensor) -> Tensor:
        old = resample.sample(basis, u[:, None], weight, signal)
        return old + resample.pool(keep, end, x, cells)

    band = resample.band_of(N, basis.each) or N
    touched = resample.touched(cells, shape.T)
    operations = 4.0 * b * h * c * (cells * band + shape.T * touched)
    return Case(kernel, plain, (signal, x), operations, 8.0 * b * h * c * (N + shape.T + cells))


def measured(shape: Shape, device: str, gpu: GPU | None) -> list[dict[str, Any]]:
    """A row for each kernel: milliseconds of both forms, the difference of what they give, shares of the device."""
    rows = []
    for name, case in cases(shape, device).items():
        row: dict[str, Any] = {"name": name, "kernel": on_gpu(case.inputs[0])}
        got, wanted = case.kernel(*case.inputs), case.plain(*case.inputs)
        row["difference"] = float((got - wanted).norm() / wanted.norm())
        del got, wanted
        row["ms"], row["peak_mib"] = _timed(case.kernel, case.inputs, device)
        row["plain_ms"], row["plain_peak_mib"] = _timed(case.plain, case.inputs, device)
        seconds = row["ms"] / 1e3
        row["tflops"] = case.operations / seconds / 1e12
        row["gb_per_second"] = case.bytes / seconds / 1e9
        if gpu is not None:
            row["share_of_peak"] = case.operations / seconds / gpu.peak(case.precision)
            row["share_of_bandwidth"] = case.bytes / seconds / gpu.bandwidth
        rows.append(row)
    return rows


def _timed(run: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: str) -> tuple:
    """Milliseconds of a forward and a backward pass, the least of several; MiB held at most (on a GPU)."""
    gpu = device.startswith("cuda")
    wait = torch.cuda.synchronize if gpu else lambda: None
    trained = [x for x in inputs if x.requires_grad]
    least = float("inf")
    for i in range(REPEATS + 1):
        if gpu and i == 1:
            torch.cuda.reset_peak_memory_stats()
        wait()
        start = time.perf_counter()
        result = run(*inputs)
        if trained:
            torch.autograd.grad(result.sum(), trained)
        wait()
        least = min(least, time.perf_counter() - start) if i else least
    return 1e3 * least, torch.cuda.max_memory_allocated() / 2**20 if gpu else None


def registers() -> list[dict[str, Any]]:
    """Registers and spilled bytes of every Triton kernel that this process has compiled."""
    try:
        import triton

        from infty.memory.kernels import fused, grid, histogram
    except ImportError:
        return []
    rows = []
    for module in (fused, grid, histogram):
        for name, function in vars(module).items():
            if isinstance(function, triton.runtime.JITFunction):
                rows += [
                    {"kernel": name, "registers": found.n_regs, "spills": found.n_spills}
                    for found in _compiled(function)
                ]
    return rows


def _compiled(function: Any) -> list[Any]:
    """What a function was compiled to, in as far as this version of Triton tells."""
    caches = getattr(function, "device_caches", None) or {}
    kept = [cache[0] if isinstance(cache, tuple) else cache for cache in caches.values()]
    every = [kernel for cache in kept for kernel in getattr(cache, "values", list)()]
    return [kernel for kernel in every if hasattr(kernel, "n_regs") and kernel.n_regs is not None]


def collectives(device: str, mebibytes: int) -> list[dict[str, Any]]:
    """Every collective of a run through its library, with one rank: milliseconds, and whether the result is right."""
    x = torch.arange(mebibytes * 2**18, device=device, dtype=torch.float32)
    out = torch.empty_like(x)
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(out.copy_(x)),
        "broadcast": lambda: dist.broadcast(out.copy_(x), src=0),
        "all_gather": lambda: dist.all_gather_into_tensor(out, x),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(out, x),
        "all_to_all": lambda: dist.all_to_all_single(out, x),
    }
    rows = []
    for name, call in calls.items():
        out.zero_()
        row: dict[str, Any] = {"name": name, "backend": dist.get_backend(), "mib": mebibytes}
        try:
            call()
        except (RuntimeError, ValueError) as error:  # gloo does not have all of them
            rows.append(row | {"problem": str(error).splitlines()[0]})
            continue
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        row["ms"] = 1e3 * (time.perf_counter() - start)
        rows.append(row | {"right": bool(torch.equal(out, x))})
    return rows
