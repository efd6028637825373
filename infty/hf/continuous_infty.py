"""The continuous memory of a layer in the transformers model: how its heads read, and what is
written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.joint_infty import InftyJointMemory
from infty.hf.memory_infty import Ended, InftyMemory, InftyModule, Inputs, Reading
from infty.hf.room_infty import InftyRoom
from infty.hf.state_infty import PartState
from infty.memory import reading, room, signals
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.reading import Density
from infty.memory.state import MemoryState
from infty.tree import Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyDensityMaps(InftyModule):
    """What a layer learns to read with: the parameters that its family of densities declares."""

    def __init__(self, memory: MemoryConfig, heads: int) -> None:
        super().__init__()
        self.memory, self.heads = memory, heads
        for name, p in reading.parameters(memory, heads).items():
            self.register_parameter(name, nn.Parameter(torch.empty(p.shape)))

    def initialise(self) -> None:
        for name, p in reading.parameters(self.memory, self.heads).items():
            parameter = self.get_parameter(name)
            if p.value is None:
                init.normal_(parameter, std=p.std)
            else:
                init.copy_(parameter, p.value)

    def forward(self) -> dict[str, Tensor]:
        """The parameters, with a row for each head. Always by a call of the module, which is where
        weights that are kept elsewhere (offloaded, sharded) are fetched."""
        return {name: p.expand(self.heads, *p.shape[1:]) for name, p in self.named_parameters()}


class InftyProjections(signals.Projections):
    """A hidden signal's way to keys and values, through projections that may be quantised."""

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """By all heads' keys, of which each head takes its own."""
        # Quantised projections take no more than three dimensions.
        projected = self.layer.key(pooled.to(self.dtype).flatten(0, 3))
        heads = self.layer.kv_heads, self.layer.head_size
        own = projected.view(*pooled.shape[:4], *heads).diagonal(dim1=2, dim2=4)  # [P, b, G, d, K]
        return own.permute(0, 1, 4, 2, 3).float()


