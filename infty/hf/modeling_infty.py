"""A decoder with a short-term and a long-term continuous memory, for transformers. Needs torch and transformers only.

The text is read segment by segment. Within a segment a token sees the tokens before it, those of the short-term memory
and, through its layer's long-term memory, everything that was written before the segment began. A segment is written
when it is complete (or, with a short-term memory, when it leaves that). So memory use does not grow with the text, and
reading a token at a time gives what reading everything at once gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from infty.hf.arguments_infty import (
    LOSS,
    VARLEN,
    document_starts,
    one_cache,
    refuse_compilers,
    refuse_others,
    token_mask,
)
from infty.hf.cache_infty import CACHE, InftyCache, ReadBy
from infty.hf.configuration_infty import InftyConfig
from infty.hf.generation_infty import InftyGenerationMixin
from infty.hf.layer_infty import InftyDecoderLayer, make_norm
from infty.hf.memory_infty import InftyModule, Losses
from infty.hf.pieces_infty import Piece, Reading
from infty.hf.state_infty import InftyLayerState


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

    def load_cache(self, path: str | Path) -> InftyCache:
        """What a bookmark of this model holds; see `InftyCache.load`. Raises ValueError."""
        return InftyCache.load(path, self)

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
        self.surprised = any(layer.surprised for layer in self._layers())
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
        head: nn.Module | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Read tokens input_ids int64 [b, T], T of any length, after what `cache` (older versions of transformers:
        `past_key_values`) has read.

        Where attention_mask [b, T] (or [b, all columns so far]) is 0, a row has no token: padding on any side. Such
        columns of the output are zero. Where position_ids is 0, seq_idx changes, or cu_seq_lens_q says so (see
        `document_starts`), a document begins: its row forgets what it has read. `memory_enabled=False` leaves the
        long-term memory empty. `output_rows` [b, T, e]: what the head predicts these tokens with, where it is not the
        embedding and a memory stores it, and `head`, where it is not the embedding and a memory writes by losses;
        `InftyForCausalLM` gives both. Raises ValueError for arguments that have no effect.
        """
        refuse_compilers()
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
        rows, ids = self._rows(x, output_rows), self._tokens(input_ids, head)
        for columns, piece in reading.pieces(mask, starts, T, x.device):
            part, told = _taken(x, columns), None if rows is None else _taken(rows, columns)
            tokens = None if ids is None else _taken(ids[..., None], columns)[..., 0]
            if piece.begins is not None:
                states = tuple(state.start_document(piece.begins, piece.held) for state in states)
            streams, states = self._read(part, told, tokens, states, piece, memory_enabled, head)
            pieces.append(streams if output_hidden_states else streams[-1:])
        if use_cache if use_cache is not None else self.config.use_cache:
            cache.store(states, reading.fill, reading.segments, T)
            cache.read_by = ReadBy(self)
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

    def _tokens(self, input_ids: Tensor | None, head: nn.Module | None) -> Tensor | None:
        """The tokens, where a memory writes by their losses."""
        if not self.surprised:
            return None
        if input_ids is None or (head is None and not self.config.tie_word_embeddings):
            raise ValueError(
                "this model's memory writes by its tokens' losses: call InftyForCausalLM with input_ids"
            )
        return input_ids

    def _losses(self, head: nn.Module | None) -> Losses:
        """See `Losses`; without a head it is the embedding."""

        @torch.no_grad()
        def losses(stream: Tensor, tokens: Tensor) -> Tensor:
            h = self.norm(stream)
            logits = F.linear(h, self.embed_tokens.weight) if head is None else head(h)
            target = tokens.to(logits.device)
            each = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
            return each.view(tokens.shape).to(stream.device)

        return losses

    def _read(
        self,
        x: Tensor,
        output_rows: Tensor | None,
        tokens: Tensor | None,
        states: tuple[InftyLayerState, ...],
        piece: Piece,
        memory_enabled: bool,
        head: nn.Module | None,
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
            losses = self._losses(head) if layer.surprised else None
            x, state = layer(x, output_rows, state, piece, memory_enabled, tokens, losses)
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
        refuse_compilers()
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
            head=self.lm_head if self.model.surprised else None,
            return_dict=True,
            **kwargs,
        )
        if outputs.get(CACHE) is not None:  # the head counts where a memory stores its rows
            outputs[CACHE].read_by = ReadBy(self)
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
