"""The grid of a write on a GPU: samples of the old signal and cell averages of the new tokens, in one Triton kernel.

Both are products with matrices of a few entries a row, which are made tile by tile from where samples and tokens lie:
row p of the result is weight_p sum_j psi_j(t_p) signal_j + sum_i overlap(cell p, token i) x_i. Samples and tokens lie
in order, so a tile needs a short range of functions and tokens. Places are split into whole steps and a float32 rest,
so that differences of places are exact however fine the grid. The plain forms are `resample.sample` and
`resample.pool`.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 32
"""Rows, functions or tokens in a tile."""
CHANNELS = 128
"""Channels in a tile, at most."""
WARPS = 8
"""With these numbers no kernel spills registers (a test asks Nvidia's assembler)."""
NORM = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def _split(x):
    """A place as a whole number and the rest: int32, float32."""
    whole = tl.floor(x)
    return whole.to(tl.int32), (x - whole).to(tl.float32)


@triton.jit
def _functions(whole, rest, columns, widths, places, N, EACH: tl.constexpr, REACH: tl.constexpr):
    """psi of a tile: [rows, columns], for samples at (whole + rest) / (places - 1). Zero from REACH widths on."""
    width = tl.load(widths + columns, mask=columns < N, other=1.0)
    away = (whole[:, None] - (columns // EACH)[None, :]).to(tl.float32) + rest[:, None]
    z = away / (width * (places - 1))[None, :]
    psi = tl.exp(-0.5 * z * z) * NORM / width[None, :]
    return tl.where((z * z <= REACH * REACH) & (columns < N)[None, :], psi, 0.0)


@triton.jit
def _overlaps(whole, rest, width, cells):
    """The share of a cell that a token covers, for tokens that begin at (whole + rest) and are `width` long, both in
    cells: of every pair, when cells and tokens lie along different dimensions."""
    begin = (whole - cells).to(tl.float32) + rest
    return tl.maximum(tl.minimum(begin + width, 1.0) - tl.maximum(begin, 0.0), 0.0)


@triton.jit
def _matrix(base, rows, columns, ROWS, c):
    """A tile of a row-major matrix with ROWS rows of c; zero outside."""
    inside = (rows < ROWS)[:, None] & (columns < c)[None, :]
    return tl.load(base + rows[:, None] * c + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(base, rows, columns, ROWS, c, value):
    inside = (rows < ROWS)[:, None] & (columns < c)[None, :]
    tl.store(base + rows[:, None] * c + columns[None, :], value, mask=inside)


@triton.jit
def _forward(
    times,
    weight,
    signal,
    start,
    end,
    x,
    out,
    widths,
    heads,
    groups,
    P,
    N,
    places,
    reach,
    l,
    c,
    EACH: tl.constexpr,
    REACH: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
):
    """One tile of rows of the grid."""
    head = tl.program_id(1).to(tl.int64)
    lane = head // heads
    rows, channels = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(2) * C + tl.arange(0, C)
    total = tl.zeros((B, C), tl.float32)
    valid = rows < P
    line = lane * groups + tl.where(groups > 1, head % heads, 0)
    share = tl.load(weight + lane * P + rows, mask=valid, other=0.0)
    whole, rest = _split(tl.load(times + line * P + rows, mask=valid, other=0.0) * (places - 1))
    used = share > 0
    low = tl.maximum(tl.min(tl.where(used, whole, places)) - reach, 0) * EACH
    high = tl.minimum(tl.max(tl.where(used, whole, -reach - 2)) + reach + 2, places) * EACH
    for first in range(low // B * B, high, B):
        columns = first + tl.arange(0, B)
        psi = _functions(whole, rest, columns, widths, places, N, EACH, REACH) * share[:, None]
        total += tl.dot(
            psi, _matrix(signal + head * N * c, columns, channels, N, c), input_precision="ieee"
        )
    begin, step = tl.load(start + lane) * P, (tl.load(end + lane) - tl.load(start + lane)) * P / l
    low = _token(tl.program_id(0) * B, begin, step, l, -1)
    high = _token(tl.program_id(0) * B + B, begin, step, l, 2)
    for first in range(low // B * B, high, B):
        tokens = first + tl.arange(0, B)
        whole, rest = _split(begin + step * tokens)
        covered = tl.where(
            (tokens < l)[None, :],
            _overlaps(whole[None, :], rest[None, :], step.to(tl.float32), rows[:, None]),
            0.0,
        )
        total += tl.dot(
            covered, _matrix(x + head * l * c, tokens, channels, l, c), input_precision="ieee"
        )
    _store(out + head * P * c, rows, channels, P, c, total)


@triton.jit
def _token(cell, begin, step, l, more):
    """The token that covers the beginning of a cell, and `more`: within 0 to l."""
    at = tl.minimum(tl.maximum((cell - begin) / step, -2.0), l * 1.0)
    return tl.minimum(tl.maximum(tl.floor(at).to(tl.int32) + more, 0), l)


@triton.jit
def _backward_signal(
    times,
    weight,
    grad,
    dsignal,
    widths,
    heads,
    groups,
    P,
    N,
    places,
    reach,
    c,
    EACH: tl.constexpr,
    REACH: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
):
    """One tile of functions: the rows that touch it are found by counting the samples before it."""
    head = tl.program_id(1).to(tl.int64)
    lane = head // heads
    columns, channels = (
        tl.program_id(0) * B + tl.arange(0, B),
        tl.program_id(2) * C + tl.arange(0, C),
    )
    line = lane * groups + tl.where(groups > 1, head % heads, 0)
    from_place = tl.program_id(0) * B // EACH - reach
    to_place = (tl.program_id(0) * B + B - 1) // EACH + reach + 1
    low, high = 0, 0
    for first in range(0, P, B):
        rows = first + tl.arange(0, B)
        used = tl.load(weight + lane * P + rows, mask=rows < P, other=0.0) > 0
        at = tl.load(times + line * P + rows, mask=rows < P, other=0.0) * (places - 1)
        low += tl.sum((used & (at < from_place)).to(tl.int32))
        high += tl.sum((used & (at <= to_place)).to(tl.int32))
    total = tl.zeros((B, C), tl.float32)
    for first in range(low // B * B, high, B):
        rows = first + tl.arange(0, B)
        share = tl.load(weight + lane * P + rows, mask=rows < P, other=0.0)
        whole, rest = _split(
            tl.load(times + line * P + rows, mask=rows < P, other=0.0) * (places - 1)
        )
        psi = _functions(whole, rest, columns, widths, places, N, EACH, REACH) * share[:, None]
        total += tl.dot(
            tl.trans(psi),
            _matrix(grad + head * P * c, rows, channels, P, c),
            input_precision="ieee",
        )
    _store(dsignal + head * N * c, columns, channels, N, c, total)


@triton.jit
def _backward_tokens(start, end, grad, dx, heads, P, l, c, B: tl.constexpr, C: tl.constexpr):
    """One tile of tokens."""
    head = tl.program_id(1).to(tl.int64)
    lane = head // heads
    tokens, channels = (
        tl.program_id(0) * B + tl.arange(0, B),
        tl.program_id(2) * C + tl.arange(0, C),
    )
    begin, step = tl.load(start + lane) * P, (tl.load(end + lane) - tl.load(start + lane)) * P / l
    whole, rest = _split(begin + step * tokens)
    low = tl.maximum(tl.min(whole), 0)
    high = tl.minimum(tl.max(tl.where(tokens < l, whole + step.to(tl.int32) + 2, 0)), P)
    total = tl.zeros((B, C), tl.float32)
    for first in range(low // B * B, high, B):
        rows = first + tl.arange(0, B)
        covered = _overlaps(whole[:, None], rest[:, None], step.to(tl.float32), rows[None, :])
        total += tl.dot(
            covered, _matrix(grad + head * P * c, rows, channels, P, c), input_precision="ieee"
        )
    _store(dx + head * l * c, tokens, channels, l, c, total)


class _Grid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        times: Tensor,
        weight: Tensor,
        signal: Tensor,
        start: Tensor,
        end: Tensor,
        x: Tensor,
        widths: Tensor,
        each: tuple[float, ...],
        reach: float,
    ) -> Tensor:
        (b, h, N, c), l, (groups, P) = signal.shape, x.shape[2], times.shape[1:]
        out = signal.new_empty(b, h, P, c)
        ctx.sizes = (h, groups, P, N, N // len(each))
        ctx.constants = {
            "EACH": len(each),
            "REACH": reach,
            "B": TILE,
            "C": min(CHANNELS, max(16, triton.next_power_of_2(c))),
            "num_warps": WARPS,
        }
        ctx.reach = math.ceil(reach * max(each) * (N // len(each) - 1))
        ctx.save_for_backward(times, weight, start, end, widths)
        ctx.tokens = l
        _forward[_programs(ctx, P, b * h, c)](
            times,
            weight,
            signal,
            start,
            end,
            x,
            out,
            widths,
            *ctx.sizes,
            ctx.reach,
            l,
            c,
            **ctx.constants,
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        times, weight, start, end, widths = ctx.saved_tensors
        grad = grad.contiguous()
        (b, h, P, c), N, l = grad.shape, ctx.sizes[3], ctx.tokens
        dsignal = dx = None
        if ctx.needs_input_grad[2]:
            dsignal = grad.new_empty(b, h, N, c)
            _backward_signal[_programs(ctx, N, b * h, c)](
                times, weight, grad, dsignal, widths, *ctx.sizes, ctx.reach, c, **ctx.constants
            )
        if ctx.needs_input_grad[5]:
            dx = grad.new_empty(b, h, l, c)
            _backward_tokens[_programs(ctx, l, b * h, c)](
                start, end, grad, dx, h, P, l, c, B=TILE, C=ctx.constants["C"], num_warps=WARPS
            )
        return None, None, dsignal, None, None, dx, None, None, None


def _programs(ctx, rows: int, heads: int, c: int) -> tuple[int, int, int]:
    return triton.cdiv(rows, TILE), heads, triton.cdiv(c, ctx.constants["C"])


def grid(
    times: Tensor,
    weight: Tensor,
    signal: Tensor,
    start: Tensor,
    end: Tensor,
    x: Tensor,
    widths: Tensor,
    each: tuple[float, ...],
    reach: float,
) -> Tensor:
    """`resample.sample(times, weight, signal) + resample.pool(start, end, x)`: float32 [b, h, P, c].

    times float64 [b, g, P], in order along P; weight [b, P], whose zeros come last; signal float32 [b, h, N, c]; start,
    end float64 [b]; x float32 [b, h, l, c]; widths float32 [N], `each` of them at every place. Gradients reach signal
    and x.
    """
    return _Grid.apply(
        times.contiguous(),
        weight.float().contiguous(),
        signal.contiguous(),
        start.contiguous(),
        end.contiguous(),
        x.contiguous(),
        widths,
        each,
        reach,
    )
