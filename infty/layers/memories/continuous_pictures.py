"""What a continuous memory shows of one lane, now and then: where it is read, and what its places stand for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from infty.layers.memories.base import Picture
from infty.memory import origin, reading
from infty.memory.memory import ContinuousMemory
from infty.memory.reading import Density
from infty.memory.resample import sample
from infty.memory.state import MemoryState
from infty.parallel import collectives, groups

ROWS = 48
"""Most rows of a heat-map; each stands for as many tokens."""
PLACES = 64
"""Most columns."""
PLACE = "place in the memory: old to new"


@torch.no_grad()
def of_signal(
    core: ContinuousMemory,
    stream: Tensor,
    signal: MemoryState,
    seen: Tensor,
    delay: int,
    rate: Tensor | None = None,
) -> dict[str, Picture]:
    """`origin`: the token of the document that each place stands for; `read_back`: how like the tokens that were
    written are to what is found where they lie.

    stream [b, h, stm + T, c]: what the window wrote; signal: after it; seen int64 [b, S].
    """
    written = int(signal.written[0])
    L = core.segment_length
    start, end = origin.regions(core.writing.policy, written, rate)
    points = (torch.arange(PLACES, dtype=torch.float64) + 0.5) / PLACES
    tokens = origin.origins(start, end, points) * L
    found = {
        "origin": Picture(
            tokens, PLACE, down="token of the document", told="If nothing moves a region but time."
        )
    }
    count = min(_written_in(seen[0], delay), written)
    # A sticky memory's regions have moved: nobody knows where a token lies.
    if count and core.config.sticky == "off":
        middle = ((torch.arange(L) + 0.5) / L)[None]
        first, last = start[-count:, None], end[-count:, None]
        times = (first + middle * (last - first)).flatten()
        S = seen.shape[1]
        new = stream[:1, :, (S - count) * L : S * L]
        alike = _alike(core, signal, times.to(stream.device), new)
        values = alike.unflatten(0, (count, L)).mean(1).flip(0)
        told = "Cosine between what was written and what is found there."
        ends = (1.0, float(count + 1))
        found["read_back"] = Picture(values, "segments ago", ends, "likeness", told=told)
    return found


def _written_in(seen: Tensor, delay: int) -> int:
    """How many segments of the last document a window wrote; seen int64 [S] of one lane."""
    first = (seen == 0).nonzero()
    begin = int(first[-1]) if len(first) else 0
    return int((seen[begin:] >= delay).sum())


def _alike(core: ContinuousMemory, signal: MemoryState, times: Tensor, x: Tensor) -> Tensor:
    """[n]: cosine of the tokens x [1, h, n, c] and the signal at `times` [n], mean over all heads of the layer."""
    read = sample(core.basis, times.expand(1, 1, -1), None, signal.coefficients[:1])
    return _over_heads(F.cosine_similarity(read.float(), x.float(), dim=-1)[0])


def _over_heads(x: Tensor) -> Tensor:
    """Mean over dimension 0, and over the ranks that share the heads out."""
    return collectives.sum_(x.float().mean(0).contiguous()) / groups.tensor_size()


@torch.no_grad()
def of_reads(
    core: ContinuousMemory, place: Density, signal: MemoryState, seen: Tensor, delay: int
) -> dict[str, Picture]:
    """`density`: where the window's tokens read; of a sticky memory `attention`: where past reads fell, and `room`:
    how much of the memory each place gets at the next write.

    place: densities [b, S, K, G*L, ...] of the segments that `seen` [b, S] tells of.
    """
    S = seen.shape[1]
    L = core.segment_length
    mass = _by_token(core, place, S, L)
    mass = torch.where((seen[0] > delay)[:, None, None], mass, 0.0).flatten(0, 1)
    density = Picture(
        _coarse(mass),
        PLACE,
        down="token of the window",
        sides=(0.0, float(S * L)),
        told="Share of a token's reading in each place, mean over heads.",
    )
    found = {"density": density}
    if core.config.sticky != "off":
        for name, told in (
            ("attention", "Where past reads fell."),
            ("room", "Share of the memory that each place gets at the next write."),
        ):
            values = signal.histogram if name == "attention" else core.writing.room(signal)
            found[name] = Picture(_coarse(_over_heads(values[0])), PLACE, down="share", told=told)
    return found


def _by_token(core: ContinuousMemory, place: Density, S: int, L: int) -> Tensor:
    """The first lane's mass in each bin, by groups of neighbouring tokens: float32 [S, rows, D]."""
    rows = max(n for n in range(1, max(1, min(L, ROWS // S)) + 1) if L % n == 0)
    lane = reading.joined([place], lambda x: x[0][0])  # [S, K, G * L, ...]
    mass = []
    for row in range(rows):
        tokens = {
            name: getattr(lane, name)
            .unflatten(2, (-1, rows, L // rows))[:, :, :, row]
            .flatten(2, 3)
            for name in lane.of_tokens
        }
        mass.append(replace(lane, **tokens).histogram(core.config.bins))  # [S, K, D]
    return _over_heads(torch.stack(mass).permute(2, 1, 0, 3))


def _coarse(mass: Tensor) -> Tensor:
    """[..., D] -> [..., at most PLACES], the sums of neighbours, where these divide D."""
    factor = -(-mass.shape[-1] // PLACES)
    if factor == 1 or mass.shape[-1] % factor:
        return mass
    return mass.unflatten(-1, (-1, factor)).sum(-1)
