"""Where attention fell, on a GPU: the mass of all densities in even bins of [0, 1], in one Triton kernel.

The plain form is `density.histogram`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS, BINS = 64, 32
"""What a program looks at in one go, and the bins that it adds up."""


@triton.jit
def _mass(
    mu,
    variance,
    weights,
    out,
    heads,
    T,
    bins,
    WEIGHTED: tl.constexpr,
    TOKENS: tl.constexpr,
    BINS: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    bin = tl.program_id(0) * BINS + tl.arange(0, BINS)
    low, high = bin.to(tl.float32) / bins, (bin + 1).to(tl.float32) / bins
    total = tl.zeros((BINS,), tl.float32)
    for start in range(0, T, TOKENS):
        token = start + tl.arange(0, TOKENS)
        mean = tl.load(mu + head * T + token, mask=token < T, other=0.0)[:, None]
        scale = (
            1
            / tl.sqrt(2 * tl.load(variance + head * T + token, mask=token < T, other=1.0))[:, None]
        )
        mass = tl.erf((high[None, :] - mean) * scale) - tl.erf((low[None, :] - mean) * scale)
        if WEIGHTED:
            mass *= tl.load(weights + head // heads * T + token, mask=token < T, other=0.0)[:, None]
        total += tl.sum(tl.where((token < T)[:, None], mass, 0.0), 0)
    tl.store(out + head * bins + bin, total, mask=bin < bins)


def mass(mu: Tensor, variance: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """Twice the summed mass of the densities N(mu, variance) [b, h, T] in each bin: float32 [b, h, bins].

    weights [b, T] or None. No gradient.
    """
    b, h, T = mu.shape
    out = torch.empty(b, h, bins, device=mu.device, dtype=torch.float32)
    given = mu if weights is None else weights.float().contiguous()  # not looked at without weights
    _mass[(triton.cdiv(bins, BINS), b * h)](
        mu.float().contiguous(),
        variance.float().contiguous(),
        given,
        out,
        h,
        T,
        bins,
        WEIGHTED=weights is not None,
        TOKENS=TOKENS,
        BINS=BINS,
    )
    return out
