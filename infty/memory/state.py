"""What a layer's long-term memory carries from segment to segment: a value, never an attribute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from infty.tree import Tree


@dataclass(frozen=True)
class MemoryState:
    """The signal of one layer. An empty memory is the zero signal with a uniform histogram."""

    coefficients: Tensor
    """float32 [b, h, N, c]: coefficients B of the basis functions, one signal a lane and head."""
    histogram: Tensor
    """float32 [b, g, D]: where past attention fell, in places of the signal as it lies now; rows sum to 1. g is 1
    (shared) or h (one a head)."""
    written: Tensor
    """int64 [b]: segments of the current document that have been written."""
    weight: Tensor | None = None
    """float32 [b]: the weight that has been written, a segment's being the mean of its tokens'; None where tokens share
    their room evenly."""

    def map(self, f: Callable[[Tensor], Tensor]) -> MemoryState:
        """Apply f to every tensor (lanes are dimension 0 of each)."""
        return MemoryState(**self.tree().map(f))

    def tree(self) -> Tree:
        """The tensors by their names, as `ContinuousMemory.fields` declares them."""
        return Tree({name: x for name, x in vars(self).items() if x is not None})

    def detach(self) -> MemoryState:
        return self.map(Tensor.detach)
