"""The read on a CPU: weights are made block by block in cache and multiplied at once, never stored.

All basis functions of one width share a variance v = sigma^2 + s^2, so their weights are n * e with
e = exp(-(mu - m)^2 / 2v) and a factor n = (2 pi v)^-1/2 that belongs to the token and leaves the product.
Gradients are the closed forms (x = mu - m, D = dz, with S_k = sum_j e_j (n D . V_j) x_j^k):
dV = e^T (n D), dmu = -S_1 / v, dv = S_2 / 2v^2 - S_0 / 2v, and S_0 = D . z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Weights in a block: 2 MiB in float32, about what the second-level caches of two cores hold.
BLOCK = 1 << 19
# Far below rounding, yet far above denormal numbers, which are slow to multiply and to add up.
LOWEST = -60.0


def read(
    mu: Tensor, variance: Tensor, values: Tensor, centers: Tensor, widths: Tensor, each: int
) -> Tensor:
    """z = E[psi] values, float32 [..., T, d]; see `density.read`.

    mu, variance [..., T]; values [..., N, d]; centers, widths [N] of `each` widths at every place.
    """
    lead, tokens = mu.shape[:-1], mu.shape[-1]
    mu, variance = mu.float().reshape(-1, tokens), variance.float().reshape(-1, tokens)
    values = values.float().reshape(-1, *values.shape[-2:])
    total = sum(
        _Blocked.apply(mu, variance + float(widths[k]) ** 2, values[:, k::each], centers[k::each])
        for k in range(each)
    )
    return total.reshape(*lead, tokens, -1)


def _blocks(rows: int, tokens: int, size: int) -> list[tuple[slice, slice]]:
    """Slices of rows and of tokens: blocks of about BLOCK weights."""
    per_token = max(1, min(tokens, BLOCK // size))
    per_row = max(1, BLOCK // (size * tokens)) if per_token == tokens else 1
    return [
        (slice(i, i + per_row), slice(j, j + per_token))
        for i in range(0, rows, per_row)
        for j in range(0, tokens, per_token)
    ]


def _buffer(rows: int, tokens: int, size: int, like: Tensor) -> Tensor:
    return like.new_empty(min(rows * tokens * size, max(BLOCK, size)))


def _weights(
    mu: Tensor, variance: Tensor, centers: Tensor, distance: Tensor, out: Tensor
) -> Tensor:
    """e [i, t, j] into `out`, and mu - m into `distance` (may be `out`)."""
    torch.sub(mu.unsqueeze(-1), centers, out=distance)
    torch.mul(distance, distance, out=out)
    return out.mul_((-0.5 / variance).unsqueeze(-1)).clamp_(min=LOWEST).exp_()


class _Blocked(torch.autograd.Function):
    """One width: mu, v [n, T], values [n, P, d], centers [P]."""

    @staticmethod
    def forward(ctx, mu: Tensor, v: Tensor, values: Tensor, centers: Tensor) -> Tensor:
        (n, tokens), (size, d) = mu.shape, values.shape[1:]
        z = values.new_empty(n, tokens, d)
        space = _buffer(n, tokens, size, z)
        for i, t in _blocks(n, tokens, size):
            shape = (*mu[i, t].shape, size)
            e = space[: math.prod(shape)].view(shape)
            _weights(mu[i, t], v[i, t], centers, e, e)
            z[i, t] = torch.bmm(e, values[i])
        z.mul_(torch.rsqrt(2 * math.pi * v).unsqueeze(-1))
        ctx.save_for_backward(mu, v, values, centers, z)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        mu, v, values, centers, z = ctx.saved_tensors
        (n, tokens), size = mu.shape, values.shape[1]
        zeroth = (grad * z).sum(-1)
        grad = grad * torch.rsqrt(2 * math.pi * v).unsqueeze(-1)
        first, second = torch.empty_like(mu), torch.empty_like(mu)
        dvalues = torch.zeros_like(values, memory_format=torch.contiguous_format)
        spaces = [_buffer(n, tokens, size, z) for _ in range(3)]
        for i, t in _blocks(n, tokens, size):
            shape = (*mu[i, t].shape, size)
            distance, e, w = (s[: math.prod(shape)].view(shape) for s in spaces)
            _weights(mu[i, t], v[i, t], centers, distance, e)
            dvalues[i].baddbmm_(e.transpose(1, 2), grad[i, t])
            torch.bmm(grad[i, t], values[i].transpose(1, 2), out=w)
            w.mul_(e).mul_(distance)
            first[i, t] = w.sum(-1)
            second[i, t] = w.mul_(distance).sum(-1)
        dv = (second / v - zeroth) / (2 * v)
        return -first / v, dv, dvalues, None
