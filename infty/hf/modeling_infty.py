"""A decoder with a short-term and a long-term continuous memory, for transformers. Needs torch and transformers only.

The text is read segment by segment. Within a segment a token sees the tokens before it, those of the short-term memory
and, through its layer's long-term memory, everything that was written before the segment began. A segment is written
when it is complete (or, with a short-term memory, when it leaves that). So memory use does not grow with the text, and
reading a token at a time gives what reading everything at once gives.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
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
from infty.hf.cache_infty import CACHE, InftyCache, InftyLayerState
from infty.hf.configuration_infty import InftyConfig
from infty.hf.generation_infty import InftyGenerationMixin
from infty.hf.pieces_infty import Piece, Reading
from infty.memory.config import MemoryConfig
from infty.memory.densities import FAMILIES, Density, Gibbs, gibbs_points
from infty.memory.density import parameters
from infty.memory.memory import ContinuousMemory
from infty.memory.sticky import seed

# Spread of a fresh density that has a bias: its standard deviation is about this share of the document.
INITIAL_SIGMA = 0.05
INITIAL_WEIGHT = 0.1  # size of a fresh map


@lru_cache(maxsize=8)
def memory_operators(config: MemoryConfig, segment_length: int, device: torch.device) -> ContinuousMemory:
    """The operators of a long-term memory, solved once and shared by all layers.

    They are no part of the module tree: transformers builds models on the meta device, in the dtype of the weights.
    """
    return ContinuousMemory(config, segment_length)


def rotate(x: Tensor, place: Tensor, theta: float) -> Tensor:
    """Rotary position embedding of x [b, ..., t, d] at places [b, t] or [t]; in float32, returned in x's dtype."""
    size = x.shape[-1]
    frequency = theta ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angle = place.float()[..., None] * frequency
    angle = torch.cat([angle, angle], -1)
    if angle.dim() == 3:
        angle = angle.view(len(x), *[1] * (x.dim() - 3), *angle.shape[1:])
    first, second = x.float().chunk(2, -1)
    return (x.float() * angle.cos() + torch.cat([-second, first], -1) * angle.sin()).to(x.dtype)


def make_norm(config: InftyConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_eps)


