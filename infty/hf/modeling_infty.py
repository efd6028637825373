"""A decoder with a short-term and a long-term continuous memory, for transformers. Needs torch and transformers only.

The text is read segment by segment. Within a segment a token sees the tokens before it, those of the short-term memory
and, through its layer's long-term memory, everything that was written before the segment began. A segment is written
when it is complete (or, with a short-term memory, when it leaves that). So memory use does not grow with the text, and
reading a token at a time gives what reading everything at once gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from infty.hf.arguments_infty import (
    LOSS,
    VARLEN,
    document_starts,
    one_cache,
    refuse_others,
    token_mask,
)
from infty.hf.cache_infty import CACHE, InftyCache
from infty.hf.configuration_infty import InftyConfig
from infty.hf.generation_infty import InftyGenerationMixin
from infty.hf.kinds_infty import memory_of, sections_of
from infty.hf.memory_infty import Attended, Ended, InftyModule, Inputs
from infty.hf.memory_infty import Reading as MemoryReading
from infty.hf.pieces_infty import Piece, Reading
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
        """The short-term memory: unrotated keys and values of the `stm` tokens before the segment."""
        if not self.stm:
            return Tree({})
        field = Field((self.kv_heads, self.stm, self.config.head_dim), dtype)
        return Tree({"key": field, "value": field})

    def in_sight(self, state: PartState) -> tuple[Tensor, Tensor]:
        """Keys and values [b, K, stm+w, d] of the short-term memory and the segment so far."""
        key, value = state.segment["key"], state.segment["value"]
        if not self.stm:
            return key, value
        return (
            torch.cat([state.kept["key"].to(key.dtype), key], 2),
            torch.cat([state.kept["value"].to(value.dtype), value], 2),
        )

    def end_segment(
        self, keys: Tensor, values: Tensor, piece: Piece, state: PartState
    ) -> PartState:
        """The new short-term memory, in rows whose segment is complete."""
        if self.stm:
            state = state.keep(key=self._tail(keys, piece), value=self._tail(values, piece))
        return state

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
    ) -> tuple[Tensor, InftyLayerState]:
        """x [b, t, e] -> x and the layer's new state; `output_rows` [b, t, e]: see `Inputs.output_rows`."""
        h = self.attention_norm(x)
        q, key, value = self.attention.project(h)
        attention = state.attention.extend(piece, key=key, value=value)
        keys, values = self.attention.in_sight(attention)
        inputs = Inputs(q, h, x, output_rows, piece)
        readings = self._read(inputs, state, attends=True)
        y = self.attention.out(
            self.attention(q, keys, values, piece, [r.attended for r in readings.values()])
        )
        readings |= self._read(inputs, state, attends=False)
        for reading in readings.values():
            if reading.update is not None:
                y = y + reading.update
        x = x + F.dropout(y, self.config.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.config.dropout, self.training)
        state = InftyLayerState(attention, {name: readings[name].state for name in self.memories})
        return x, self._end_segment(
            state, Ended(keys, values, piece, memory_enabled)
        ) if piece.ends else state

    def _read(
        self, inputs: Inputs, state: InftyLayerState, attends: bool
    ) -> dict[str, MemoryReading]:
        """What the memories say that local attention sees, or those that it does not see."""
        return {
            name: memory(inputs, state.memories[name])
            for name, memory in self.memories.items()
            if memory.attends == attends
        }

    def _end_segment(self, state: InftyLayerState, ended: Ended) -> InftyLayerState:
        memories = {
            name: memory(ended, state.memories[name]) for name, memory in self.memories.items()
        }
        attention = self.attention.end_segment(
            ended.keys, ended.values, ended.piece, state.attention
        )
        return InftyLayerState(attention, memories).end_segment(ended.piece)


class InftyPreTrainedModel(PreTrainedModel):
    config_class = InftyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InftyDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, **kwargs: Any
    ) -> None:
        how = getattr(gradient_checkpointing_func, "keywords", {})
        if enable and how.get("use_reentrant"):
            raise ValueError(
                "gradient checkpointing with use_reentrant=True loses the gradients that go through the "
                "memory: take use_reentrant=False, the default"
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InftyModule):
            module.initialise()


