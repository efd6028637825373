"""The long-term memory of one layer: a signal over [0, 1] contracted and extended segment by segment."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from infty.errors import UserError
from infty.memory import regression, sticky, tiles
from infty.memory.basis import GaussianBasis, gaussian, placement
from infty.memory.config import MemoryConfig
from infty.memory.contraction import Plan, policy
from infty.memory.resample import grid, old_cells, sample
from infty.memory.state import MemoryState
from infty.memory.tiles import Tiles
from infty.tree import Field, Tree, fresh


class ContinuousMemory:
    """Writes to a `MemoryState`. Has no parameters and no state of its own.

    Its operators are solved in float64 once for a configuration, kept by the functions below for every device, and
    shared by all layers; nothing that a model goes through can change them. What is in one lane never changes another,
    to the bit; another number or order of lanes or heads may change the rounding (docs/exactness.md).
    """

    def __init__(self, config: MemoryConfig, segment_length: int) -> None:
        self.config, self.segment_length = config, segment_length
        self.basis = GaussianBasis(config.basis, config.widths)
        self.policy = policy(config.contraction)
        self.paper = not config.has_policy
        self.dtype = getattr(torch, config.precision)
        self.samples = samples_of(config)
        # What a warp moves by one function is all that is read there: the more functions, the slower it must be.
        self.span = config.attention_span or max(1, config.basis // 8)

    def fields(self, heads: int, channels: int) -> Tree:
        """What is declared of a `MemoryState`: the zero signal with a uniform histogram begins a document."""
        per_head = self.config.sticky_heads == "per_head"
        bins = self.config.bins
        return Tree({
            "coefficients": Field((heads, self.config.basis, channels), torch.float32, split=True),
            "histogram": Field((heads if per_head else 1, bins), torch.float32, split=per_head, reset=1 / bins),
            "written": Field((), torch.int64)})

    def empty(self, lanes: int, heads: int, channels: int,
              device: torch.device | str = "cpu") -> MemoryState:
        """The state of lanes that begin a document."""
        return MemoryState(**fresh(self.fields(heads, channels), lanes, device))

    def reset(self, state: MemoryState, where: Tensor) -> MemoryState:
        """Empty the lanes in `where` (bool [b]); the others are unchanged to the bit."""
        wide = where[:, None, None]
        return MemoryState(torch.where(wide[..., None], 0.0, state.coefficients),
                           torch.where(wide, 1 / self.config.bins, state.histogram),
                           torch.where(where, 0, state.written))

    def with_histogram(self, state: MemoryState, histogram: Tensor, where: Tensor) -> MemoryState:
        """Take in where a segment's reads fell, [b, g, D], in the lanes of `where` (bool [b]).

        A constant share is warped by the last segment's reads alone, as the paper's is; a policy by a running average.
        """
        if not self.paper:
            histogram = sticky.averaged(state.histogram, histogram, self.span)
        new = torch.where(where[:, None, None], histogram.to(state.histogram.dtype), state.histogram)
        return MemoryState(state.coefficients, new, state.written)

    def at_centers(self, state: MemoryState) -> Tensor:
        """The signal at the centres of its functions: float32 [b, h, N, c] for one function a centre."""
        centers, _ = placement(self.basis.size, self.basis.each, state.coefficients.device)
        times = centers[::len(self.basis.each)].expand(len(state.coefficients), 1, -1)
        with torch.autocast(state.coefficients.device.type, enabled=False):
            return sample(self.basis, times, None, state.coefficients)

    def write(self, state: MemoryState, x: Tensor, active: Tensor,
              seeds: Tensor | None = None, rate: Tensor | None = None) -> MemoryState:
        """Contract the old signal and append the tokens x [b, h, l, c], in the lanes of `active` (bool [b]).

        l may be shorter than a segment. Gradients reach x, and the old coefficients if `backprop`. `seeds`
        (int64 [b], see `sticky.seed`) are for the multinomial warp only, `rate` (a scalar > 0) for a learned
        contraction. Returns the new state; inactive lanes are unchanged to the bit.
        """
        if x.ndim != 4 or x.shape[2] == 0:
            raise UserError(f"memory write: expected [lanes, heads, tokens, channels], got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            return self._write(state, x, active, seeds, rate)

    def _write(self, state: MemoryState, x: Tensor, active: Tensor, seeds: Tensor | None,
               rate: Tensor | None) -> MemoryState:
        before = state.coefficients if self.config.backprop else state.coefficients.detach()
        x, old, histogram = x.to(self.dtype), before.to(self.dtype), state.histogram
        if self.paper:
            new = self._write_paper(state, old, x, seeds)
        else:
            plan = self.policy.plan(state.written, rate)
            room = None if self.config.sticky == "off" else self.room(state, plan)
            new = self._write_grid(old, x, plan, room)
            if room is not None:
                moved = sticky.carried(histogram, room, plan.keep, plan.end, plan.append).to(histogram.dtype)
                histogram = torch.where(active[:, None, None], moved, histogram)
        new = torch.where(active[:, None, None, None], new.float(), before)
        return MemoryState(new, histogram, state.written + active)

    def _write_paper(self, state: MemoryState, old: Tensor, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Constant share: old samples and new tokens side by side in one regression."""
        operator = operators(self.config, x.shape[2], x.device)
        later = torch.matmul(operator["new"].T, x)
        if self.config.sticky == "off":
            later = later + torch.matmul(operator["carry"], old)
        else:
            u = torch.arange(1, self.samples + 1, device=x.device, dtype=torch.float64) / self.samples
            warp = self._drawn(state, u.expand(len(x), 1, -1), seeds)
            later = later + torch.matmul(operator["old"].T, sample(self.basis, warp, None, old))
        first = torch.matmul(operator["first"].T, x)
        return torch.where((state.written == 0)[:, None, None, None], first, later)

    def _write_grid(self, old: Tensor, x: Tensor, plan: Plan, room: Tensor | None) -> Tensor:
        """Any share: both signals are put on a fixed grid of cells, and one operator fits the grid.

        room: see `room`; None samples the old signal evenly.
        """
        weight, u = old_cells(plan.keep, self.samples)
        weight = torch.where(plan.append[:, None], 0.0, weight)  # what stays as it is is not sampled
        u = u[:, None]
        warp = u if room is None else sticky.quantiles(room, u)
        new = self._fitted(grid(self.basis, warp, weight, old, plan.keep, plan.end, x, self.samples))
        return torch.where(plan.append[:, None, None, None], new + old, new) if self.policy.appends else new

    def _fitted(self, points: Tensor) -> Tensor:
        """Coefficients [b, h, N, c] of a signal on the grid, [b, h, P, c]."""
        return tiles.multiply(*grid_tiles(self.config, points.device), points)

    def room(self, state: MemoryState, plan: Plan | None = None) -> Tensor:
        """How much room each part of the old signal gets at the next write: float64 [b, g, D], rows sum to 1.

        A constant share follows past attention as the paper does. Where the signal is rewritten at every
        segment of a long document, that would compound: what is read doubles its room again and again, and all
        else is gone within a dozen writes. There attention decides only who gives up the room that new tokens
        take, so that what is never read shrinks twice as fast as the rest, not exponentially faster.
        """
        even = self.config.explore
        if not self.paper:
            keep = (self.policy.plan(state.written) if plan is None else plan).keep.detach()
            even = (1 - (1 - even) * (1 - keep))[:, None, None]
        return sticky.mixed(state.histogram, even)

    def _drawn(self, state: MemoryState, u: Tensor, seeds: Tensor | None) -> Tensor:
        """With a constant share: where the samples that go to u [b, 1, n] of the old signal's room are taken from,
        float64 [b, g, n]."""
        density = self.room(state)
        if self.config.sticky == "quantile":
            return sticky.quantiles(density, u)
        return sticky.multinomial(density, u, state.written if seeds is None else seeds, self.samples)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached while a model generates may be needed in training
