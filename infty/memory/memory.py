"""The long-term memory of one layer: a signal over [0, 1] contracted and extended segment by segment."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from infty.errors import UserError
from infty.memory import regression, sticky, tiles
from infty.memory.basis import GaussianBasis, gaussian, placement
from infty.memory.config import MemoryConfig
from infty.memory.contraction import Plan, policy
from infty.memory.resample import grid, old_cells, sample
from infty.memory.state import MemoryState
from infty.memory.tiles import Tiles


class ContinuousMemory(nn.Module):
    """Writes to a `MemoryState`. Has no parameters and no state of its own, only operators.

    Operators are solved in float64 once for a configuration and shared by its layers; buffers are not
    saved, and keep their precision when the model is cast. What is in one lane never changes another, to the bit;
    another number or order of lanes or heads may change the rounding (docs/exactness.md).
    """

    def __init__(self, config: MemoryConfig, segment_length: int) -> None:
        super().__init__()
        self.config, self.segment_length = config, segment_length
        self.basis = GaussianBasis(config.basis, config.widths)
        self.policy = policy(config.contraction)
        self.paper = not isinstance(config.contraction, str)
        self.dtype = getattr(torch, config.precision)
        self.samples = samples_of(config)
        for name, value in operators(config, segment_length).items():
            self.register_buffer(name, value, persistent=False)

    def empty(self, lanes: int, heads: int, channels: int,
              device: torch.device | str | None = None) -> MemoryState:
        """The zero signal with a uniform histogram: what every lane starts a document with."""
        groups = heads if self.config.sticky_heads == "per_head" else 1
        bins = self.config.bins
        return MemoryState(torch.zeros(lanes, heads, self.config.basis, channels, device=device),
                           torch.full((lanes, groups, bins), 1 / bins, device=device),
                           torch.zeros(lanes, dtype=torch.long, device=device))

    def reset(self, state: MemoryState, where: Tensor) -> MemoryState:
        """Empty the lanes in `where` (bool [b]); the others are unchanged to the bit."""
        wide = where[:, None, None]
        return MemoryState(torch.where(wide[..., None], 0.0, state.coefficients),
                           torch.where(wide, 1 / self.config.bins, state.histogram),
                           torch.where(where, 0, state.written))

    def with_histogram(self, state: MemoryState, histogram: Tensor, where: Tensor) -> MemoryState:
        """Replace the histogram [b, g, D] of the lanes in `where` (bool [b])."""
        new = torch.where(where[:, None, None], histogram.to(state.histogram.dtype), state.histogram)
        return MemoryState(state.coefficients, new, state.written)

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
        x, old = x.to(self.dtype), before.to(self.dtype)
        if self.paper:
            new = self._write_paper(state, old, x, seeds)
        else:
            new = self._write_grid(state, old, x, seeds, self.policy.plan(state.written, rate))
        new = torch.where(active[:, None, None, None], new.float(), before)
        return MemoryState(new, state.histogram, state.written + active)

    def _write_paper(self, state: MemoryState, old: Tensor, x: Tensor, seeds: Tensor | None) -> Tensor:
        """Constant share: old samples and new tokens side by side in one regression."""
        operator = self._operators_of(x)
        later = torch.matmul(operator["new"].T, x)
        if self.config.sticky == "off":
            later = later + torch.matmul(operator["carry"], old)
        else:
            u = torch.arange(1, self.samples + 1, device=x.device, dtype=torch.float64) / self.samples
            warp = self._warp(state, u.expand(len(x), 1, -1), seeds)
            later = later + torch.matmul(operator["old"].T, sample(self.basis, warp, None, old))
        first = torch.matmul(operator["first"].T, x)
        return torch.where((state.written == 0)[:, None, None, None], first, later)

    def _write_grid(self, state: MemoryState, old: Tensor, x: Tensor, seeds: Tensor | None, plan: Plan) -> Tensor:
        """Any share: both signals are put on a fixed grid of cells, and one operator fits the grid."""
        weight, u = old_cells(plan.keep, self.samples)
        weight = torch.where(plan.append[:, None], 0.0, weight)  # what stays as it is is not sampled
        warp = self._warp(state, u[:, None], seeds, plan)
        new = self._fitted(grid(self.basis, warp, weight, old, plan.keep, plan.end, x, self.samples))
        return torch.where(plan.append[:, None, None, None], new + old, new) if self.policy.appends else new

    def _fitted(self, points: Tensor) -> Tensor:
        """Coefficients [b, h, N, c] of a signal on the grid, [b, h, P, c]."""
        there, back = grid_tiles(self.config)
        return tiles.multiply(replace(there, entries=self.grid), replace(back, entries=self.grid_back), points)

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

    def _warp(self, state: MemoryState, u: Tensor, seeds: Tensor | None, plan: Plan | None = None) -> Tensor:
        """Where the samples that go to u [b, 1, n] of the old signal's room are taken from: [b, g, n]."""
        if self.config.sticky == "off":
            return u
        density = self.room(state, plan)
        if self.config.sticky == "quantile":
            return sticky.quantiles(density, u)
        return sticky.multinomial(density, u, state.written if seeds is None else seeds, self.samples)

    def _operators_of(self, x: Tensor) -> dict[str, Tensor]:
        """The buffers, or operators made for a shorter last segment."""
        if x.shape[2] == self.segment_length:
            return {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        return operators(self.config, x.shape[2], x.device)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for name, buffer in list(self.named_buffers(recurse=False)):
            if buffer.device.type != "meta":  # in the precision of writes, and one for all layers on a device
                setattr(self, name, operators(self.config, self.segment_length, buffer.device)[name])
        return self


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached while a model generates may be needed in training
def operators(config: MemoryConfig, length: int, device: torch.device = regression.CPU) -> dict[str, Tensor]:
    """Operators of a memory for segments of `length` tokens, by name, in the precision of writes.

    Solved once for a configuration; its layers on a device share them.
    """
    if device != regression.CPU:
        return {name: value.to(device) for name, value in operators(config, length).items()}
    c, dtype = config, getattr(torch, config.precision)
    if isinstance(c.contraction, str):
        return {"grid": grid_tiles(c)[0].entries, "grid_back": grid_tiles(c)[1].entries}
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


def grid_tiles(config: MemoryConfig) -> tuple[Tiles, Tiles]:
    """The operator of a policy's fixed grid, [N, M], and its transpose, in the precision of writes."""
    return tiles.grid_write(config.basis, config.widths, config.ridge, samples_of(config),
                            getattr(torch, config.precision))


def samples_of(config: MemoryConfig) -> int:
    """Samples of the signal taken at each write [M]."""
    return config.samples or 2 * config.basis
