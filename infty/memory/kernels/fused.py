"""The read on a GPU: Triton kernels that make the weights tile by tile and multiply them at once.

Like flash attention without the softmax: a weight depends on its own token and function alone, so there are no
running statistics and the backward pass recomputes what it needs from mu and variance. Values may be bfloat16 or
float32; weights take the values' precision for the product, sums are float32. With
x = mu - m, v = variance + s^2, r = N(x; 0, v) and D = dz: dmu = -sum_j (D . V_j) r x / v,
dvariance = sum_j (D . V_j) r (x^2 / v - 1) / 2v, dV = r^T D.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = {torch.float32: 32, torch.bfloat16: 64}
"""Tokens and functions in a tile, by the values' precision."""
WARPS = 8
"""With these numbers no kernel spills registers on sm_80 and sm_90, for heads of 64 and 128: a test asks Nvidia's
assembler. Tiles of 64 float32 values would, by thousands of bytes a thread."""
NORM = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def _tile(mu, variance, centers, squares, rows, columns, T, N):
    """Weights r, distances x and variances v of one tile: [rows, columns]. Outside T x N, r is zero."""
    m = tl.load(centers + columns, mask=columns < N, other=0.0)
    s2 = tl.load(squares + columns, mask=columns < N, other=1.0)
    at = tl.load(mu + rows, mask=rows < T, other=0.0)
    v = tl.load(variance + rows, mask=rows < T, other=1.0)[:, None] + s2[None, :]
    x = at[:, None] - m[None, :]
    r = tl.exp(-0.5 * x * x / v) * NORM / tl.sqrt(v)
    return tl.where((rows < T)[:, None] & (columns < N)[None, :], r, 0.0), x, v


@triton.jit
def _matrix(base, rows, d, ROWS, D: tl.constexpr):
    """A [rows, D] tile of a row-major matrix with ROWS rows of d; zero outside."""
    columns = tl.arange(0, D)
    inside = (rows < ROWS)[:, None] & (columns < d)[None, :]
    return tl.load(base + rows[:, None] * d + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """a b with factors in PRECISION and sums in float32. The interpreter's product knows no bfloat16."""
    a, b = a.to(PRECISION), b.to(PRECISION)
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _forward(
    mu,
    variance,
    values,
    centers,
    squares,
    out,
    T,
    N,
    d,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.zeros((B, D), tl.float32)
    for start in range(0, N, B):
        columns = start + tl.arange(0, B)
        r, _, _ = _tile(mu + head * T, variance + head * T, centers, squares, rows, columns, T, N)
        value = _matrix(values + head * N * d, columns, d, N, D)
        total += _product(r, value, PRECISION, INTERPRETED)
    features = tl.arange(0, D)
    inside = (rows < T)[:, None] & (features < d)[None, :]
    tl.store(out + head * T * d + rows[:, None] * d + features[None, :], total, mask=inside)


@triton.jit
def _backward_density(
    mu,
    variance,
    values,
    centers,
    squares,
    grad,
    dmu,
    dvariance,
    T,
    N,
    d,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * B + tl.arange(0, B)
    dz = _matrix(grad + head * T * d, rows, d, T, D)
    first, second = tl.zeros((B,), tl.float32), tl.zeros((B,), tl.float32)
    for start in range(0, N, B):
        columns = start + tl.arange(0, B)
        r, x, v = _tile(mu + head * T, variance + head * T, centers, squares, rows, columns, T, N)
        value = _matrix(values + head * N * d, columns, d, N, D)
        w = r * _product(dz, tl.trans(value), PRECISION, INTERPRETED)
        first -= tl.sum(w * x / v, 1)
        second += tl.sum(0.5 * w * (x * x / v - 1) / v, 1)
    tl.store(dmu + head * T + rows, first, mask=rows < T)
    tl.store(dvariance + head * T + rows, second, mask=rows < T)


@triton.jit
def _backward_values(
    mu,
    variance,
    centers,
    squares,
    grad,
    dvalues,
    T,
    N,
    d,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    B: tl.constexpr,
    D: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.zeros((B, D), tl.float32)
    for start in range(0, T, B):
        rows = start + tl.arange(0, B)
        r, _, _ = _tile(mu + head * T, variance + head * T, centers, squares, rows, columns, T, N)
        dz = _matrix(grad + head * T * d, rows, d, T, D)
        total += _product(tl.trans(r), dz, PRECISION, INTERPRETED)
    features = tl.arange(0, D)
    inside = (columns < N)[:, None] & (features < d)[None, :]
    tl.store(dvalues + head * N * d + columns[:, None] * d + features[None, :], total, mask=inside)


class _Fused(torch.autograd.Function):
    """mu, variance float32 [n, T]; values [n, N, d]; centers, squares float32 [N]."""

    @staticmethod
    def forward(
        ctx, mu: Tensor, variance: Tensor, values: Tensor, centers: Tensor, squares: Tensor
    ) -> Tensor:
        (n, T), (N, d) = mu.shape, values.shape[1:]
        out = torch.empty(n, T, d, device=mu.device, dtype=torch.float32)
        constants = _constants(values)
        _forward[(triton.cdiv(T, constants["B"]), n)](
            mu, variance, values, centers, squares, out, T, N, d, **constants
        )
        ctx.save_for_backward(mu, variance, values, centers, squares)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, variance, values, centers, squares = ctx.saved_tensors
        (n, T), (N, d) = mu.shape, values.shape[1:]
        grad = grad.contiguous()
        dmu, dvariance, dvalues = (
            torch.empty_like(mu),
            torch.empty_like(variance),
            torch.empty_like(values),
        )
        constants = _constants(values)
        tiles_of_tokens, tiles_of_functions = (triton.cdiv(x, constants["B"]) for x in (T, N))
        _backward_density[(tiles_of_tokens, n)](
            mu, variance, values, centers, squares, grad, dmu, dvariance, T, N, d, **constants
        )
        _backward_values[(tiles_of_functions, n)](
            mu, variance, centers, squares, grad, dvalues, T, N, d, **constants
        )
        return dmu, dvariance, dvalues, None, None


def read(mu: Tensor, variance: Tensor, values: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
    """z = E[psi] values, float32 [..., T, d]; see `density.read`. values [..., N, d]: bfloat16 or float32."""
    lead, tokens = mu.shape[:-1], mu.shape[-1]
    if values.dtype not in (torch.float32, torch.bfloat16):
        values = values.float()
    z = _Fused.apply(
        mu.float().reshape(-1, tokens).contiguous(),
        variance.float().reshape(-1, tokens).contiguous(),
        values.reshape(-1, *values.shape[-2:]).contiguous(),
        centers,
        widths.square(),
    )
    return z.reshape(*lead, tokens, -1)


def _constants(values: Tensor) -> dict[str, Any]:
    """What a kernel is compiled for. A tile has a power of two of features, at least a matrix unit's 16."""
    return {
        "PRECISION": tl.bfloat16 if values.dtype == torch.bfloat16 else tl.float32,
        "INTERPRETED": os.environ.get("TRITON_INTERPRET") == "1",
        "B": TILE[values.dtype],
        "D": max(16, triton.next_power_of_2(values.shape[-1])),
        "num_warps": WARPS,
    }