class InftyAttention(nn.Module):
    """Attention to the segment so far, causally, and to the short-term memory before it."""

    def __init__(self, config: InftyConfig, layer: int) -> None:
        super().__init__()
        self.config, self.stm = config, config.stm_of(layer)
        self.kv_heads, self.group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        # For each key/value head: its group of queries, its key, its value.
        width = self.kv_heads * (self.group + 2) * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [b, t, e] -> queries [b, K, G, t, d], keys and values [b, K, t, d]."""
        qkv = self.qkv(h).unflatten(-1, (self.kv_heads, self.group + 2, -1)).permute(0, 2, 3, 1, 4)
        return qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]

    def forward(self, q: Tensor, keys: Tensor, values: Tensor, piece: Piece) -> Tensor:
        """Keys and values [b, K, stm+w, d] begin with the short-term memory. Returns [b, t, H*d]."""
        if self.config.positions == "rotary":
            theta = self.config.rope_theta
            q = rotate(q, self.stm + piece.places(), theta)
            keys = rotate(keys, torch.arange(keys.shape[2], device=keys.device), theta)
        z = F.scaled_dot_product_attention(
            q.flatten(1, 2), keys, values, attn_mask=self._mask(piece, keys.shape[2]), enable_gqa=self.group > 1,
            dropout_p=self.config.dropout if self.training else 0.0)
        return z.transpose(1, 2).flatten(2)

    def _mask(self, piece: Piece, width: int) -> Tensor:
        """bool [b, 1, t, stm+w]: True where a token may look: back, and inside its document."""
        key = torch.arange(width, device=piece.fill.device)
        causal = key <= self.stm + piece.places()[..., None]
        begin = self.stm - (piece.segments * self.config.segment_length).clamp(max=self.stm)
        return (causal & (key >= begin[:, None, None])).unsqueeze(1)


class InftyDensityMaps(nn.Module):
    """From a memory's keys to each head's two pooled keys, for the mean and the variance of its read densities."""

    def __init__(self, config: InftyConfig, layer: int) -> None:
        super().__init__()
        memory = config.memory_of(layer)
        self.heads, self.shared = config.num_attention_heads, memory.maps == "shared"
        rows = 1 if self.shared else self.heads
        self.scale = 1.0 if self.shared else math.sqrt(memory.basis)
        self.weight_mu, self.weight_sigma = (nn.Parameter(torch.empty(rows, memory.basis)) for _ in range(2))
        self.bias_mu = self.bias_sigma = None
        if memory.map_bias:
            self.bias_mu, self.bias_sigma = (nn.Parameter(torch.empty(rows)) for _ in range(2))

    def forward(self, part: str) -> Tensor | tuple[Tensor | None, Tensor | None]:
        """"weights", float32 [2, H, N]; or "biases", float32 [H] each, or None. Always by a call of the module, which
        is where weights that are kept elsewhere (offloaded, sharded) are fetched."""
        if part == "biases":
            return tuple(None if b is None else b.float().expand(self.heads) for b in (self.bias_mu, self.bias_sigma))
        return torch.stack([w.float().expand(self.heads, -1) * self.scale for w in (self.weight_mu, self.weight_sigma)])


class InftyLongTermMemory(nn.Module):
    """The continuous memory of a layer: how its heads read, and what is written."""

    def __init__(self, config: InftyConfig, layer: int) -> None:
        super().__init__()
        self.config, self.memory, self.layer = config, config.memory_of(layer), layer
        self.delay = config.stm_of(layer) // config.segment_length
        self.kv_heads, self.group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        self.hidden = self.memory.signal == "hidden"
        self.signal_heads = config.num_attention_heads if self.hidden else self.kv_heads
        self.channels = config.head_dim * (1 if self.hidden else 2)
        self.maps = None if self.memory.density == "gibbs" else InftyDensityMaps(config, layer)
        e, width = config.hidden_size, self.kv_heads * config.head_dim
        if self.hidden:
            self.key, self.value = nn.Linear(e, width, bias=False), nn.Linear(e, width, bias=False)
        if self.memory.gate:
            self.gate = nn.Linear(3 * e, e)
        if self.memory.output_gate:
            self.output_gate = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.log_rate = nn.Parameter(torch.zeros(1)) if self.memory.contraction == "learned" else None
        self.out = nn.Linear(e, e, bias=False)

    def operators(self, device: torch.device) -> ContinuousMemory:
        return memory_operators(self.memory, self.config.segment_length, device)

    def forward(self, *args: Any, writes: bool = False) -> Any:
        """`read`, or `write`: both by a call of the module, which is where weights that are kept elsewhere (offloaded,
        sharded) are fetched."""
        return self.write(*args) if writes else self.read(*args)

    def read(self, q: Tensor, dtype: torch.dtype, state: InftyLayerState,
             piece: Piece) -> tuple[Tensor, InftyLayerState]:
        """Read with q [b, K, G, t, d] -> context float32 [b, t, H*d], and the state with the densities added.

        dtype: of what the layer's projections are given. A weight's own dtype says nothing when it is quantised.
        """
        # Mathematics of the memory is done in float32, also when the rest of the model is autocast.
        with torch.autocast(q.device.type, enabled=False):
            if state.memory is None:
                memory = self.operators(q.device).empty(len(q), self.signal_heads, self.channels, device=q.device)
                state = replace(state, memory=memory)
            if state.readout is None:
                state = self._prepare_reading(state, q.dtype, dtype)
            place = self._place(q, state)
            z = self._density(place, state).read(state.readout, self.operators(q.device).basis)  # [b, K, G*t, d]
            z = z.unflatten(2, (self.group, -1)).flatten(1, 2)
            if self.memory.output_gate:
                z = z * self.output_gate.float()[:, None, None]
        if self.memory.sticky != "off":
            old = (state.place, state.variance)
            place = (x.detach().unflatten(2, (self.group, -1)).flatten(1, 2) for x in place)
            new = [piece.extend(before, x) for before, x in zip(old, place)]
            state = replace(state, **dict(zip(("place", "variance"), new)))
        return z.transpose(1, 2).flatten(2), state

    def _prepare_reading(self, state: InftyLayerState, values: torch.dtype, dtype: torch.dtype) -> InftyLayerState:
        """Pool the memory's keys and project its values: once for each state of the memory, not for each token.

        values: dtype of values that are read as they were written; dtype: see `read`.
        """
        B, d = state.memory.coefficients, self.config.head_dim
        whole = B.transpose(1, 2).flatten(2) if self.hidden else None  # [b, N, e]
        readout = self._projected(self.value, whole, dtype) if self.hidden else B[..., d:].to(values)
        if self.maps is None:
            keys = self._projected(self.key, whole, dtype) if self.hidden else B[..., :d]
            return replace(state, readout=readout, keys=keys)
        weights = self.maps("weights").unflatten(1, (self.kv_heads, self.group))  # [2, K, G, N]
        if self.hidden:
            # Pooled first, then projected by all heads' keys, of which each head takes its own.
            pooled = torch.einsum("pkgn,bne->pbkge", weights, whole)
            # Quantised projections take no more than three dimensions.
            projected = self.key(pooled.to(dtype).flatten(0, 3)).view(*pooled.shape[:4], self.kv_heads, d)
            pooled = projected.diagonal(dim1=2, dim2=4).permute(0, 1, 4, 2, 3).float()  # [2, b, K, G, d]
        else:
            pooled = torch.einsum("pkgn,bknd->pbkgd", weights, B[..., :d])
        pooled_mu, pooled_sigma = pooled.flatten(2, 3)
        return replace(state, pooled_mu=pooled_mu, pooled_sigma=pooled_sigma, readout=readout)

    def _projected(self, projection: nn.Module, whole: Tensor, dtype: torch.dtype) -> Tensor:
        """[b, N, e] -> [b, K, N, d]."""
        y = projection(whole.to(dtype))
        return y.unflatten(-1, (self.kv_heads, self.config.head_dim)).transpose(1, 2)

    def _place(self, q: Tensor, state: InftyLayerState) -> tuple[Tensor, ...]:
        """What the densities of q [b, K, G, t, d] are made from: mean and variance, float32 [b, K, G*t] each; for a
        gibbs density the queries, [b, K, G*t, d]."""
        if self.maps is None:
            return (q.flatten(2, 3),)
        place = parameters(q.flatten(1, 2), state.pooled_mu, state.pooled_sigma, *self.maps("biases"),
                           self.memory.sigma_floor, self.memory.sigma_clamp)
        return tuple(x.unflatten(1, (self.kv_heads, self.group)).flatten(2) for x in place)

    def _density(self, place: tuple[Tensor, ...], state: InftyLayerState) -> Density:
        """The family of read densities that the config names."""
        if self.maps is None:
            basis = self.operators(place[0].device).basis
            return Gibbs(place[0], state.keys, basis, gibbs_points(self.memory.basis, self.memory.bins))
        return FAMILIES[self.memory.density](*place)

    def write(self, state: InftyLayerState, keys: Tensor, values: Tensor, piece: Piece,
              enabled: bool) -> InftyLayerState:
        """Write, in rows whose segment is complete, the segment that leaves the short-term memory.

        keys, values [b, K, stm+L, d]: the short-term memory and the segment.
        """
        L, core, memory = self.config.segment_length, self.operators(keys.device), state.memory
        stream = torch.cat([keys, values], -1)
        if self.hidden:
            new = self._content(state.content[:, 0])
            pending = state.pending
            if self.delay and pending is None:
                pending = new.new_zeros(*new.shape[:2], self.delay * L, new.shape[3])
            stream = new if pending is None else torch.cat([pending, new], 2)
            if self.delay:
                state = replace(state, pending=piece.where_complete(stream[:, :, L:], pending))
        if self.memory.sticky != "off":
            memory = core.with_histogram(memory, self._histogram(state), (memory.written > 0) & piece.complete)
        if enabled:
            if not self.memory.backprop and not self.hidden:
                stream = stream.detach()
            with torch.autocast(keys.device.type, enabled=False):
                seeds = None
                if self.memory.sticky == "multinomial":
                    seeds = seed(self.memory.sticky_seed, memory.written, self.layer)
                rate = None if self.log_rate is None else self.log_rate.float().exp()
                ready = piece.complete & (piece.segments >= self.delay)
                memory = core.write(memory, stream[:, :, :L], ready, seeds, rate)
        return replace(state.with_memory(memory), place=piece.put_away(state.place),
                       variance=piece.put_away(state.variance), content=piece.put_away(state.content))

    def _histogram(self, state: InftyLayerState) -> Tensor:
        """Where the segment's reads fell: [b, 1, D] for all heads of the layer, or [b, h, D] for each signal head."""
        place = (x.unflatten(1, (self.kv_heads, self.group)).flatten(2, 3)
                 for x in (state.place, state.variance) if x is not None)
        p = self._density(tuple(place), state).histogram(self.memory.bins)  # [b, K, D]
        return p if self.memory.sticky_heads == "per_head" else p.sum(1, keepdim=True) / self.kv_heads

    def _content(self, h: Tensor) -> Tensor:
        """A segment's hidden states h [b, L, e], gated, by heads: [b, H, L, d]."""
        x = h = h if self.memory.backprop else h.detach()
        if self.memory.gate:  # each token beside its neighbours in the segment, zeros outside
            before, after = F.pad(h, (0, 0, 1, 0))[:, :-1], F.pad(h, (0, 0, 0, 1))[:, 1:]
            x = x * torch.sigmoid(self.gate(torch.cat([before, h, after], -1)))
        return x.unflatten(-1, (self.signal_heads, -1)).transpose(1, 2)