class InftyContinuousMemory(InftyMemory):
    """`infty.layers.memories.continuous`, a piece at a time.

    Of a segment it holds hidden states, if its signal stores them, for the sticky histogram
    what its densities make of each token, [b, H, w, ...] each, and the weights of its room. Of its
    state it makes keys and values.
    """

    def __init__(self, config: InftyConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.family, self.kind = memory.family, memory.signal_kind
        heads = config.num_attention_heads
        self.shape = self.kind.shape(heads, self.kv_heads, config.head_dim)
        self.core = ContinuousMemory(memory, self.segment_length)
        self.maps = InftyDensityMaps(memory, heads)
        self.room = InftyRoom(memory, config.hidden_size)
        self.surprised = memory.room == "surprise"
        e, width = config.hidden_size, self.kv_heads * config.head_dim
        for part in self.kind.projections:
            self.add_module(part, nn.Linear(e, width, bias=False))
        if memory.gate:
            self.gate = nn.Linear(3 * e, e)
        self.output_gate = None
        if memory.output_gate:
            self.output_gate = nn.Parameter(torch.zeros(heads))
        self.log_rate = nn.Parameter(torch.zeros(1)) if memory.policy.learned else None
        self.out = nn.Linear(config.num_attention_heads * config.head_dim, e, bias=False)

    def initialise(self) -> None:
        for starts_at_zero in (self.output_gate, self.log_rate):
            if starts_at_zero is not None:
                init.zeros_(starts_at_zero)

    @classmethod
    def variant(cls, memory: MemoryConfig) -> type[InftyMemory]:
        return InftyJointMemory if memory.family.attends else cls

    @classmethod
    def describe(cls, memory: MemoryConfig) -> str:
        return (
            f"{memory.basis} basis functions a head and layer, contraction {memory.contraction}, "
            f"room {memory.room}, sticky: {memory.sticky}"
        )

    @classmethod
    def projections(cls, memory: MemoryConfig) -> tuple[str, ...]:
        return ("out", *memory.signal_kind.projections)

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal; of hidden states also those of the tokens in the short-term memory, which are
        not written yet."""
        stm = self.delay * self.segment_length
        fields = self.kind.fields(self.core.fields(*self.shape), self.shape, stm, dtype)
        return fields.replace(**room.pending(self.memory, stm))

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        q, dtype = inputs.q, inputs.normed.dtype
        # Mathematics of the memory is done in float32, also when the rest of the model is autocast.
        with torch.autocast(q.device.type, enabled=False):
            weights = self.maps()
            if not len(state.made):
                state = self._prepared(state, weights, q.dtype, dtype)
            place = self.family.place(self.memory, q, _keys(state), weights)
            z = self._density(place, state).read(state.made["values"], self.core.basis)
            z = z.unflatten(2, (self.group, -1)).flatten(1, 2)  # [b, K, G*t, d] -> [b, H, t, d]
            if self.output_gate is not None:
                z = z * self.output_gate.float()[:, None, None]
        update = self.out(z.transpose(1, 2).flatten(2).to(dtype))
        return Reading(self._held(state, place, inputs), update)

    def _held(self, state: PartState, place: dict[str, Tensor], inputs: Inputs) -> PartState:
        """The state with what the end of the segment asks of a piece's tokens."""
        held = {}
        if self.memory.sticky != "off":
            by_heads = (self.group, -1)
            for name, x in place.items():
                held[name] = x.detach().unflatten(2, by_heads).flatten(1, 2)
        if not self.kind.of_attention:
            content = inputs.normed if self.memory.content == "normed" else inputs.residual
            held["content"] = content[:, None]
        return state.extend(inputs.piece, **held, **self.room(inputs))

    def _prepared(
        self,
        state: PartState,
        weights: dict[str, Tensor],
        values: torch.dtype,
        dtype: torch.dtype,
    ) -> PartState:
        """With the memory's keys and values: made once for each state of the memory, not for each
        token.

        values: dtype of values that are read as they were written; dtype: of what projections are
        given.
        """
        pool = self.family.pool(self.memory, weights)
        through = InftyProjections(self, dtype)
        signal = state.kept["signal"]["coefficients"]
        keys, read = self.kind.read(signal, pool, through, values)
        return state.make(values=read, **{f"keys_{i}": x for i, x in enumerate(keys)})

    def _density(self, place: dict[str, Tensor], state: PartState) -> Density:
        return self.family.of(self.memory, self.core.basis, _keys(state), **place)

    def write(self, ended: Ended, state: PartState) -> PartState:
        L, piece = self.segment_length, ended.piece
        weights, kept = self.room.ended(ended, state)
        stream = torch.cat([ended.keys, ended.values], -1)
        if not self.kind.of_attention:
            stream = new = self._content(state.held("content")[:, 0])
            if self.delay:
                pending = state.kept["pending"].to(new.dtype)
                stream = torch.cat([pending, new], 2)
                kept["pending"] = piece.where_complete(stream[:, :, L:], pending)
        elif not self.memory.backprop:
            stream = stream.detach()
        signal = self._heard(ended, state)
        if ended.enabled:
            signal = self._written(signal, stream[:, :, :L], ended, weights)
        return state.keep(signal=signal.tree(), **kept)

    def _heard(self, ended: Ended, state: PartState) -> MemoryState:
        """The signal that is to be written to, with where the segment's reads fell."""
        signal = MemoryState(**state.kept["signal"])
        if self.memory.sticky == "off":
            return signal
        there = (signal.written > 0) & ended.piece.complete
        return self.core.with_histogram(signal, self._histogram(state), there)

    def _written(
        self, signal: MemoryState, x: Tensor, ended: Ended, weights: Tensor | None
    ) -> MemoryState:
        seeds = self.core.seeds(signal, self.layer)
        rate = None if self.log_rate is None else self.log_rate.float().exp()
        return self.core.write(signal, x, self.ready(ended), seeds, rate, weights)

    def mark_shape(self) -> tuple[int, int]:
        """Heads that share the histogram of past attention are written alike."""
        return self.kv_heads if self.memory.sticky_heads == "per_head" else 1, self.memory.basis

    def read_marks(self, inputs: Inputs, state: PartState, marks: Tensor) -> Tensor:
        """Before the output gate."""
        with torch.autocast(marks.device.type, enabled=False):
            place = self.family.place(self.memory, inputs.q, _keys(state), self.maps())
            marks = marks.expand(-1, self.kv_heads, -1, -1).contiguous()
            z = self._density(place, state).read(marks, self.core.basis)
        return z.unflatten(2, (self.group, -1)).flatten(1, 2)

    def write_marks(self, ended: Ended, state: PartState, marks: Tensor, new: Tensor) -> Tensor:
        heard = self._heard(ended, state)
        marked = replace(heard, coefficients=marks)
        new = new[:, None].expand(-1, marks.shape[1], -1, -1)
        weights, _ = self.room.ended(ended, state)
        return self._written(marked, new, ended, weights).coefficients

    def share_of(self, state: PartState, marks: Tensor) -> Tensor:
        """The share of [0, 1] that stands for it."""
        return self.core.shares(marks)

    def _histogram(self, state: PartState) -> Tensor:
        """Where the segment's reads fell: [b, 1, D] for all heads of the layer, or [b, h, D] for
        each signal head."""
        heads = (self.kv_heads, self.group)
        place = {
            name: state.held(name).unflatten(1, heads).flatten(2, 3)
            for name in self.family.of_tokens
        }
        return reading.histogram(self.memory, self._density(place, state), self.kv_heads)

    def _content(self, h: Tensor) -> Tensor:
        """A segment's hidden states h [b, L, e], gated, by heads: [b, H, L, d]."""
        x = h = h if self.memory.backprop else h.detach()
        if self.memory.gate:
            x = x * torch.sigmoid(self.gate(signals.neighbours(h)))
        return x.unflatten(-1, self.shape).transpose(1, 2)


def _keys(state: PartState) -> tuple[Tensor, ...]:
    """What queries are read with, of what was made of the state."""
    return tuple(state.made[name] for name in state.made if name != "values")


__all__ = ["InftyContinuousMemory", "InftyDensityMaps", "InftyProjections"]
