"""The long-term memory of one layer: a signal over [0, 1] contracted and extended segment by segment."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from infty.errors import UserError
from infty.memory import sticky, tiles
from infty.memory.basis import GaussianBasis
from infty.memory.config import MemoryConfig
from infty.memory.state import MemoryState
from infty.memory.writing import dtype_of, writing
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
        self.writing = writing(config)

    def fields(self, heads: int, channels: int) -> Tree:
        """What is declared of a `MemoryState`: the zero signal with a uniform histogram begins a document."""
        per_head = self.config.sticky_heads == "per_head"
        bins = self.config.bins
        fields = {
            "coefficients": Field((heads, self.config.basis, channels), torch.float32, split=True),
            "histogram": Field(
                (heads if per_head else 1, bins), torch.float32, split=per_head, reset=1 / bins
            ),
            "written": Field((), torch.int64),
        }
        if self.config.room != "even":
            fields["weight"] = Field((), torch.float32)
        return Tree(fields)

    def empty(
        self, lanes: int, heads: int, channels: int, device: torch.device | str = "cpu"
    ) -> MemoryState:
        """The state of lanes that begin a document."""
        return MemoryState(**fresh(self.fields(heads, channels), lanes, device))

    def reset(self, state: MemoryState, where: Tensor) -> MemoryState:
        """Empty the lanes in `where` (bool [b]); the others are unchanged to the bit."""
        if _seen_here(where) and not where.any():
            return state
        wide = where[:, None, None]
        return MemoryState(
            torch.where(wide[..., None], 0.0, state.coefficients),
            torch.where(wide, 1 / self.config.bins, state.histogram),
            torch.where(where, 0, state.written),
            None if state.weight is None else torch.where(where, 0.0, state.weight),
        )

    def with_histogram(self, state: MemoryState, histogram: Tensor, where: Tensor) -> MemoryState:
        """Take in where a segment's reads fell, [b, g, D], in the lanes of `where` (bool [b])."""
        heard = self.writing.heard(state.histogram, histogram)
        new = torch.where(where[:, None, None], heard.to(state.histogram.dtype), state.histogram)
        return replace(state, histogram=new)

    def seeds(self, state: MemoryState, layer: int) -> Tensor | None:
        """What the next write of a layer draws from, if its warp draws: int64 [b], equal on every rank of a layout."""
        if self.config.sticky != "multinomial":
            return None
        return sticky.seed(self.config.sticky_seed, state.written, layer)

    def at_centers(self, coefficients: Tensor) -> Tensor:
        """Signals of coefficients float32 [..., N, c] at the centres of their functions: [..., N, c] for one function a
        centre."""
        operator = tiles.at_centers(self.basis.size, self.basis.each, coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            return tiles.multiply(*operator, coefficients)

    def shares(self, coefficients: Tensor) -> Tensor:
        """How much of [0, 1] each channel of a signal [b, h, N, c] takes up: its mean magnitude at the centres over
        that of all channels, float32 [b, c]."""
        size = self.at_centers(coefficients).abs().sum((1, 2))
        return size / size.sum(-1, keepdim=True).clamp(min=1e-30)

    def write(
        self,
        state: MemoryState,
        x: Tensor,
        active: Tensor,
        seeds: Tensor | None = None,
        rate: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> MemoryState:
        """Contract the old signal and append the tokens x [b, h, l, c], in the lanes of `active` (bool [b]).

        l may be shorter than a segment. Gradients reach x, and the old coefficients if `backprop`. `seeds`
        (int64 [b], see `sticky.seed`) are for the multinomial warp only, `rate` (a scalar > 0) for a learned
        contraction, `weights` ([b, l] > 0, with gradients) for every `room` but an even one. Returns the new state;
        inactive lanes are unchanged to the bit.
        """
        if x.ndim != 4 or x.shape[2] == 0:
            raise UserError(
                f"memory write: expected [lanes, heads, tokens, channels], got {tuple(x.shape)}"
            )
        with torch.autocast(x.device.type, enabled=False):
            return self._write(state, x, active, seeds, rate, weights)

    def _write(
        self,
        state: MemoryState,
        x: Tensor,
        active: Tensor,
        seeds: Tensor | None,
        rate: Tensor | None,
        weights: Tensor | None,
    ) -> MemoryState:
        if not self.config.backprop:
            state = state.detach()
        before = state.coefficients
        dtype = dtype_of(self.config)
        new, histogram = self.writing.write(
            state, before.to(dtype), x.to(dtype), seeds, rate, weights
        )
        weight = state.weight
        if weight is not None and weights is not None:
            weight = torch.where(active, weight + weights.float().mean(-1), weight)
        if _seen_here(active) and active.all():
            return MemoryState(new.float(), histogram, state.written + 1, weight)
        new = torch.where(active[:, None, None, None], new.float(), before)
        histogram = torch.where(active[:, None, None], histogram, state.histogram)
        return MemoryState(new, histogram, state.written + active, weight)


def _seen_here(lanes: Tensor) -> bool:
    """Whether looking into bool [b] costs nothing: not where a program would wait for a GPU, nor where one is traced.

    Most writes are of all lanes and most segments begin no document: to choose between two whole signals, forward and
    backward, would be much of a write's time. The result is the same to the bit.
    """
    return lanes.device.type == "cpu" and not torch.compiler.is_compiling()