class InftyMLP(nn.Module):
    """GELU (GPT-2) or SwiGLU (Llama)."""

    def __init__(self, config: InftyConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        # Gated: gate and value of a channel lie side by side.
        width = config.intermediate_size * (2 if self.gated else 1)
        self.up = nn.Linear(config.hidden_size, width, bias=config.bias)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.bias)

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
        self.config, self.stm = config, config.stm_of(layer)
        self.attention_norm = make_norm(config)
        self.attention = InftyAttention(config, layer)
        self.memory = InftyLongTermMemory(config, layer) if config.has_memory(layer) else None
        self.mlp_norm = make_norm(config)
        self.mlp = InftyMLP(config)

    def forward(self, x: Tensor, state: InftyLayerState, piece: Piece,
                memory_enabled: bool = True) -> tuple[Tensor, InftyLayerState]:
        """x [b, t, e] -> x and the layer's new state."""
        h = self.attention_norm(x)
        q, key, value = self.attention.project(h)
        state = replace(state, key=piece.extend(state.key, key), value=piece.extend(state.value, value))
        keys, values = self._local(state)
        y = self.attention.out(self.attention(q, keys, values, piece))
        if self.memory is not None:
            context, state = self.memory(q, h.dtype, state, piece)
            y = y + self.memory.out(context.to(y.dtype))
            if self.memory.hidden:
                content = h if self.memory.memory.content == "normed" else x
                state = replace(state, content=piece.extend(state.content, content[:, None]))
        x = x + F.dropout(y, self.config.dropout, self.training)
        x = x + F.dropout(self.mlp(self.mlp_norm(x)), self.config.dropout, self.training)
        return x, self._end_segment(state, keys, values, piece, memory_enabled) if piece.ends else state

    def _local(self, state: InftyLayerState) -> tuple[Tensor, Tensor]:
        """Keys and values [b, K, stm+w, d] of the short-term memory and the segment so far."""
        if not self.stm:
            return state.key, state.value
        b, K, _, d = state.key.shape
        old = (state.stm_key, state.stm_value)
        return tuple(torch.cat([new.new_zeros(b, K, self.stm, d) if stm is None else stm, new], 2)
                     for stm, new in zip(old, (state.key, state.value)))

    def _end_segment(self, state: InftyLayerState, keys: Tensor, values: Tensor, piece: Piece,
                     memory_enabled: bool) -> InftyLayerState:
        if self.memory is not None:
            state = self.memory(state, keys, values, piece, memory_enabled, writes=True)
        if self.stm:
            tails = (piece.where_complete(x[:, :, x.shape[2] - self.stm:], x[:, :, :self.stm]) for x in (keys, values))
            state = replace(state, stm_key=next(tails), stm_value=next(tails))
        return replace(state, key=piece.put_away(state.key), value=piece.put_away(state.value))


