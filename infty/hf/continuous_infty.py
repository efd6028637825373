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
        """ "weights", float32 [2, H, N]; or "biases", float32 [H] each, or None. Always by a call of
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
        self.output_gate = None
        if memory.output_gate:
            self.output_gate = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.log_rate = nn.Parameter(torch.zeros(1)) if memory.contraction == "learned" else None
        self.out = nn.Linear(config.num_attention_heads * config.head_dim, e, bias=False)

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
        signal = self.core.fields(self.signal_heads, self.channels)
        fields: dict[str, Tree | Field] = {"signal": signal}
        if self.hidden and self.delay:
            tokens = self.delay * self.segment_length
            fields["pending"] = Field((self.signal_heads, tokens, self.channels), dtype)
        return Tree(fields)

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        q, dtype = inputs.q, inputs.normed.dtype
        # Mathematics of the memory is done in float32, also when the rest of the model is autocast.
        with torch.autocast(q.device.type, enabled=False):
            if not len(state.made):
                state = self._prepared(state, q.dtype, dtype)
            place = self._place(q, state.made)
            density = self._density(place, state.made)
            z = density.read(state.made["values"], self.core.basis)  # [b, K, G*t, d]
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
        signal = state.kept["signal"]["coefficients"]
        if not self.hidden:
            keys, read = signal.split(self.head_size, -1)
            made = {"values": read.to(values)}
            return state.make(**made, **self._of_keys(keys))
        whole = signal.transpose(1, 2).flatten(2)  # [b, N, e]
        made = {"values": self._projected(self.value, whole, dtype)}
        return state.make(**made, **self._of_hidden(whole, dtype))

    def _of_keys(self, keys: Tensor) -> dict[str, Tensor]:
        """What is read with, from keys float32 [b, K, N, d]: pooled, [b, K, G, d] each; for a gibbs
        density all of them."""
        if self.gibbs:
            return {"keys": keys}
        return self._pooled(reading.pooled(self._maps(), keys))

    def _of_hidden(self, whole: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The same from a hidden signal float32 [b, N, e]."""
        if self.gibbs:
            return {"keys": self._projected(self.key, whole, dtype)}
        # Pooled first, then projected by all heads' keys, of which each head takes its own.
        pooled = reading.pooled_hidden(self._maps(), whole)
        # Quantised projections take no more than three dimensions.
        projected = self.key(pooled.to(dtype).flatten(0, 3))
        projected = projected.view(*pooled.shape[:4], self.kv_heads, self.head_size)
        own = projected.diagonal(dim1=2, dim2=4)  # [2, b, G, d, K]
        return self._pooled(own.permute(0, 1, 4, 2, 3).float())

    def _maps(self) -> Tensor:
        """float32 [2, K, G, N]"""
        return self.maps("weights").unflatten(1, (self.kv_heads, self.group))

    def _pooled(self, keys: Tensor) -> dict[str, Tensor]:
        key_mu, key_sigma = keys.unbind(0)
        return {"key_mu": key_mu, "key_sigma": key_sigma}

    def _projected(self, projection: nn.Module, whole: Tensor, dtype: torch.dtype) -> Tensor:
        """[b, N, e] -> [b, K, N, d]."""
        y = projection(whole.to(dtype))
        return y.unflatten(-1, (self.kv_heads, self.head_size)).transpose(1, 2)

    def _place(self, q: Tensor, made: Tree) -> tuple[Tensor, ...]:
        """What the densities of q [b, K, G, t, d] are made from: mean and variance, float32 [b, K,
        G*t] each; for a gibbs density the queries, [b, K, G*t, d]."""
        if self.gibbs:
            return (q.flatten(2, 3),)
        biases = self.maps("biases")
        return reading.place(self.memory, q, made["key_mu"], made["key_sigma"], *biases)

    def _density(self, place: tuple[Tensor, ...], made: Tree) -> Density:
        """The family of read densities that the config names."""
        made_from = (*place, made["keys"]) if self.gibbs else place
        return reading.density_of(self.memory, made_from, self.core.basis)

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
            seeds = self._seeds(signal)
            rate = None if self.log_rate is None else self.log_rate.float().exp()
            signal = self.core.write(signal, stream[:, :, :L], self.ready(ended), seeds, rate)
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
