"""The continuous memory in the softmax of local attention, in the transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.memory_infty import Attended, Ended, InftyMemory, Inputs, Reading
from infty.hf.room_infty import InftyRoom
from infty.hf.state_infty import PartState
from infty.memory import attending, room
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty.tree import Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyJointMemory(InftyMemory):
    """`infty.layers.memories.continuous_joint`, a piece at a time. Of a segment it holds the weights
    of its room. Of its state it makes keys and values."""

    def __init__(self, config: InftyConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.core = ContinuousMemory(memory, self.segment_length)
        self.room = InftyRoom(memory, config.hidden_size)
        self.surprised = memory.room == "surprise"
        self.log_sharpness = nn.Parameter(torch.zeros(self.kv_heads))

    def initialise(self) -> None:
        init.zeros_(self.log_sharpness)

    @classmethod
    def describe(cls, memory: MemoryConfig) -> str:
        return (
            f"{memory.basis} points of a continuous signal a head and layer, in one softmax with "
            f"the tokens in sight, contraction {memory.contraction}, room {memory.room}"
        )

    @classmethod
    def projections(cls, memory: MemoryConfig) -> tuple[str, ...]:
        """None: it shares the attention's."""
        return ()

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal, and the weights of the tokens in the short-term memory."""
        signal = self.core.fields(self.kv_heads, 2 * self.head_size)
        pending = room.pending(self.memory, self.delay * self.segment_length)
        return Tree({"signal": signal, **pending})

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        signal = MemoryState(**state.kept["signal"])
        if not len(state.made):
            points = self.core.at_centers(signal.coefficients)
            keys, values = attending.points(points, self.log_sharpness, inputs.q.dtype)
            state = state.make(keys=keys, values=values)
        prior = attending.prior(self.memory.basis)
        attended = Attended(state.made["keys"], state.made["values"], signal.written > 0, prior)
        return Reading(state.extend(inputs.piece, **self.room(inputs)), attended=attended)

    def write(self, ended: Ended, state: PartState) -> PartState:
        weights, kept = self.room.ended(ended, state)
        if not ended.enabled:
            return state.keep(**kept) if kept else state
        signal = MemoryState(**state.kept["signal"])
        stream = torch.cat([ended.keys, ended.values], -1)[:, :, : self.segment_length]
        if not self.memory.backprop:
            stream = stream.detach()
        signal = self.core.write(signal, stream, self.ready(ended), weights=weights)
        return state.keep(signal=signal.tree(), **kept)

    def mark_shape(self) -> tuple[int, int]:
        """Every head's signal is written alike."""
        return 1, self.memory.basis

    def read_marks(self, inputs: Inputs, state: PartState, marks: Tensor) -> Attended:
        attended = self.read(inputs, state).attended
        values = self.core.at_centers(marks).to(attended.keys.dtype)
        return attended._replace(values=values.expand(-1, self.kv_heads, -1, -1))

    def write_marks(self, ended: Ended, state: PartState, marks: Tensor, new: Tensor) -> Tensor:
        marked = MemoryState(**{**state.kept["signal"], "coefficients": marks})
        weights, _ = self.room.ended(ended, state)
        written = self.core.write(marked, new[:, None], self.ready(ended), weights=weights)
        return written.coefficients

    def share_of(self, state: PartState, marks: Tensor) -> Tensor:
        """The share of [0, 1] that stands for it."""
        return self.core.shares(marks)


__all__ = ["InftyJointMemory"]