class InftyPreTrainedModel(PreTrainedModel):
    config_class = InftyConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InftyDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    _is_stateful = True

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Any = None,
                                    **kwargs: Any) -> None:
        how = getattr(gradient_checkpointing_func, "keywords", {})
        if enable and how.get("use_reentrant"):
            raise ValueError("gradient checkpointing with use_reentrant=True loses the gradients that go through the "
                             "memory: take use_reentrant=False, the default")
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InftyDensityMaps):
            std = 1 / math.sqrt(3 * module.weight_mu.shape[1]) if module.shared else INITIAL_WEIGHT
            init.normal_(module.weight_mu, std=std)
            init.normal_(module.weight_sigma, std=std)
            if module.bias_mu is not None:
                rows = len(module.bias_mu)
                init.copy_(module.bias_mu, torch.logit((torch.arange(rows) + 0.5) / rows))
                init.constant_(module.bias_sigma, math.log(math.expm1(INITIAL_SIGMA**2)))
        elif isinstance(module, InftyLongTermMemory):
            for starts_at_zero in (getattr(module, "output_gate", None), module.log_rate):
                if starts_at_zero is not None:
                    init.zeros_(starts_at_zero)


class InftyModel(InftyPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: InftyConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(config.stm_length + config.segment_length, config.hidden_size)
        self.layers = nn.ModuleList(InftyDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = make_norm(config)
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
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Read tokens input_ids int64 [b, T], T of any length, after what `cache` (older versions of transformers:
        `past_key_values`) has read.

        Where attention_mask [b, T] (or [b, all columns so far]) is 0, a row has no token: padding on any side. Such
        columns of the output are zero. Where position_ids is 0, seq_idx changes, or cu_seq_lens_q says so (see
        `document_starts`), a document begins: its row forgets what it has read. `memory_enabled=False` leaves the
        long-term memory empty. Raises ValueError for arguments that have no effect.
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
        starts = document_starts(mask, position_ids, seq_idx, cu_seq_lens_q, b, T, fresh=cache.states is None)
        states = cache.states or (InftyLayerState(),) * len(self.layers)
        reading = Reading(self.config.segment_length, cache.fill, cache.segments, b)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        pieces = []
        for columns, piece in reading.pieces(mask, starts, T, x.device):
            part = x[:, columns] if isinstance(columns, slice) else x.take_along_dim(columns[..., None], 1)
            if piece.begins is not None:
                states = tuple(state.start_document(piece.begins, piece.held) for state in states)
            streams, states = self._read(part, states, piece, memory_enabled)
            pieces.append(streams if output_hidden_states else streams[-1:])
        if use_cache if use_cache is not None else self.config.use_cache:
            cache.store(states, reading.fill, reading.segments, T)
        else:
            cache = None
        levels = [reading.in_columns(list(level), x) for level in zip(*pieces)] or [torch.zeros_like(x)]
        hidden = tuple(levels) if output_hidden_states else None
        result = BaseModelOutputWithPast(last_hidden_state=levels[-1], hidden_states=hidden, **{CACHE: cache})
        return result if _as_dict(return_dict, self.config) else result.to_tuple()

    def _read(self, x: Tensor, states: tuple[InftyLayerState, ...], piece: Piece,
              memory_enabled: bool) -> tuple[tuple[Tensor, ...], tuple[InftyLayerState, ...]]:
        """One piece through all layers: what each layer is given, then what the head is; and the new states."""
        if self.embed_positions is not None:
            place = piece.segments[:, None] * self.config.segment_length + piece.places()
            # Positions repeat with a period of all that a token can see, so no two tokens in sight share one.
            x = x + self.embed_positions(place % self.embed_positions.num_embeddings)
        x = F.dropout(x, self.config.dropout, self.training)
        new, streams = [], []
        for layer, state in zip(self.layers, states):
            streams.append(x)
            x, state = layer(x, state, piece, memory_enabled)
            new.append(state)
        return (*streams, self.norm(x)), tuple(new)


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
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                             memory_enabled, cache=cache, seq_idx=seq_idx, return_dict=True, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None or loss_kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        result = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states,
                                        **{CACHE: outputs.get(CACHE)})
        return result if _as_dict(return_dict, self.config) else result.to_tuple()


__all__ = ["InftyForCausalLM", "InftyModel", "InftyPreTrainedModel"]