class InftyModel(InftyPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: InftyConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(
                config.stm_length + config.segment_length, config.hidden_size
            )
        self.layers = nn.ModuleList(
            InftyDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = make_norm(config)
        self.predicts = any(layer.predicts for layer in self._layers())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: InftyCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        memory_enabled: bool = True,
        return_dict: bool | None = None,
        cache: InftyCache | None = None,
        output_hidden_states: bool | None = None,
        seq_idx: Tensor | None = None,
        cu_seq_lens_q: Tensor | None = None,
        output_rows: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Read tokens input_ids int64 [b, T], T of any length, after what `cache` (older versions of transformers:
        `past_key_values`) has read.

        Where attention_mask [b, T] (or [b, all columns so far]) is 0, a row has no token: padding on any side. Such
        columns of the output are zero. Where position_ids is 0, seq_idx changes, or cu_seq_lens_q says so (see
        `document_starts`), a document begins: its row forgets what it has read. `memory_enabled=False` leaves the
        long-term memory empty. `output_rows` [b, T, e]: what the head predicts these tokens with, where it is not the
        embedding and a memory stores it; `InftyForCausalLM` gives it. Raises ValueError for arguments that have no
        effect.
        """
        refuse_others(kwargs, VARLEN if cu_seq_lens_q is not None else ())
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        cache = one_cache(cache, past_key_values)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        b, T = x.shape[:2]
        if cache.states is not None and cache.rows != b:
            raise ValueError(f"the cache holds {cache.rows} texts, the input {b}")
        mask = token_mask(attention_mask, b, T, cache.tokens)
        starts = document_starts(
            mask, position_ids, seq_idx, cu_seq_lens_q, b, T, fresh=cache.states is None
        )
        states = cache.states or self._begin(x)
        reading = Reading(self.config.segment_length, cache.fill, cache.segments, b)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        pieces = []
        rows = self._rows(x, output_rows)
        for columns, piece in reading.pieces(mask, starts, T, x.device):
            part, told = _taken(x, columns), None if rows is None else _taken(rows, columns)
            if piece.begins is not None:
                states = tuple(state.start_document(piece.begins, piece.held) for state in states)
            streams, states = self._read(part, told, states, piece, memory_enabled)
            pieces.append(streams if output_hidden_states else streams[-1:])
        if use_cache if use_cache is not None else self.config.use_cache:
            cache.store(states, reading.fill, reading.segments, T)
        else:
            cache = None
        levels = [reading.in_columns(list(level), x) for level in zip(*pieces)] or [
            torch.zeros_like(x)
        ]
        hidden = tuple(levels) if output_hidden_states else None
        result = BaseModelOutputWithPast(
            last_hidden_state=levels[-1], hidden_states=hidden, **{CACHE: cache}
        )
        return result if _as_dict(return_dict, self.config) else result.to_tuple()

    def _begin(self, x: Tensor) -> tuple[InftyLayerState, ...]:
        """The states of rows that have read nothing; x [b, t, e] is what they will read."""
        return tuple(layer.begin(x) for layer in self._layers())

    def _layers(self) -> list[Any]:
        """The layers, for a type checker not modules of any kind."""
        return list(self.layers)

    def _rows(self, embedded: Tensor, output_rows: Tensor | None) -> Tensor | None:
        """The tokens' rows of the output matrix, where a memory wants them."""
        if not self.predicts:
            return None
        if output_rows is None and not self.config.tie_word_embeddings:
            raise ValueError(
                "this model's memory stores what its head predicts tokens with: call InftyForCausalLM with input_ids"
            )
        return embedded if output_rows is None else output_rows

    def _read(
        self,
        x: Tensor,
        output_rows: Tensor | None,
        states: tuple[InftyLayerState, ...],
        piece: Piece,
        memory_enabled: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[InftyLayerState, ...]]:
        """One piece through all layers: what each layer is given, then what the head is; and the new states."""
        if self.embed_positions is not None:
            place = piece.segments[:, None] * self.config.segment_length + piece.places()
            # Positions repeat with a period of all that a token can see, so no two tokens in sight share one.
            x = x + self.embed_positions(place % self.embed_positions.num_embeddings)
        x = F.dropout(x, self.config.dropout, self.training)
        new, streams = [], []
        for layer, state in zip(self.layers, states):
            streams.append(x)
            x, state = layer(x, output_rows, state, piece, memory_enabled)
            new.append(state)
        return (*streams, self.norm(x)), tuple(new)


def _taken(x: Tensor, columns: slice | Tensor) -> Tensor:
    """Columns of x [b, T, e]: the same of all rows, or int64 [b, t]."""
    return x[:, columns] if isinstance(columns, slice) else x.take_along_dim(columns[..., None], 1)


def _as_dict(return_dict: bool | None, config: InftyConfig) -> bool:
    return return_dict if return_dict is not None else config.return_dict


class InftyForCausalLM(InftyPreTrainedModel, InftyGenerationMixin):
    """The language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: InftyConfig) -> None:
        super().__init__(config)
        self.model = InftyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def _output_rows(self, input_ids: Tensor | None) -> Tensor | None:
        """The tokens' rows of the head, [b, T, e], where they are not their embeddings and a memory wants them."""
        if not self.model.predicts or self.config.tie_word_embeddings or input_ids is None:
            return None
        weight = self.lm_head.weight
        if weight.is_meta or not weight.is_floating_point():
            raise ValueError(
                "this model's memory reads lm_head.weight, which is offloaded or quantised: keep lm_head on a device "
                "(device_map) and out of quantisation (llm_int8_skip_modules)"
            )
        return F.embedding(input_ids, weight.detach())

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: the first call makes an InftyCache."""
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: InftyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        memory_enabled: bool = True,
        return_dict: bool | None = None,
        cache: InftyCache | None = None,
        seq_idx: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """As `InftyModel.forward`. labels int64 [b, T] are shifted inside, -100 does not count. `logits_to_keep`:
        only the last so many columns' logits, or those of these columns; 0: all."""
        loss_kwargs = {name: kwargs.pop(name) for name in LOSS if name in kwargs}
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            memory_enabled,
            cache=cache,
            seq_idx=seq_idx,
            output_rows=self._output_rows(input_ids),
            return_dict=True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None or loss_kwargs.get("shift_labels") is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs
            )
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: outputs.get(CACHE)},
        )
        return result if _as_dict(return_dict, self.config) else result.to_tuple()


__all__ = ["InftyForCausalLM", "InftyModel", "InftyPreTrainedModel"]
