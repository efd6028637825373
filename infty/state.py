"""Everything the model carries for each lane from window to window: a plain value, in and out of every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from infty.config import ModelConfig
from infty.errors import UserError
from infty.memory.state import MemoryState


@dataclass(frozen=True)
class LayerState:
    """One layer's memories. The lane is dimension 0 of every tensor; heads (dimension 1) are this rank's."""

    memory: MemoryState | None = None
    """The long-term memory."""
    pending: Tensor | None = None
    """[b, h, D*L, c]: the D segments that are in the short-term memory and not written yet (signal: hidden), or not
    compressed yet."""
    stm_key: Tensor | None = None
    """[b, K, stm, d]: keys of the last stm tokens, unrotated. With signal: heads also what is pending."""
    stm_value: Tensor | None = None
    """[b, K, stm, d]."""
    compressed: Tensor | None = None
    """[b, h, n, c]: the compressed memories, newest last (compressive transformer)."""

    def map(self, f: Callable[[Tensor], Tensor]) -> LayerState:
        def g(x: Tensor | None) -> Tensor | None:
            return None if x is None else f(x)

        memory = None if self.memory is None else self.memory.map(f)
        return LayerState(memory, *(g(getattr(self, name)) for name in PLAIN))


PLAIN = ("pending", "stm_key", "stm_value", "compressed")
"""The fields of a `LayerState` that are single tensors."""


@dataclass(frozen=True)
class LaneState:
    """The whole model's state for b lanes."""

    segments: Tensor
    """int64 [b]: segments of the lane's current document that have been read."""
    layers: tuple[LayerState, ...]

    def map(self, f: Callable[[Tensor], Tensor]) -> LaneState:
        """Apply f to every tensor: `.map(lambda x: x[2:4])` selects lanes 2 and 3."""
        return LaneState(f(self.segments), tuple(layer.map(f) for layer in self.layers))

    def detach(self) -> LaneState:
        return self.map(Tensor.detach)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, for checkpoints: `segments`, `layers.3.memory.coefficients`, ..."""
        out = {"segments": self.segments}
        for i, layer in enumerate(self.layers):
            parts = {name: getattr(layer, name) for name in PLAIN}
            if layer.memory is not None:
                parts |= {f"memory.{k}": v for k, v in vars(layer.memory).items()}
            out |= {f"layers.{i}.{k}": v for k, v in parts.items() if v is not None}
        return out

    @classmethod
    def from_tensors(cls, template: LaneState, tensors: dict[str, Tensor]) -> LaneState:
        """The inverse of `tensors`, for a model whose state looks like `template`. Raises UserError on a mismatch."""
        expected = set(template.tensors())
        if expected != set(tensors):
            odd = sorted(expected ^ set(tensors))
            raise UserError(f"the saved memory does not belong to this model: {', '.join(odd[:4])} differ")
        layers = []
        for i, layer in enumerate(template.layers):
            prefix = f"layers.{i}."
            memory = None
            if layer.memory is not None:
                memory = MemoryState(**{k: tensors[f"{prefix}memory.{k}"] for k in vars(layer.memory)})
            rest = {k: tensors.get(prefix + k) for k in PLAIN}
            layers.append(LayerState(memory, **rest))
        return cls(tensors["segments"], tuple(layers))


def split_over_heads(name: str, config: ModelConfig) -> bool:
    """Whether a named tensor of the state holds this rank's heads in dimension 1.

    The others (counters, and a histogram shared by all heads) are equal on every tensor-parallel rank.
    """
    if name == "segments" or name.endswith("memory.written"):
        return False
    return not name.endswith("memory.histogram") or config.memory.sticky_heads == "per_head"
