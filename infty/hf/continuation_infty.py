"""The memory of what followed in the transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.memory_infty import Ended, InftyMemory, Inputs, Reading
from infty.hf.state_infty import PartState
from infty.memory.associative import GATE_SCALE, initial_biases, read, segment_map, told_after
from infty.memory.sections import ContinuationConfig
from infty.tree import Field, Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyContinuationMemory(InftyMemory):
    """`infty.layers.memories.continuation`, a piece at a time.

    Of a segment it holds the keys and the values of the tokens, which it will write.
    """

    predicts = True

    def __init__(self, config: InftyConfig, layer: int, memory: ContinuationConfig) -> None:
        super().__init__(config, layer, memory)
        self.heads = config.num_attention_heads
        e = config.hidden_size
        self.value_size = e // self.heads
        told = memory.key_size + self.value_size
        self.key = nn.Linear(e, self.heads * memory.key_size, bias=False)
        self.strength_weight = nn.Parameter(torch.zeros(self.heads, told))
        self.strength_bias = nn.Parameter(torch.zeros(self.heads))
        self.decay_weight = nn.Parameter(torch.zeros(self.heads, told))
        self.decay_bias = nn.Parameter(torch.zeros(self.heads))
        self.gate = nn.Parameter(torch.zeros(self.heads))
        self.out = nn.Linear(e, e, bias=False)

    def initialise(self) -> None:
        """The gate starts at zero and the output as the identity."""
        init.normal_(self.key.weight, std=self.key.in_features**-0.5)
        for starts_at_zero in (self.strength_weight, self.decay_weight, self.gate):
            init.zeros_(starts_at_zero)
        strength, decay = initial_biases(self.heads)
        init.copy_(self.strength_bias, strength)
        init.copy_(self.decay_bias, decay)
        init.copy_(self.out.weight, torch.eye(self.out.in_features))

    @classmethod
    def describe(cls, memory: ContinuationConfig) -> str:
        return (
            f"what followed: a matrix of {memory.key_size} contexts a head and layer, written by "
            "the gated delta rule"
        )

    @classmethod
    def projections(cls, memory: ContinuationConfig) -> tuple[str, ...]:
        return ("key", "out")

    def fields(self, dtype: torch.dtype) -> Tree:
        """A matrix a head; keys and values in the short-term memory, and the key before them."""
        stm = self.delay * self.segment_length
        fields = {
            "matrix": Field((self.heads, self.memory.key_size, self.value_size), torch.float32),
            "keys": Field((self.heads, stm + 1, self.memory.key_size), dtype),
        }
        if stm:
            fields["values"] = Field((self.heads, stm, self.value_size), dtype)
        return Tree(fields)

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        key = self._by_head(self.key(inputs.normed))  # [b, H, t, k]
        value = self._by_head(inputs.output_rows.detach()).to(key.dtype)
        state = state.extend(inputs.piece, key=key, value=value)
        with torch.autocast(key.device.type, enabled=False):
            z = read(key[:, :, None], state.kept["matrix"][:, :, None])[:, :, 0]
            z = z * (GATE_SCALE * self.gate.float())[:, None, None]
        z = z.transpose(1, 2).flatten(2)
        return Reading(state, update=self.out(z.to(inputs.normed.dtype)))

    def write(self, ended: Ended, state: PartState) -> PartState:
        L, piece = self.segment_length, ended.piece
        keys, values = self._waiting(state)
        kept = {"keys": piece.where_complete(keys[:, :, L:], state.kept["keys"])}
        if self.delay:
            kept["values"] = piece.where_complete(values[:, :, L:], state.kept["values"])
        if ended.enabled:
            told = self._told(ended, state)
            kept["matrix"] = self._written(state.kept["matrix"], told, ended)
        return state.keep(**kept)

    def mark_shape(self) -> tuple[int, int]:
        return self.heads, self.memory.key_size

    def read_marks(self, inputs: Inputs, state: PartState, marks: Tensor) -> Tensor:
        """Before the gate."""
        key = self._by_head(self.key(inputs.normed))
        return read(key[:, :, None], marks[:, :, None])[:, :, 0]

    def write_marks(self, ended: Ended, state: PartState, marks: Tensor, new: Tensor) -> Tensor:
        keys, _, *how = self._told(ended, state)
        values = new[:, None].expand(-1, self.heads, -1, -1)
        return self._written(marks, (keys, values, *how), ended)

    def _waiting(self, state: PartState) -> tuple[Tensor, Tensor]:
        """Keys [b, H, stm + 1 + L, k] and values [b, H, stm + L, d] of what is not written yet."""
        keys = torch.cat([state.kept["keys"], state.held("key").to(state.kept["keys"].dtype)], 2)
        values = state.held("value")
        if self.delay:
            values = torch.cat([state.kept["values"], values.to(state.kept["values"].dtype)], 2)
        return keys, values

    def _told(self, ended: Ended, state: PartState) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the segment that leaves the short-term memory tells: see `told_after`."""
        keys, values = (x[:, :, : self.segment_length] for x in self._waiting(state))
        begins = (ended.piece.segments == self.delay)[:, None].to(keys.device)
        strength = (self.strength_weight, self.strength_bias)
        decay = (self.decay_weight, self.decay_bias)
        with torch.autocast(keys.device.type, enabled=False):
            return told_after(keys, values, begins, strength, decay)

    def _written(self, matrix: Tensor, told: tuple[Tensor, ...], ended: Ended) -> Tensor:
        """Matrices [b, H, k, d] after the segment that told this."""
        with torch.autocast(matrix.device.type, enabled=False):
            forgotten, added = segment_map(*told)
            written = forgotten @ matrix + added
        return torch.where(self.ready(ended)[:, None, None, None], written, matrix)

    def _by_head(self, x: Tensor) -> Tensor:
        """[b, t, H * n] -> [b, H, t, n]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


__all__ = ["InftyContinuationMemory"]
