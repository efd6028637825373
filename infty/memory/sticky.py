"""The warp: where the old signal is sampled when it is rewritten.

`u` in [0, 1] says how far along its new room a sample lies; the warp answers where it is taken from. The
identity gives the plain contraction. Sticky memories use the inverse distribution function of past attention,
so that regions that are read often keep more room. No gradient flows to the density of past attention.

Attention decides the warp, the warp moves the signal, and the signal decides attention: a loop whose gain is the
number of basis functions over the segments so far. With a policy the histogram is therefore a slow running average
(`averaged`) that moves with the signal (`carried`): under `uniform` a perturbation then does not grow (`infty bench
growth`); under `doubling`, and with a constant share, it still does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(histogram: Tensor, explore: float | Tensor) -> Tensor:
    """The histogram [..., D] with a share `explore` of uniform mass mixed in: float64, rows sum to 1.

    `explore` broadcasts against [..., 1].
    """
    histogram = (
        histogram.double()
    )  # float32 rows sum to 1 only nearly, which would shift every quantile
    return (1 - explore) * histogram / histogram.sum(-1, keepdim=True) + explore / histogram.shape[
        -1
    ]


@torch.no_grad()
def averaged(past: Tensor, histogram: Tensor, span: float) -> Tensor:
    """The running average of attention `past`, with one segment's histogram taken in at the rate 1 / span.

    Both [b, g, D]; returns the dtype of `past`. A document begins with the even one, so that what its first segments
    read moves the warp no faster than what later ones read: there the warp moves the signal most.
    """
    return (past + (histogram.double() - past) / span).to(past.dtype)


@torch.no_grad()
def carried(histogram: Tensor, room: Tensor, keep: Tensor, end: Tensor, append: Tensor) -> Tensor:
    """Past attention [b, g, D] after a write: what an old part of the signal got goes where that part goes.

    room float64 [b, g, D]: how much of [0, keep] each part of the old signal gets; keep, end float64 [b] and append
    bool [b]: see `Plan`. New tokens start with an even share. Rows sum to 1; float64.
    """
    bins = histogram.shape[-1]
    edges = torch.arange(bins + 1, device=room.device, dtype=torch.float64) / bins
    keep, end, append = keep[:, None, None], end[:, None, None], append[:, None, None]
    moved = quantiles(room, (edges / keep.clamp(min=1e-9)).clamp(max=1))
    old = _below(histogram.double(), torch.where(append, torch.minimum(edges, keep), moved))
    share = old / old[..., -1:].clamp(min=1e-30) * keep + (edges - keep).clamp(min=0)
    mass = torch.minimum(share, end).diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def _below(histogram: Tensor, at: Tensor) -> Tensor:
    """The mass below each place `at` [..., n] of a density that is constant in each of D bins: [..., n]."""
    bins = histogram.shape[-1]
    histogram, at = _broadcast(histogram, at)
    index = (at * bins).long().clamp(max=bins - 1)
    lower = (histogram.cumsum(-1) - histogram).gather(-1, index)
    return lower + histogram.gather(-1, index) * (at * bins - index)


def quantiles(histogram: Tensor, u: Tensor) -> Tensor:
    """Inverse distribution function of a density that is constant in each of D bins over [0, 1].

    histogram [..., D], rows sum to 1; u [..., n] (leading dimensions broadcast). Returns float64 [..., n].
    A uniform histogram gives u back; bins without mass are stepped over. Gradients reach u.
    """
    bins = histogram.shape[-1]
    histogram, u = _broadcast(histogram.detach().double(), u.double())
    # float64: cumulated mass must be monotone to the last bit, and 128 terms are nothing.
    upper = histogram.cumsum(-1)
    upper = upper / upper[..., -1:]
    index = torch.searchsorted(upper, u.detach().contiguous()).clamp(max=bins - 1)
    top, mass = upper.gather(-1, index), histogram.gather(-1, index)
    inside = torch.where(mass > 0, 1 - (top - u) / mass.clamp(min=1e-300), 1.0).clamp(0, 1)
    return (index + inside) / bins


@torch.no_grad()
def multinomial(histogram: Tensor, u: Tensor, seeds: Tensor, samples: int) -> Tensor:
    """The paper's warp: `samples` bins drawn with replacement, left edges sorted, read at ceil(u*samples).

    histogram [b, g, D]; u [b, 1 or g, n]; seeds int64 [b]. Returns float64 [b, g, n]. Draws
    depend on a lane's seed and histogram alone: the same on every device and parallel layout.
    """
    bins = histogram.shape[-1]
    upper = histogram.double().cumsum(-1)
    upper = upper / upper[..., -1:]
    draws = uniforms(seeds, samples)[:, None, :].expand(*histogram.shape[:2], samples)
    edges = (
        torch.searchsorted(upper, draws.contiguous(), right=True)
        .clamp(max=bins - 1)
        .sort(-1)
        .values
    )
    # u*samples may lie a rounding error above the whole number it stands for.
    rank = (torch.ceil(u.double() * samples - 1e-6).long() - 1).clamp(0, samples - 1)
    return edges.gather(-1, rank.expand(*histogram.shape[:2], -1)).double() / bins


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """float64 [b, count] in [0, 1): a counter-based generator (splitmix64), keyed by int64 seeds [b]."""
    counter = torch.arange(1, count + 1, device=seeds.device)
    bits = _splitmix(_splitmix(seeds)[:, None] + counter * _GOLDEN)
    return _shift(bits, 11).double() * 2.0**-53


def seed(seed: int, written: Tensor, layer: int) -> Tensor:
    """The seed of one layer's draw before its write number `written` (int64 [b]); int64 [b].

    Draws do not depend on the document or the lane, so a document leaves the same memory whatever is read beside it,
    in a resumed run, on another number of lanes and after export.
    """
    return _splitmix(_splitmix(written + _wrapped(seed * 0x9E3779B9)) + layer)


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def _splitmix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64 (arithmetic wraps)."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _broadcast(histogram: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    lead = torch.broadcast_shapes(histogram.shape[:-1], u.shape[:-1])
    return histogram.expand(*lead, -1).contiguous(), u.expand(*lead, -1)
