"""The gated delta rule (Yang, Kautz & Hatamizadeh, arXiv 2412.06464), a segment at a time.

A head's memory is a matrix S [d, c]. Token t, with a key k of length 1, a value v, a write strength beta in (0, 1) and
a decay alpha in (0, 1), replaces what the matrix answers to k:

    S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T          (equation 10, transposed)

A query q of length 1 reads q^T S. A whole segment is one affine map S -> M S + C, whose parts follow from one
triangular system (the WY form of section 3.3): no loop over tokens, and all segments of a window at once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

INITIAL_STRENGTH = 0.5
"""How much of what a key answers a fresh memory replaces when the key is told again."""
LIFETIMES = 256, 16_384
"""Tokens after which fresh heads have forgotten all but 1/e, spread evenly in the logarithm between these two."""


def initial_biases(heads: int) -> tuple[Tensor, Tensor]:
    """Of a fresh memory's write strength and decay: float32 [heads] each."""
    strength = math.log(INITIAL_STRENGTH / (1 - INITIAL_STRENGTH))
    shortest, longest = LIFETIMES
    lifetimes = torch.logspace(math.log10(shortest), math.log10(longest), heads)
    return torch.full((heads,), strength), torch.log(torch.expm1(1 / lifetimes))


def told(
    keys: Tensor, values: Tensor, strength: tuple[Tensor, Tensor], decay: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What tokens tell a memory: keys of length 1, values, write strength and log decay, the arguments of
    `segment_map`, in float32.

    keys, values [b, K, T, d]; strength and decay: a weight [K, 2d] and a bias [K] each, of a token's key and value.
    """
    keys, values = unit(keys), values.float()
    both = torch.cat([keys, values], -1)
    return keys, values, torch.sigmoid(_scores(both, *strength)), -F.softplus(_scores(both, *decay))


GATE_SCALE = 10.0
"""Of a gate that starts at zero: its parameter is multiplied by this, for it has far to go in steps of the rate."""


def told_after(
    keys: Tensor,
    values: Tensor,
    begins: Tensor,
    strength: tuple[Tensor, Tensor],
    decay: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`told` of tokens that go with the key before them: keys [b, H, T, k] of the tokens before, values [b, H, T, d].

    begins: bool [b, S], which of the S segments in T begin a document: their first token follows nothing. Values are
    normed, so that rare tokens, whose embeddings are small, weigh as much as others.
    """
    segments = begins.shape[1]
    before = keys.unflatten(2, (segments, -1))
    first = torch.zeros_like(before[:, :1, :, :, :1], dtype=torch.bool)
    first[:, :, :, 0] = begins[:, None, :, None]
    before = before.masked_fill(first, 0.0).flatten(2, 3)
    return told(before, F.rms_norm(values.float(), values.shape[-1:], eps=1e-6), strength, decay)


def _scores(both: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[b, K, T, 2d] -> float32 [b, K, T]."""
    return (both * weight.float()[:, None]).sum(-1) + bias.float()[:, None]


def unit(x: Tensor) -> Tensor:
    """x [..., d] at length 1, in float32 (float64 stays); a vector of length 0 stays 0."""
    x = x if x.dtype == torch.float64 else x.float()
    return F.normalize(x, dim=-1, eps=1e-6)


def segment_map(
    keys: Tensor, values: Tensor, strength: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """What writing a segment's tokens does to a memory: S -> M S + C.

    keys [..., L, d] of length 1; values [..., L, c]; strength [..., L] in (0, 1); log_decay [..., L] <= 0. Returns M
    [..., d, d] and C [..., d, c], in the inputs' dtype.

    With g_t the summed log decay up to token t, what token t adds is k_t u_t^T, where u_t = beta_t (v_t - what the
    memory answers to k_t just before), a triangular system over the tokens before it.
    """
    total = log_decay.cumsum(-1)
    since = torch.exp(
        (total[..., :, None] - total[..., None, :]).clamp(max=0.0)
    )  # decay from token j to token i
    before = (strength[..., None] * (keys @ keys.transpose(-1, -2)) * since).tril(-1)
    from_values = strength[..., None] * values
    from_memory = (strength * total.exp())[..., None] * keys
    eye = torch.eye(keys.shape[-2], dtype=keys.dtype, device=keys.device)
    added = torch.linalg.solve_triangular(
        before + eye, torch.cat([from_values, from_memory], -1), upper=False, unitriangular=True
    )
    by_values, by_memory = added.split([values.shape[-1], keys.shape[-1]], -1)
    kept = (keys * torch.exp(total[..., -1:] - total)[..., None]).transpose(-1, -2)
    decayed = torch.exp(total[..., -1])[..., None, None] * torch.eye(
        keys.shape[-1], dtype=keys.dtype, device=keys.device
    )
    return decayed - kept @ by_memory, kept @ by_values


def through_segments(
    maps: tuple[Tensor, Tensor], matrix: Tensor, seen: Tensor, delay: int, enabled: bool
) -> tuple[Tensor, Tensor]:
    """The recurrence over the S segments of a window.

    maps: what writing each segment does, M [b, h, S, d, d] and C [b, h, S, d, c]; matrix [b, h, d, c] before the
    window; seen int64 [b, S]: segments of the document before each; delay: segments that wait in the short-term
    memory; enabled False: nothing is remembered. Returns the matrices that each segment finds [b, h, S, d, c], and the
    last.
    """
    kept, added = maps
    found = []
    for s in range(seen.shape[1]):
        begins = (seen[:, s] == 0) | (not enabled)
        matrix = torch.where(begins[:, None, None, None], 0.0, matrix)
        found.append(matrix)
        written = kept[:, :, s] @ matrix + added[:, :, s]
        ready = (seen[:, s] >= delay) & enabled
        matrix = torch.where(ready[:, None, None, None], written, matrix)
    return torch.stack(found, 2), matrix


def read_normed(queries: Tensor, found: Tensor, weight: Tensor, gate: Tensor) -> Tensor:
    """`read`, normed for each head as in section 3.4 of the paper and times the head's gate; weight [K, G, d], gate
    [K, G]. What an empty memory answers is 0.

    How large a read is says how full the memory is, not how sure: without the norm, facts are not learned.
    """
    z = read(queries, found)
    size = weight.float() * gate.float()[..., None]
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + NORM_EPS) * size[:, :, None]


NORM_EPS = 1e-5


def read(queries: Tensor, found: Tensor) -> Tensor:
    """What queries [b, K, G, T, d] of any length read from the matrices that their segments find [b, K, S, d, c]:
    float32 [b, K, G, T, c], T = S * L."""
    q = unit(queries).unflatten(3, (found.shape[2], -1))
    return (q @ found[:, :, None]).flatten(3, 4)
