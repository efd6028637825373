"""The long-term memory of one layer: a signal over [0, 1] contracted and extended segment by segment."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infty.errors import UserError
from infty.memory import regression, sticky
from infty.memory.basis import GaussianBasis, gaussian, placement
from infty.memory.config import MemoryConfig
from infty.memory.contraction import Plan, policy
from infty.memory.state import MemoryState


class ContinuousMemory(nn.Module):
    """Writes to a `MemoryState`. Has no parameters and no state of its own, only operators.

    Operators are solved in float64 once for a configuration and shared by its layers; buffers are not
    saved, and keep their precision when the model is cast. One lane's result never depends on another lane.
    """

    def __init__(self, config: MemoryConfig, segment_length: int) -> None:
        super().__init__()
        self.config, self.segment_length = config, segment_length
        self.basis = GaussianBasis(config.basis, config.widths)
        self.policy = policy(config.contraction)
        self.paper = not isinstance(config.contraction, str)
        self.dtype = getattr(torch, config.precision)
        self.samples = config.samples or 2 * config.basis
        for name, value in self._operators(segment_length).items():
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
              seeds: Tensor | None = None) -> MemoryState:
        """Contract the old signal and append the tokens x [b, h, l, c], in the lanes of `active` (bool [b]).

        l may be shorter than a segment. Gradients reach x, and the old coefficients if `backprop`. `seeds`
        (int64 [b], see `sticky.seed`) are for the multinomial warp only. Returns the new state; inactive
        lanes are unchanged to the bit.
        """
        if x.ndim != 4 or x.shape[2] == 0:
            raise UserError(f"memory write: expected [lanes, heads, tokens, channels], got {tuple(x.shape)}")
        before = state.coefficients if self.config.backprop else state.coefficients.detach()
        x, old = x.to(self.dtype), before.to(self.dtype)
        operators = self._operators_of(x)
        first = torch.matmul(operators["first"].T, x)
        later = (self._write_paper if self.paper else self._write_grid)(state, old, x, operators, seeds)
        new = torch.where((state.written == 0)[:, None, None, None], first, later).float()
        new = torch.where(active[:, None, None, None], new, before)
        return MemoryState(new, state.histogram, state.written + active)

    def _write_paper(self, state: MemoryState, old: Tensor, x: Tensor, operators: dict[str, Tensor],
                     seeds: Tensor | None) -> Tensor:
        """Constant share: old samples and new tokens side by side in one regression."""
        new = torch.matmul(operators["new"].T, x)
        if self.config.sticky == "off":
            return torch.matmul(operators["carry"], old) + new
        u = torch.arange(1, self.samples + 1, device=x.device, dtype=torch.float64) / self.samples
        warp = self._warp(state, u.expand(len(x), 1, -1), seeds)
        samples = torch.matmul(self.basis.evaluate(warp, self.dtype), old)
        return torch.matmul(operators["old"].T, samples) + new

    def _write_grid(self, state: MemoryState, old: Tensor, x: Tensor, operators: dict[str, Tensor],
                    seeds: Tensor | None) -> Tensor:
        """Any share: both signals are put on a fixed grid of cells, and one operator fits the grid."""
        plan = self.policy.plan(state.written.clamp(min=1))
        weight, u = old_cells(plan.keep, self.samples)
        samples = torch.matmul(self.basis.evaluate(self._warp(state, u[:, None], seeds), self.dtype), old)
        kept = torch.matmul(operators["grid"].T, weight.to(self.dtype)[:, None, :, None] * samples)
        kept = torch.where(plan.append[:, None, None, None], old, kept)
        pooled = torch.matmul(new_cells(plan, x.shape[2], self.samples).to(self.dtype)[:, None], x)
        return kept + torch.matmul(operators["grid"].T, pooled)

    def _warp(self, state: MemoryState, u: Tensor, seeds: Tensor | None) -> Tensor:
        """Where the samples that go to u [b, 1, n] of the old signal's room are taken from: [b, g, n]."""
        if self.config.sticky == "off":
            return u
        density = sticky.mixed(state.histogram, self.config.explore)
        if self.config.sticky == "quantile":
            return sticky.quantiles(density, u)
        return sticky.multinomial(density, u, state.written if seeds is None else seeds, self.samples)

    def _operators(self, length: int) -> dict[str, Tensor]:
        """Operators for segments of `length` tokens, by name, in the precision of writes."""
        c = self.config
        out = {"first": regression.first_write(c.basis, c.widths, c.ridge, length)}
        if self.paper:
            keep = float(c.contraction)
            both = regression.later_write(c.basis, c.widths, c.ridge, self.samples, length, keep)
            old, out["new"] = both[:self.samples], both[self.samples:]
            if c.sticky == "off":  # sampling is the same for every lane: one N x N product
                even = torch.arange(1, self.samples + 1, dtype=torch.float64) / self.samples
                out["carry"] = old.T @ gaussian(even, *placement(c.basis, c.widths))
            else:
                out["old"] = old
        else:
            out["grid"] = regression.grid_write(c.basis, c.widths, c.ridge, self.samples)
        return {name: value.to(self.dtype) for name, value in out.items()}

    def _operators_of(self, x: Tensor) -> dict[str, Tensor]:
        """The buffers, or operators made for a shorter last segment."""
        if x.shape[2] == self.segment_length:
            return {name: buffer for name, buffer in self.named_buffers(recurse=False)}
        return {name: value.to(x.device) for name, value in self._operators(x.shape[2]).items()}

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.first.dtype != self.dtype:
            for name, value in self._operators(self.segment_length).items():
                setattr(self, name, value.to(self.first.device))
        return self


def old_cells(keep: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The part of each of `cells` even cells that the old signal in [0, keep] covers, and where it lies.

    keep [b]. Returns weight [b, cells] in [0, 1] and u [b, cells]: the middle of the covered part as a share
    of [0, keep] (1 where nothing is covered).
    """
    lower = torch.arange(cells, device=keep.device, dtype=keep.dtype) / cells
    upper = torch.minimum(lower + 1 / cells, keep[:, None])
    weight = ((upper - lower) * cells).clamp(0, 1)
    return weight, ((lower + upper) / (2 * keep[:, None])).clamp(0, 1)


def new_cells(plan: Plan, tokens: int, cells: int) -> Tensor:
    """How much of each cell each new token covers: [b, cells, tokens]; tokens fill (keep, end] evenly."""
    step = (plan.end - plan.keep)[:, None, None] / tokens
    start = plan.keep[:, None, None] + step * torch.arange(tokens, device=step.device, dtype=step.dtype)
    lower = torch.arange(cells, device=step.device, dtype=step.dtype)[:, None] / cells
    overlap = torch.minimum(start + step, lower + 1 / cells) - torch.maximum(start, lower)
    return (overlap * cells).clamp(min=0)