def operators(config: MemoryConfig, length: int, device: torch.device = regression.CPU) -> dict[str, Tensor]:
    """Operators of a constant contraction for segments of `length` tokens, by name, in the precision of writes."""
    if device != regression.CPU:
        return {name: value.to(device) for name, value in operators(config, length).items()}
    c, dtype = config, getattr(torch, config.precision)
    samples = samples_of(c)
    both = regression.later_write(c.basis, c.widths, c.ridge, samples, length, float(c.contraction))
    old = both[:samples]
    out = {"first": regression.first_write(c.basis, c.widths, c.ridge, length), "new": both[samples:]}
    if c.sticky == "off":  # sampling is the same for every lane: one N x N product
        even = torch.arange(1, samples + 1, dtype=torch.float64, device=regression.CPU) / samples
        out["carry"] = old.T @ gaussian(even, *placement(c.basis, c.widths))
    else:
        out["old"] = old
    return {name: regression.cast(value, dtype) for name, value in out.items()}


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def grid_tiles(config: MemoryConfig, device: torch.device = regression.CPU) -> tuple[Tiles, Tiles]:
    """The operator of a policy's fixed grid, [N, M], and its transpose, in the precision of writes."""
    there, back = tiles.grid_write(config.basis, config.widths, config.ridge, samples_of(config),
                                   getattr(torch, config.precision))
    return replace(there, entries=there.entries.to(device)), replace(back, entries=back.entries.to(device))


def samples_of(config: MemoryConfig) -> int:
    """Samples of the signal taken at each write [M]."""
    return config.samples or 2 * config.basis
