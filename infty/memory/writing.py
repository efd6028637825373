"""The two ways a write is made: the paper's, with a constant share, and on a fixed grid, for any policy.

Each owns its operators, how past attention is taken in, and what becomes of it when the signal moves.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from infty.memory import regression, sticky, tiles
from infty.memory.basis import CPU, GaussianBasis, gaussian, placement
from infty.memory.config import MemoryConfig
from infty.memory.contraction import Plan, Policy
from infty.memory.resample import grid, old_cells, sample
from infty.memory.state import MemoryState
from infty.memory.tiles import Tiles


class Writing(Protocol):
    """How a memory of one configuration is written. Signals are in the precision of writes."""

    policy: Policy
    """How much room the old signal keeps."""

    def heard(self, past: Tensor, reads: Tensor) -> Tensor:
        """The histogram [b, g, D] that warps the next write, from the one before and where a segment's reads fell."""
        ...

    def plan(
        self, state: MemoryState, rate: Tensor | None = None, weights: Tensor | None = None
    ) -> Plan:
        """How the next write, of tokens with these `weights` [b, l] (None: even ones), shares out [0, 1]."""
        ...

    def room(self, state: MemoryState) -> Tensor:
        """How much room each part of the old signal gets at the next write: float64 [b, g, D], rows sum to 1."""
        ...

    def write(
        self,
        state: MemoryState,
        old: Tensor,
        x: Tensor,
        seeds: Tensor | None,
        rate: Tensor | None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Contract the old coefficients [b, h, N, c] and append the tokens x [b, h, l, c], which share out their room
        by `weights` [b, l] (None: evenly): the new coefficients, and the histogram [b, g, D] as it lies after the
        signal has moved."""
        ...


def writing(config: MemoryConfig) -> Writing:
    """The way that a memory's contraction asks for."""
    return SideBySide(config) if config.policy.constant else OnGrid(config)


class SideBySide:
    """The paper's: old samples and new tokens side by side in one regression, the old signal in a constant share."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.basis = GaussianBasis(config.basis, config.widths)
        self.policy = config.policy
        self.samples = samples_of(config)

    def heard(self, past: Tensor, reads: Tensor) -> Tensor:
        """The last segment's reads alone."""
        return reads

    def plan(
        self, state: MemoryState, rate: Tensor | None = None, weights: Tensor | None = None
    ) -> Plan:
        """See `Writing`: always the same."""
        return self.policy.plan(state.written)

    def room(self, state: MemoryState) -> Tensor:
        """As past attention was, with a little uniform mass."""
        return sticky.mixed(state.histogram, self.config.explore)

    def write(
        self,
        state: MemoryState,
        old: Tensor,
        x: Tensor,
        seeds: Tensor | None,
        rate: Tensor | None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Writing`. The first tokens of a document fill the whole signal; tokens always share theirs evenly."""
        operator = operators(self.config, x.shape[2], x.device)
        later = torch.matmul(operator["new"].T, x)
        if self.config.sticky == "off":
            later = later + torch.matmul(operator["carry"], old)
        else:
            later = later + torch.matmul(
                operator["old"].T, sample(self.basis, self._warp(state, seeds), None, old)
            )
        first = torch.matmul(operator["first"].T, x)
        return torch.where((state.written == 0)[:, None, None, None], first, later), state.histogram

    def _warp(self, state: MemoryState, seeds: Tensor | None) -> Tensor:
        """Where the old samples are taken from: float64 [b, g, M]."""
        u = (
            torch.arange(1, self.samples + 1, device=state.histogram.device, dtype=torch.float64)
            / self.samples
        )
        u = u.expand(len(state.written), 1, -1)
        room = self.room(state)
        if self.config.sticky == "quantile":
            return sticky.quantiles(room, u)
        return sticky.multinomial(room, u, state.written if seeds is None else seeds, self.samples)


class OnGrid:
    """Any share: the old signal and the new tokens are put on a fixed grid of cells, and one operator fits the grid."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.basis = GaussianBasis(config.basis, config.widths)
        self.policy = config.policy
        self.samples = samples_of(config)
        # What a warp moves by one function is all that is read there: the more functions, the slower it must be.
        self.span = config.attention_span or max(1, config.basis // 8)

    def heard(self, past: Tensor, reads: Tensor) -> Tensor:
        """A running average over `attention_span` segments."""
        return sticky.averaged(past, reads, self.span)

    def room(self, state: MemoryState) -> Tensor:
        """See `Writing` and `_room`."""
        return self._room(state, self.plan(state))

    def plan(
        self, state: MemoryState, rate: Tensor | None = None, weights: Tensor | None = None
    ) -> Plan:
        """See `Writing`. Weights count where all segments would get the same room otherwise: a segment then gets its
        share of all the weight that has been written."""
        if state.weight is None or not self.policy.weighs:
            return self.policy.plan(state.written, rate)
        new = torch.ones_like(state.weight) if weights is None else weights.double().mean(-1)
        return self.policy.plan(state.weight, new if rate is None else new * rate)

    def _room(self, state: MemoryState, plan: Plan) -> Tensor:
        """Attention decides only who gives up the room that new tokens take.

        The signal is rewritten at every segment of a long document. If room followed attention as the paper's does,
        what is read would double its room again and again, and all else be gone within a dozen writes; so what is
        never read shrinks twice as fast as the rest, not exponentially faster.
        """
        even = 1 - (1 - self.config.explore) * (1 - plan.keep.detach())
        return sticky.mixed(state.histogram, even[:, None, None])

    def write(
        self,
        state: MemoryState,
        old: Tensor,
        x: Tensor,
        seeds: Tensor | None,
        rate: Tensor | None,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `Writing`."""
        plan = self.plan(state, rate, weights)
        weight, u = old_cells(plan.keep, self.samples)
        weight = torch.where(
            plan.append[:, None], 0.0, weight
        )  # what stays as it is is not sampled
        warp = u[:, None]
        histogram = state.histogram
        if self.config.sticky != "off":
            room = self._room(state, plan)
            warp = sticky.quantiles(room, warp)
            histogram = sticky.carried(histogram, room, plan.keep, plan.end, plan.append).to(
                histogram.dtype
            )
        points = grid(self.basis, warp, weight, old, plan.keep, plan.end, x, self.samples, weights)
        new = tiles.multiply(*grid_tiles(self.config, points.device), points)
        if self.policy.appends:
            new = torch.where(plan.append[:, None, None, None], new + old, new)
        return new, histogram


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached while a model generates may be needed in training
def operators(config: MemoryConfig, length: int, device: torch.device = CPU) -> dict[str, Tensor]:
    """Operators of a constant contraction for segments of `length` tokens, by name, in the precision of writes."""
    if device != CPU:
        return {name: value.to(device) for name, value in operators(config, length).items()}
    samples = samples_of(config)
    both = regression.later_write(
        config.basis, config.widths, config.ridge, samples, length, float(config.contraction)
    )
    old = both[:samples]
    first = regression.first_write(config.basis, config.widths, config.ridge, length)
    out = {"first": first, "new": both[samples:]}
    if config.sticky == "off":  # sampling is the same for every lane: one N x N product
        even = torch.arange(1, samples + 1, dtype=torch.float64, device=CPU) / samples
        out["carry"] = old.T @ gaussian(even, *placement(config.basis, config.widths))
    else:
        out["old"] = old
    return {name: regression.cast(value, dtype_of(config)) for name, value in out.items()}


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def grid_tiles(config: MemoryConfig, device: torch.device = CPU) -> tuple[Tiles, Tiles]:
    """The operator of a policy's fixed grid, [N, M], and its transpose, in the precision of writes."""
    there, back = tiles.grid_write(
        config.basis, config.widths, config.ridge, samples_of(config), dtype_of(config)
    )
    return there.to(device), back.to(device)


def samples_of(config: MemoryConfig) -> int:
    """Samples of the signal taken at each write [M]."""
    return config.samples or 2 * config.basis


def dtype_of(config: MemoryConfig) -> torch.dtype:
    """The precision of writes."""
    return getattr(torch, config.precision)
