"""`infty bench memory`: time and memory of one memory layer, beside the paper's layer written down plainly."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty_tools.bench import figures
from infty_tools.options import any_path, check_new_file, device_here, utf8, whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def memory(
    batch: Annotated[int, typer.Option(parser=whole(1, 65_536), metavar="N", help="Lanes.")] = 4,
    segment: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Tokens in a segment.")
    ] = 512,
    hidden: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Hidden size.")
    ] = 768,
    heads: Annotated[int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Heads.")] = 12,
    basis: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Basis functions.")
    ] = 512,
    repeats: Annotated[
        int,
        typer.Option(
            parser=whole(1, 10_000), metavar="N", help="Runs of each; the fastest counts."
        ),
    ] = 5,
    threads: Annotated[
        int,
        typer.Option(
            parser=whole(0, 4_096), metavar="N", help="CPU threads; 0 leaves torch's choice."
        ),
    ] = 2,
    device: Annotated[str, typer.Option(parser=utf8, help="cpu, cuda, or auto.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(parser=any_path, metavar="PATH", help="File for the figures as JSON."),
    ] = None,
) -> None:
    """Forward and backward of write + read for one segment: the paper's layer, its products alone, and ours."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts bytes talks a lot
    import torch

    from infty.errors import UserError

    if hidden % heads:
        raise UserError(f"--hidden: {hidden} is not divisible by {heads} heads")
    if out is not None:
        check_new_file(out, "--out")
    where = device_here(device)
    if where.type == "cpu" and threads:
        torch.set_num_threads(threads)
    sizes = Sizes(batch, segment, hidden, heads, basis)
    rows = measure(sizes, repeats, where)
    typer.echo(
        f"{sizes}, {where}, {torch.get_num_threads()} threads; forward + backward, fastest of {repeats}"
    )
    typer.echo(_table(rows))
    if out is not None:
        content = {
            "sizes": vars(sizes),
            "device": str(where),
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        figures.write(out, content)
        typer.echo(f"wrote {out}")


@dataclass(frozen=True)
class Sizes:
    """What is measured: b lanes, L tokens, e hidden, h heads, N functions."""

    b: int
    L: int
    e: int
    h: int
    N: int

    @property
    def d(self) -> int:
        return self.e // self.h


def measure(sizes: Sizes, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Rows with name, seconds and peak_mib (memory beyond what was held before) of every variant."""
    import torch

    torch.manual_seed(0)
    inputs = _inputs(sizes, device)
    variants: dict[str, Callable[[], Tensor]] = {
        "paper, plain": _transcription(sizes, inputs, device),
        "paper, its products alone": _products(sizes, inputs, device),
        "infty, signal hidden": _ours(sizes, inputs, device, "hidden"),
        "infty, signal heads": _ours(sizes, inputs, device, "heads"),
        "  of which the write": _write_only(sizes, device),
        "  of which the read": _read_only(sizes, device),
    }
    best = {name: math.inf for name in variants}
    for _ in range(
        repeats + 1
    ):  # the first round warms up; interleaved, so that all see the same machine
        for name, run in variants.items():
            best[name] = min(best[name], _timed(run, inputs, device))
    return [
        {"name": name, "seconds": best[name], "peak_mib": _peak(run, inputs, device)}
        for name, run in variants.items()
    ]


def _inputs(sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    import torch

    b, L, e, h, N = sizes.b, sizes.L, sizes.e, sizes.h, sizes.N
    scale = {
        "q": 1.0,
        "x": 1.0,
        "key": e**-0.5,
        "value": e**-0.5,
        "out": e**-0.5,
        "mu": 0.1,
        "sigma": 0.1,
    }
    shapes = {
        "q": (b, h, L, sizes.d),
        "x": (b, L, e),
        "key": (e, e),
        "value": (e, e),
        "out": (e, e),
        "mu": (1, N),
        "sigma": (1, N),
    }
    return {
        k: (scale[k] * torch.randn(s, device=device)).requires_grad_() for k, s in shapes.items()
    }


def _transcription(
    sizes: Sizes, w: dict[str, Tensor], device: torch.device
) -> Callable[[], Tensor]:
    """The paper's layer as its formulas read: projected keys, scores, natural parameters, autograd backward."""
    import torch
    import torch.nn.functional as F

    from infty.memory import regression
    from infty.memory.basis import GaussianBasis, gaussian, placement

    b, L, h, d, N = sizes.b, sizes.L, sizes.h, sizes.d, sizes.N
    widths = (0.005, 0.01)
    core = GaussianBasis(N, widths)
    G = regression.later_write(N, widths, 0.5, N, L, 0.5).float().to(device)
    even = torch.arange(1, N + 1, dtype=torch.float64) / N
    samples = gaussian(even, *placement(N, widths)).float().to(device)
    past = torch.randn(b, N, sizes.e, device=device) / N

    def run() -> Tensor:
        old = past.transpose(1, 2) @ samples.T
        B = (torch.cat([old, w["x"].transpose(1, 2)], 2) @ G).transpose(1, 2)
        keys = F.linear(B, w["key"]).view(b, N, h, d).transpose(1, 2)
        values = F.linear(B, w["value"]).view(b, N, h, d).transpose(1, 2)
        scores = (w["q"] / math.sqrt(d)) @ keys.transpose(-1, -2)
        mu = torch.sigmoid(F.linear(scores, w["mu"]))
        variance = F.softplus(F.linear(scores, w["sigma"])).clamp(min=1e-4)
        theta1, theta2 = mu / variance, -1 / (2 * variance)
        variance = -0.5 / theta2
        mu = theta1 * variance
        centers, spread = core.on(mu.device)
        total = variance + spread**2
        r = torch.exp(-0.5 * (mu - centers) ** 2 / total) / torch.sqrt(2 * math.pi * total)
        context = (
            (values.transpose(-1, -2) @ r.transpose(-1, -2)).permute(0, 3, 1, 2).reshape(b, L, -1)
        )
        return F.linear(context, w["out"])

    return run


def _products(sizes: Sizes, w: dict[str, Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The matrix products of that layer, on numbers that are already there, and nothing between them."""
    import torch
    import torch.nn.functional as F

    b, L, h, d, N = sizes.b, sizes.L, sizes.h, sizes.d, sizes.N
    samples, G = torch.randn(N, N, device=device), torch.randn(N + L, N, device=device) / N
    past, r = (
        torch.randn(b, N, sizes.e, device=device),
        torch.rand(b, h, L, N, device=device, requires_grad=True),
    )

    def run() -> Tensor:
        old = past.transpose(1, 2) @ samples.T
        B = (torch.cat([old, w["x"].transpose(1, 2)], 2) @ G).transpose(1, 2)
        keys = F.linear(B, w["key"]).view(b, N, h, d).transpose(1, 2)
        values = F.linear(B, w["value"]).view(b, N, h, d).transpose(1, 2)
        scores = w["q"] @ keys.transpose(-1, -2)
        context = (r @ values).transpose(1, 2).reshape(b, L, -1)
        maps = F.linear(scores, w["mu"]).sum() + F.linear(scores, w["sigma"]).sum()
        return F.linear(context, w["out"]) + 0 * maps

    return run


def _ours(
    sizes: Sizes, w: dict[str, Tensor], device: torch.device, signal: str
) -> Callable[[], Tensor]:
    """The same layer as infty computes it, with its defaults: uniform contraction and a sticky warp."""
    import torch
    import torch.nn.functional as F

    from infty.memory import ContinuousMemory, MemoryConfig, density
    from infty.memory.signals import SIGNALS

    b, h, d = sizes.b, sizes.h, sizes.d
    core = ContinuousMemory(MemoryConfig(basis=sizes.N), sizes.L)
    active = torch.ones(b, dtype=torch.bool, device=device)
    kind = SIGNALS[signal]
    state = core.empty(b, *kind.shape(h, h, d), device)
    for _ in range(2):
        state = core.write(
            state, torch.randn(b, h, sizes.L, state.coefficients.shape[-1], device=device), active
        )

    def run() -> Tensor:
        x = w["x"].unflatten(-1, (h, d)).transpose(1, 2)
        if kind.of_attention:
            # Projected tokens are the attention's own; here they stand for both halves.
            new = core.write(state, torch.cat([x, x], -1), active)
            keys, values = new.coefficients.split(d, -1)
            pooled = [torch.einsum("n,bhnd->bhd", w[k][0], keys) for k in ("mu", "sigma")]
        else:
            new = core.write(state, x, active)
            whole = new.coefficients.transpose(1, 2).flatten(2)
            values = F.linear(whole, w["value"]).unflatten(-1, (h, d)).transpose(1, 2)
            pooled = [
                F.linear(torch.einsum("n,bne->be", w[k][0], whole), w["key"]).unflatten(-1, (h, d))
                for k in ("mu", "sigma")
            ]
        mu, variance = density.parameters(w["q"], *pooled, None, None, core.config.sigma_floor)
        core.with_histogram(new, density.histogram(mu, variance, 128).mean(1, keepdim=True), active)
        z = density.read(mu, variance, values, core.basis)
        return F.linear(z.transpose(1, 2).flatten(2), w["out"])

    return run


def _write_only(sizes: Sizes, device: torch.device) -> Callable[[], Tensor]:
    import torch

    from infty.memory import ContinuousMemory, MemoryConfig, MemoryState

    core = ContinuousMemory(MemoryConfig(basis=sizes.N), sizes.L)
    active = torch.ones(sizes.b, dtype=torch.bool, device=device)
    x = torch.randn(sizes.b, sizes.h, sizes.L, sizes.d, device=device, requires_grad=True)
    state = core.write(core.empty(sizes.b, sizes.h, sizes.d, device), x.detach(), active)
    old = state.coefficients.clone().requires_grad_()
    return lambda: (
        core.write(MemoryState(old, state.histogram, state.written), x, active).coefficients
    )


def _read_only(sizes: Sizes, device: torch.device) -> Callable[[], Tensor]:
    import torch

    from infty.memory import density
    from infty.memory.basis import GaussianBasis

    core = GaussianBasis(sizes.N, (0.75 / sizes.N,))
    mu = torch.rand(sizes.b, sizes.h, sizes.L, device=device, requires_grad=True)
    variance = (0.01 * torch.rand_like(mu)).detach().add_(1e-6).requires_grad_()
    values = torch.randn(sizes.b, sizes.h, sizes.N, sizes.d, device=device, requires_grad=True)
    return lambda: density.read(mu, variance, values, core)


def _step(run: Callable[[], Tensor], inputs: dict[str, Tensor]) -> None:
    result = run()
    result.backward(result.new_ones(()).expand_as(result))
    for tensor in inputs.values():
        tensor.grad = None


def _timed(run: Callable[[], Tensor], inputs: dict[str, Tensor], device: torch.device) -> float:
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    _step(run, inputs)
    wait()
    return time.perf_counter() - start


def _peak(run: Callable[[], Tensor], inputs: dict[str, Tensor], device: torch.device) -> float:
    """MiB that a forward and backward hold at most, beyond what was there before."""
    import torch

    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        _step(run, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return peak_bytes(lambda: _step(run, inputs)) / 2**20


def peak_bytes(step: Callable[[], Any]) -> int:
    """What torch holds at most on a CPU while `step` runs, beyond what was there before."""
    import torch

    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _table(rows: list[dict[str, Any]]) -> str:
    paper, products = rows[0], rows[1]
    lines = [f"{'':<28} {'ms':>8} {'paper /':>8} {'/ products':>11} {'peak MiB':>9} {'/ paper':>8}"]
    for r in rows:
        lines.append(
            f"{r['name']:<28} {1000 * r['seconds']:>8.1f} {paper['seconds'] / r['seconds']:>7.1f}x "
            f"{r['seconds'] / products['seconds']:>10.2f}x {r['peak_mib']:>9.1f} "
            f"{r['peak_mib'] / paper['peak_mib']:>7.2f}x"
        )
    return "\n".join(lines)
