"""One layer of the exported model: attention with its short-term memory, the memories, the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from infty.hf.configuration_infty import InftyConfig
from infty.hf.kinds_infty import memory_of, sections_of
from infty.hf.memory_infty import Attended, Ended, Inputs, Losses
from infty.hf.pieces_infty import Piece
from infty.hf.state_infty import InftyLayerState, PartState
from infty.memory.attending import in_front
from infty.memory.rotary import angles, rotate
from infty.tree import Field, Tree


def make_norm(config: InftyConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class InftyAttention(nn.Module):
    """Attention to the segment so far, causally, and to the short-term memory before it."""

    def __init__(self, config: InftyConfig, layer: int) -> None:
        super().__init__()
        self.config, self.stm = config, config.stm_of(layer)
        self.sinks = config.sinks_of(layer)
        self.window = config.window_of(layer)
        self.kv_heads, self.group = (
            config.num_key_value_heads,
            config.num_attention_heads // config.num_key_value_heads,
        )
        # For each key/value head: its group of queries, its key, its value.
        width = self.kv_heads * (self.group + 2) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.qkv_bias)
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.key_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
        self.out = nn.Linear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=config.attention_out_bias,
        )

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [b, t, e] -> queries [b, K, G, t, d], keys and values [b, K, t, d]."""
        qkv = self.qkv(h).unflatten(-1, (self.kv_heads, self.group + 2, -1)).permute(0, 2, 3, 1, 4)
        q, keys, values = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
        if self.query_norm is not None:
            q, keys = self.query_norm(q), self.key_norm(keys)
        return q, keys, values

    def fields(self, dtype: torch.dtype) -> Tree:
        """The short-term memory: unrotated keys and values of the `stm` tokens before the segment, and of the sinks."""
        if not self.stm:
            return Tree({})
        field = Field((self.kv_heads, self.stm, self.config.head_dim), dtype)
        fields = {"key": field, "value": field}
        if self.sinks:
            sink = Field((self.kv_heads, self.sinks, self.config.head_dim), dtype)
            fields |= {"sink_key": sink, "sink_value": sink}
        return Tree(fields)

    def in_sight(self, state: PartState) -> tuple[Tensor, Tensor]:
        """Keys and values [b, K, stm+w, d] of the short-term memory and the segment so far."""
        key, value = state.segment["key"], state.segment["value"]
        if not self.stm:
            return key, value
        return (
            torch.cat([state.kept["key"].to(key.dtype), key], 2),
            torch.cat([state.kept["value"].to(value.dtype), value], 2),
        )

    def kept_sinks(self, state: PartState, piece: Piece) -> list[Attended]:
        """The first tokens of the document, seen where the short-term memory has left them behind."""
        if not self.sinks:
            return []
        left = piece.segments * self.config.segment_length > self.stm
        key, value = (
            state.kept[f"sink_{name}"].to(state.segment[name].dtype) for name in ("key", "value")
        )
        return [Attended(key, value, left, 0.0)]

    def end_segment(
        self, keys: Tensor, values: Tensor, piece: Piece, state: PartState
    ) -> PartState:
        """The new short-term memory and sinks, in rows whose segment is complete."""
        if not self.stm:
            return state
        new = {"key": self._tail(keys, piece), "value": self._tail(values, piece)}
        if self.sinks:
            for name, tokens in (("sink_key", keys), ("sink_value", values)):
                new[name] = self._first(tokens, state.kept[name], piece)
        return state.keep(**new)

    def _first(self, x: Tensor, kept: Tensor, piece: Piece) -> Tensor:
        """The sinks after a segment: its first tokens, where it is the document's first."""
        begins = (piece.segments == 0)[:, None, None, None]
        first = torch.where(begins, x[:, :, self.stm : self.stm + self.sinks], kept)
        return piece.where_complete(first, kept)

    def _tail(self, x: Tensor, piece: Piece) -> Tensor:
        return piece.where_complete(x[:, :, x.shape[2] - self.stm :], x[:, :, : self.stm])

    def forward(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        piece: Piece,
        attended: Sequence[Attended] = (),
    ) -> Tensor:
        """Keys and values [b, K, stm+w, d] begin with the short-term memory; `attended` is what memories add to them.
        Returns [b, t, H*d]."""
        if self.config.positions == "rotary":
            size, (theta, scaling) = self.config.head_dim, self.config.rotary()
            cos, sin = angles(self.stm + piece.places(), size, theta, scaling)
            q = rotate(q, cos[:, None, None], sin[:, None, None])
            place = torch.arange(keys.shape[2], device=keys.device)
            cos, sin = angles(place, size, theta, scaling)
            keys = rotate(keys, cos, sin)
            # Places count from the oldest token in sight: what memories add stands there.
            if scaling is not None:
                attended = [m._replace(keys=rotate(m.keys, cos[0], sin[0])) for m in attended]
        mask = self._mask(piece, keys.shape[2])
        for memory in attended:
            allowed = memory.visible[:, None].expand(-1, memory.keys.shape[2])
            keys, values, mask = in_front(
                (memory.keys, memory.values), allowed, memory.prior, keys, values, mask
            )
        z = F.scaled_dot_product_attention(
            q.flatten(1, 2),
            keys,
            values,
            attn_mask=mask,
            enable_gqa=self.group > 1,
            dropout_p=self.config.dropout if self.training else 0.0,
        )
        return z.transpose(1, 2).flatten(2)

    def _mask(self, piece: Piece, width: int) -> Tensor:
        """bool [b, 1, t, stm+w]: True where a token may look: back, and inside its document."""
        key = torch.arange(width, device=piece.fill.device)
        query = self.stm + piece.places()[..., None]
        causal = key <= query
        if self.window:
            causal = causal & (key > query - self.window)
        begin = self.stm - (piece.segments * self.config.segment_length).clamp(max=self.stm)
        return (causal & (key >= begin[:, None, None])).unsqueeze(1)


