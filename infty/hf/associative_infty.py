"""The associative memory of a layer in the transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.memory_infty import Ended, InftyMemory, Inputs, Reading
from infty.hf.state_infty import PartState
from infty.memory.associative import initial_biases, read, read_normed, segment_map, told
from infty.memory.sections import AssociativeConfig
from infty.tree import Field, Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyAssociativeMemory(InftyMemory):
    """`infty.layers.memories.associative`, a piece at a time."""

    def __init__(self, config: InftyConfig, layer: int, memory: AssociativeConfig) -> None:
        super().__init__(config, layer, memory)
        heads, size = self.kv_heads, self.head_size
        self.strength_weight = nn.Parameter(torch.zeros(heads, 2 * size))
        self.strength_bias = nn.Parameter(torch.zeros(heads))
        self.decay_weight = nn.Parameter(torch.zeros(heads, 2 * size))
        self.decay_bias = nn.Parameter(torch.zeros(heads))
        self.norm_weight = nn.Parameter(torch.ones(heads, self.group, size))
        self.gate = nn.Parameter(torch.zeros(heads, self.group))
        self.out = nn.Linear(heads * self.group * size, config.hidden_size, bias=False)

    def initialise(self) -> None:
        """The gate starts at zero: a model with a fresh memory is the model without one."""
        for starts_at_zero in (self.strength_weight, self.decay_weight, self.gate):
            init.zeros_(starts_at_zero)
        init.ones_(self.norm_weight)
        strength, decay = initial_biases(self.kv_heads)
        init.copy_(self.strength_bias, strength)
        init.copy_(self.decay_bias, decay)

    @classmethod
    def describe(cls, memory: AssociativeConfig) -> str:
        return "a matrix a key/value head and layer, written by the gated delta rule"

    @classmethod
    def projections(cls, memory: AssociativeConfig) -> tuple[str, ...]:
        return ("out",)

    def fields(self, dtype: torch.dtype) -> Tree:
        """One matrix a key/value head, in float32."""
        shape = (self.kv_heads, self.head_size, self.head_size)
        return Tree({"matrix": Field(shape, torch.float32)})

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        # Mathematics of the memory is done in float32, also when the rest of the model is autocast.
        with torch.autocast(inputs.q.device.type, enabled=False):
            z = read_normed(
                inputs.q, state.kept["matrix"][:, :, None], self.norm_weight, self.gate
            )  # [b, K, G, t, d]
        z = z.flatten(1, 2).transpose(1, 2).flatten(2)
        return Reading(state, update=self.out(z.to(inputs.normed.dtype)))

    def write(self, ended: Ended, state: PartState) -> PartState:
        if not ended.enabled:
            return state
        return state.keep(matrix=self._written(state.kept["matrix"], self._told(ended), ended))

    def mark_shape(self) -> tuple[int, int]:
        return self.kv_heads, self.head_size

    def read_marks(self, inputs: Inputs, state: PartState, marks: Tensor) -> Tensor:
        """Before the norm of what is read."""
        return read(inputs.q, marks[:, :, None]).flatten(1, 2)

    def write_marks(self, ended: Ended, state: PartState, marks: Tensor, new: Tensor) -> Tensor:
        keys, _, *how = self._told(ended)
        values = new[:, None].expand(-1, self.kv_heads, -1, -1)
        return self._written(marks, (keys, values, *how), ended)

    def _told(self, ended: Ended) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the segment that leaves the short-term memory tells: see `told`."""
        keys, values = (x[:, :, : self.segment_length] for x in (ended.keys, ended.values))
        if not self.memory.backprop:
            keys, values = keys.detach(), values.detach()
        strength = (self.strength_weight, self.strength_bias)
        decay = (self.decay_weight, self.decay_bias)
        with torch.autocast(keys.device.type, enabled=False):
            return told(keys, values, strength, decay)

    def _written(self, matrix: Tensor, what: tuple[Tensor, ...], ended: Ended) -> Tensor:
        """Matrices [b, K, d, c] after the segment that told this."""
        with torch.autocast(matrix.device.type, enabled=False):
            kept, added = segment_map(*what)
            written = kept @ matrix + added
        return torch.where(self.ready(ended)[:, None, None, None], written, matrix)


__all__ = ["InftyAssociativeMemory"]
