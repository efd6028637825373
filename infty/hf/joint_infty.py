"""The continuous memory in the softmax of local attention, in the transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import initialization as init

from infty.hf.memory_infty import Attended, Ended, InftyMemory, Inputs, Reading
from infty.hf.state_infty import PartState
from infty.memory import attending
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty.tree import Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyJointMemory(InftyMemory):
    """`infty.layers.memories.continuous_joint`, a piece at a time. Of its state it makes keys and
    values."""

    attends = True

    def __init__(self, config: InftyConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.core = ContinuousMemory(memory, self.segment_length)
        self.log_sharpness = nn.Parameter(torch.zeros(self.kv_heads))

    def initialise(self) -> None:
        init.zeros_(self.log_sharpness)

    @classmethod
    def describe(cls, memory: MemoryConfig) -> str:
        return (
            f"{memory.basis} points of a continuous signal a head and layer, in one softmax with "
            f"the tokens in sight, contraction {memory.contraction}"
        )

    @classmethod
    def projections(cls, memory: MemoryConfig) -> tuple[str, ...]:
        """None: it shares the attention's."""
        return ()

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal."""
        return Tree({"signal": self.core.fields(self.kv_heads, 2 * self.head_size)})

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        signal = MemoryState(**state.kept["signal"])
        if not len(state.made):
            points = self.core.at_centers(signal.coefficients)
            keys, values = attending.points(points, self.log_sharpness, inputs.q.dtype)
            state = state.make(keys=keys, values=values)
        prior = attending.prior(self.memory.basis)
        attended = Attended(state.made["keys"], state.made["values"], signal.written > 0, prior)
        return Reading(state, attended=attended)

    def write(self, ended: Ended, state: PartState) -> PartState:
        if not ended.enabled:
            return state
        signal = MemoryState(**state.kept["signal"])
        stream = torch.cat([ended.keys, ended.values], -1)[:, :, : self.segment_length]
        if not self.memory.backprop:
            stream = stream.detach()
        signal = self.core.write(signal, stream, self.ready(ended))
        return state.keep(signal=Tree(vars(signal)))


__all__ = ["InftyJointMemory"]
