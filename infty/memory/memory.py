"""The long-term memory of one layer: a signal over [0, 1] contracted and extended segment by segment."""

from __future__ import annotations

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
        return Tree(
            {
                "coefficients": Field(
                    (heads, self.config.basis, channels), torch.float32, split=True
                ),
                "histogram": Field(
                    (heads if per_head else 1, bins), torch.float32, split=per_head, reset=1 / bins
                ),
                "written": Field((), torch.int64),
            }
        )

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
        )

    def with_histogram(self, state: MemoryState, histogram: Tensor, where: Tensor) -> MemoryState:
        """Take in where a segment's reads fell, [b, g, D], in the lanes of `where` (bool [b])."""
        heard = self.writing.heard(state.histogram, histogram)
        new = torch.where(where[:, None, None], heard.to(state.histogram.dtype), state.histogram)
        return MemoryState(state.coefficients, new, state.written)

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

    def write(
        self,
        state: MemoryState,
        x: Tensor,
        active: Tensor,
        seeds: Tensor | None = None,
        rate: Tensor | None = None,
    ) -> MemoryState:
        """Contract the old signal and append the tokens x [b, h, l, c], in the lanes of `active` (bool [b]).

        l may be shorter than a segment. Gradients reach x, and the old coefficients if `backprop`. `seeds`
        (int64 [b], see `sticky.seed`) are for the multinomial warp only, `rate` (a scalar > 0) for a learned
        contraction. Returns the new state; inactive lanes are unchanged to the bit.
        """
        if x.ndim != 4 or x.shape[2] == 0:
            raise UserError(
                f"memory write: expected [lanes, heads, tokens, channels], got {tuple(x.shape)}"
            )
        with torch.autocast(x.device.type, enabled=False):
            return self._write(state, x, active, seeds, rate)

    def _write(
        self,
        state: MemoryState,
        x: Tensor,
        active: Tensor,
        seeds: Tensor | None,
        rate: Tensor | None,
    ) -> MemoryState:
        before = state.coefficients if self.config.backprop else state.coefficients.detach()
        dtype = dtype_of(self.config)
        new, histogram = self.writing.write(state, before.to(dtype), x.to(dtype), seeds, rate)
        if _seen_here(active) and active.all():
            return MemoryState(new.float(), histogram, state.written + 1)
        new = torch.where(active[:, None, None, None], new.float(), before)
        histogram = torch.where(active[:, None, None], histogram, state.histogram)
        return MemoryState(new, histogram, state.written + active)


def _seen_here(lanes: Tensor) -> bool:
    """Whether looking into bool [b] costs nothing: not where a program would wait for a GPU, nor where one is traced.

    Most writes are of all lanes and most segments begin no document: to choose between two whole signals, forward and
    backward, would be much of a write's time. The result is the same to the bit.
    """
    return lanes.device.type == "cpu" and not torch.compiler.is_compiling()
