"""The continuous memory of a layer in the transformers model: how its heads read, and what is
written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.joint_infty import InftyJointMemory
from infty.hf.memory_infty import Ended, InftyMemory, InftyModule, Inputs, Reading
from infty.hf.state_infty import PartState
from infty.memory import reading
from infty.memory.config import MemoryConfig
from infty.memory.densities import Density
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty.memory.sticky import seed
from infty.tree import Field, Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


class InftyDensityMaps(InftyModule):
    """From a memory's keys to each head's two pooled keys, for the mean and the variance of its
    read densities."""

    def __init__(self, memory: MemoryConfig, heads: int) -> None:
        super().__init__()
        self.memory, self.heads, self.rows = memory, heads, reading.map_rows(memory, heads)
        self.weight_mu, self.weight_sigma = (
            nn.Parameter(torch.empty(self.rows, memory.basis)) for _ in range(2)
        )
        self.bias_mu = self.bias_sigma = None
        if memory.map_bias:
            self.bias_mu, self.bias_sigma = (nn.Parameter(torch.empty(self.rows)) for _ in range(2))

    def initialise(self) -> None:
        for weight in (self.weight_mu, self.weight_sigma):
            init.normal_(weight, std=reading.map_std(self.memory))
        if self.memory.map_bias:
            for bias, fresh in zip((self.bias_mu, self.bias_sigma), reading.map_biases(self.rows)):
                init.copy_(bias, fresh)

    def forward(self, part: str) -> Tensor | tuple[Tensor | None, Tensor | None]:
        """"weights", float32 [2, H, N]; or "biases", float32 [H] each, or None. Always by a call of
        the module, which is where weights that are kept elsewhere (offloaded, sharded) are fetched.
        """
        if part == "biases":
            return tuple(
                None if b is None else b.float().expand(self.heads)
                for b in (self.bias_mu, self.bias_sigma)
            )
        scale = reading.map_scale(self.memory)
        return torch.stack(
            [w.float().expand(self.heads, -1) * scale for w in (self.weight_mu, self.weight_sigma)]
        )


class InftyContinuousMemory(InftyMemory):
    """`infty.layers.memories.continuous`, a piece at a time.

    Of a segment it holds what it will write with `signal: hidden`, and for the sticky histogram
    what the densities of its tokens were made from: `place`, mean and variance, [b, H, w] each; or,
    with a gibbs density, queries [b, H, w, d]. Of its state it makes pooled keys (with a gibbs
    density, all keys) and values.
    """

    def __init__(self, config: InftyConfig, layer: int, memory: MemoryConfig) -> None:
        super().__init__(config, layer, memory)
        self.hidden = memory.signal == "hidden"
        self.signal_heads = config.num_attention_heads if self.hidden else self.kv_heads
        self.channels = config.head_dim * (1 if self.hidden else 2)
        self.core = ContinuousMemory(memory, self.segment_length)
        self.gibbs = memory.density == "gibbs"
        self.maps = None if self.gibbs else InftyDensityMaps(memory, config.num_attention_heads)
        e, width = config.hidden_size, self.kv_heads * config.head_dim
        if self.hidden:
            self.key, self.value = nn.Linear(e, width, bias=False), nn.Linear(e, width, bias=False)
        if memory.gate:
            self.gate = nn.Linear(3 * e, e)
        self.output_gate = (
            nn.Parameter(torch.zeros(config.num_attention_heads)) if memory.output_gate else None
        )
        self.log_rate = nn.Parameter(torch.zeros(1)) if memory.contraction == "learned" else None
        self.out = nn.Linear(e, e, bias=False)

    def initialise(self) -> None:
        for starts_at_zero in (self.output_gate, self.log_rate):
            if starts_at_zero is not None:
                init.zeros_(starts_at_zero)

    @classmethod
    def variant(cls, memory: MemoryConfig) -> type[InftyMemory]:
        return InftyJointMemory if memory.density == "joint" else cls

    @classmethod
    def describe(cls, memory: MemoryConfig) -> str:
        return (
            f"{memory.basis} basis functions a head and layer, contraction {memory.contraction}, "
            f"sticky: {memory.sticky}"
        )

    @classmethod
    def projections(cls, memory: MemoryConfig) -> tuple[str, ...]:
        return ("out", "key", "value") if memory.signal == "hidden" else ("out",)

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal; with `signal: hidden` also the tokens in the short-term memory, which are not
        written yet."""
        fields: dict[str, Tree | Field] = {
            "signal": self.core.fields(self.signal_heads, self.channels)
        }
        if self.hidden and self.delay:
            fields["pending"] = Field(
                (self.signal_heads, self.delay * self.segment_length, self.channels), dtype
            )
        return Tree(fields)

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        q, dtype = inputs.q, inputs.normed.dtype
        # Mathematics of the memory is done in float32, also when the rest of the model is autocast.
        with torch.autocast(q.device.type, enabled=False):
            if not len(state.made):
                state = self._prepared(state, q.dtype, dtype)
            place = self._place(q, state.made)
            z = self._density(place, state.made).read(
                state.made["values"], self.core.basis
            )  # [b, K, G*t, d]
            z = z.unflatten(2, (self.group, -1)).flatten(1, 2)
            if self.output_gate is not None:
                z = z * self.output_gate.float()[:, None, None]
        update = self.out(z.transpose(1, 2).flatten(2).to(dtype))
        return Reading(self._held(state, place, inputs), update)

    def _held(self, state: PartState, place: tuple[Tensor, ...], inputs: Inputs) -> PartState:
        """The state with what the end of the segment asks of a piece's tokens."""
        held = {}
        if self.memory.sticky != "off":
            by_heads = (x.detach().unflatten(2, (self.group, -1)).flatten(1, 2) for x in place)
            held = {f"place_{i}": x for i, x in enumerate(by_heads)}
        if self.hidden:
            content = inputs.normed if self.memory.content == "normed" else inputs.residual
            held["content"] = content[:, None]
        return state.extend(inputs.piece, **held)

    def _prepared(self, state: PartState, values: torch.dtype, dtype: torch.dtype) -> PartState:
        """Pool the memory's keys and project its values: once for each state of the memory, not for
        each token.

        values: dtype of values that are read as they were written; dtype: of what projections are
        given.
        """
        B, d = state.kept["signal"]["coefficients"], self.head_size
        whole = B.transpose(1, 2).flatten(2) if self.hidden else None  # [b, N, e]
        made = {
            "values": self._projected(self.value, whole, dtype)
            if self.hidden
            else B[..., d:].to(values)
        }
        if self.gibbs:
            made["keys"] = self._projected(self.key, whole, dtype) if self.hidden else B[..., :d]
            return state.make(**made)
        maps = self.maps("weights").unflatten(1, (self.kv_heads, self.group))  # [2, K, G, N]
        if self.hidden:
            # Pooled first, then projected by all heads' keys, of which each head takes its own.
            pooled = reading.pooled_hidden(maps, whole)
            # Quantised projections take no more than three dimensions.
            projected = self.key(pooled.to(dtype).flatten(0, 3)).view(
                *pooled.shape[:4], self.kv_heads, d
            )
            pooled = (
                projected.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3).float()
            )  # [2, b, K, G, d]
        else:
            pooled = reading.pooled(maps, B[..., :d])
        made["key_mu"], made["key_sigma"] = pooled.unbind(0)
        return state.make(**made)

    def _projected(self, projection: nn.Module, whole: Tensor, dtype: torch.dtype) -> Tensor:
        """[b, N, e] -> [b, K, N, d]."""
        y = projection(whole.to(dtype))
        return y.unflatten(-1, (self.kv_heads, self.head_size)).transpose(1, 2)

    def _place(self, q: Tensor, made: Tree) -> tuple[Tensor, ...]:
        """What the densities of q [b, K, G, t, d] are made from: mean and variance, float32 [b, K,
        G*t] each; for a gibbs density the queries, [b, K, G*t, d]."""
        if self.gibbs:
            return (q.flatten(2, 3),)
        return reading.place(
            self.memory, q, made["key_mu"], made["key_sigma"], *self.maps("biases")
        )

    def _density(self, place: tuple[Tensor, ...], made: Tree) -> Density:
        """The family of read densities that the config names."""
        return reading.density_of(
            self.memory, (*place, made["keys"]) if self.gibbs else place, self.core.basis
        )

    def write(self, ended: Ended, state: PartState) -> PartState:
        L, piece = self.segment_length, ended.piece
        signal = MemoryState(**state.kept["signal"])
        kept = {}
        stream = torch.cat([ended.keys, ended.values], -1)
        if self.hidden:
            stream = new = self._content(state.held("content")[:, 0])
            if self.delay:
                pending = state.kept["pending"].to(new.dtype)
                stream = torch.cat([pending, new], 2)
                kept["pending"] = piece.where_complete(stream[:, :, L:], pending)
        elif not self.memory.backprop:
            stream = stream.detach()
        if self.memory.sticky != "off":
            there = (signal.written > 0) & piece.complete
            signal = self.core.with_histogram(signal, self._histogram(state), there)
        if ended.enabled:
            with torch.autocast(stream.device.type, enabled=False):
                rate = None if self.log_rate is None else self.log_rate.float().exp()
                signal = self.core.write(
                    signal, stream[:, :, :L], self.ready(ended), self._seeds(signal), rate
                )
        return state.keep(signal=Tree(vars(signal)), **kept)

    def _seeds(self, signal: MemoryState) -> Tensor | None:
        """int64 [b]: what a multinomial warp draws from."""
        if self.memory.sticky != "multinomial":
            return None
        return seed(self.memory.sticky_seed, signal.written, self.layer)

    def _histogram(self, state: PartState) -> Tensor:
        """Where the segment's reads fell: [b, 1, D] for all heads of the layer, or [b, h, D] for
        each signal head."""
        held = (state.held(f"place_{i}") for i in range(1 if self.gibbs else 2))
        place = tuple(x.unflatten(1, (self.kv_heads, self.group)).flatten(2, 3) for x in held)
        return reading.histogram(self.memory, self._density(place, state.made), self.kv_heads)

    def _content(self, h: Tensor) -> Tensor:
        """A segment's hidden states h [b, L, e], gated, by heads: [b, H, L, d]."""
        x = h = h if self.memory.backprop else h.detach()
        if self.memory.gate:
            x = x * torch.sigmoid(self.gate(reading.neighbours(h)))
        return x.unflatten(-1, (self.signal_heads, -1)).transpose(1, 2)


__all__ = ["InftyContinuousMemory", "InftyDensityMaps"]