class InftyMLP(nn.Module):
    """GELU (GPT-2) or SwiGLU (Llama)."""

    def __init__(self, config: InftyConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        # Gated: gate and value of a channel lie side by side.
        width = config.intermediate_size * (2 if self.gated else 1)
        self.up = nn.Linear(config.hidden_size, width, bias=config.mlp_bias)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, h: Tensor) -> Tensor:
        h = self.up(h)
        if not self.gated:
            return self.out(F.gelu(h, approximate="tanh"))
        gate, value = h.unflatten(-1, (-1, 2)).unbind(-1)
        return self.out(F.silu(gate) * value)


class Read(NamedTuple):
    """What is there for the tokens of a segment to see."""

    keys: Tensor
    """[b, K, stm + w, d]: of the short-term memory and the segment so far."""
    values: Tensor
    attended: list[Attended]
    updates: list[Tensor]
    """[b, t, e] each: of the memories that are not attended to."""


def _side_by_side(segments: list[Tensor]) -> Tensor:
    """Segments [b, ...] as rows of their own, in the order of `Piece.side_by_side`: [b * S, ...]."""
    return torch.stack(segments, 1).flatten(0, 1)


class InftyDecoderLayer(GradientCheckpointingLayer):
    """Residual stream in, residual stream out; state in, state out."""

    def __init__(self, config: InftyConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = make_norm(config)
        self.attention = InftyAttention(config, layer)
        self.memories = nn.ModuleDict(
            {
                name: memory_of(section)(config, layer, section)
                for name, section in sections_of(config, layer).items()
            }
        )
        self.mlp_norm = make_norm(config)
        self.mlp = InftyMLP(config)

    @property
    def predicts(self) -> bool:
        """Whether one of the memories wants the tokens' rows of the output matrix."""
        memories: list[Any] = list(self.memories.values())
        return any(memory.predicts for memory in memories)

    @property
    def surprised(self) -> bool:
        """Whether one of the memories wants the tokens' losses."""
        memories: list[Any] = list(self.memories.values())
        return any(memory.surprised for memory in memories)

    def begin(self, x: Tensor) -> InftyLayerState:
        """The state of rows that have read nothing; x [b, t, e] is what they will read."""

        def part(module: Any) -> PartState:
            return PartState.begin(module.fields(x.dtype), len(x), x.device)

        return InftyLayerState(
            part(self.attention), {name: part(memory) for name, memory in self.memories.items()}
        )

    def forward(
        self,
        x: Tensor,
        output_rows: Tensor | None,
        state: InftyLayerState,
        piece: Piece,
        memory_enabled: bool = True,
        tokens: Tensor | None = None,
        losses: Losses | None = None,
    ) -> tuple[Tensor, InftyLayerState]:
        """x [b, t, e] -> x and the layer's new state; `output_rows` [b, t, e] and `tokens` [b, t]: see `Inputs`."""
        h = self.attention_norm(x)
        q, key, value = self.attention.project(h)
        # What a segment reads and writes depends on the layer below and on this layer's state, not on what the layer
        # makes of earlier segments: only the memories go from segment to segment, all else is done at once.
        reads = []
        for one, at in piece.one_by_one():
            rows = None if output_rows is None else output_rows[:, at]
            ids = None if tokens is None else tokens[:, at]
            inputs = Inputs(q[..., at, :], h[:, at], x[:, at], rows, one, ids)
            kv = key[:, :, at], value[:, :, at]
            read, state = self._remember(inputs, *kv, state, memory_enabled, losses)
            reads.append(read)
        y = self.attention.out(self._attend(q, reads, piece))
        for updates in zip(*(read.updates for read in reads), strict=True):
            y = y + torch.cat(updates, 1)
        x = x + F.dropout(y, self.config.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.config.dropout, self.training)
        return x, state

    def _remember(
        self,
        inputs: Inputs,
        key: Tensor,
        value: Tensor,
        state: InftyLayerState,
        enabled: bool,
        losses: Losses | None,
    ) -> tuple[Read, InftyLayerState]:
        """Read a segment, or a part of it, and write it where it ends. key, value [b, K, t, d]: of its tokens."""
        attention = state.attention.extend(inputs.piece, key=key, value=value)
        keys, values = self.attention.in_sight(attention)
        readings = {
            name: memory(inputs, state.memories[name]) for name, memory in self.memories.items()
        }
        state = InftyLayerState(attention, {name: r.state for name, r in readings.items()})
        if inputs.piece.ends:
            ended = Ended(keys, values, inputs.piece, enabled, losses)
            state = self._end_segment(state, ended)
        attended = self.attention.kept_sinks(attention, inputs.piece)
        attended += [r.attended for r in readings.values() if r.attended is not None]
        updates = [r.update for r in readings.values() if r.update is not None]
        return Read(keys, values, attended, updates), state

    def _attend(self, q: Tensor, reads: list[Read], piece: Piece) -> Tensor:
        """Local attention of all segments at once: [b, t, H*d]."""
        if piece.several == 1:
            return self.attention(q, reads[0].keys, reads[0].values, piece, reads[0].attended)
        shape = (len(q), piece.several)
        q = q.unflatten(3, (piece.several, -1)).permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        keys = _side_by_side([read.keys for read in reads])
        values = _side_by_side([read.values for read in reads])
        attended = [
            Attended(*(_side_by_side(list(x)) for x in list(zip(*of))[:3]), of[0].prior)
            for of in zip(*(read.attended for read in reads), strict=True)
        ]
        z = self.attention(q, keys, values, piece.side_by_side(), attended)
        return z.unflatten(0, shape).flatten(1, 2)

    def _end_segment(self, state: InftyLayerState, ended: Ended) -> InftyLayerState:
        memories = {
            name: memory(ended, state.memories[name]) for name, memory in self.memories.items()
        }
        attention = self.attention.end_segment(
            ended.keys, ended.values, ended.piece, state.attention
        )
        return InftyLayerState(attention, memories).end_segment(ended.piece)
