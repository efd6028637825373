"""A trained model's weights under the names of its transformers twin."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from infty.config import ModelConfig
from infty.errors import UserError
from infty.hf.configuration_infty import InftyConfig
from infty.hf.kinds_infty import section_of

# Everything else keeps its name and its layout: fused projections stay fused.
RENAMED = {
    "embedding.": "model.embed_tokens.",
    "position.": "model.embed_positions.",
    "blocks.": "model.layers.",
    "norm.": "model.norm.",
    "head.": "lm_head.",
}
VOCABULARY = ("embedding.weight", "head.weight")


def convert_weights(
    weights: Iterable[tuple[str, Tensor]], config: ModelConfig
) -> dict[str, Tensor]:
    """Whole training parameters, by name -> the state dict of `InftyForCausalLM`.

    Rows that only pad the vocabulary are dropped; with tied embeddings there is no `lm_head.weight`. Raises UserError
    for a name or a number of rows that does not belong to this model.
    """
    out = {}
    for name, weight in weights:
        prefix = next((p for p in RENAMED if name.startswith(p)), None)
        if prefix is None:
            raise UserError(
                f"'{name}' is no parameter of this model: the checkpoint is another version's or another "
                "program's"
            )
        if name in VOCABULARY:
            if len(weight) < config.vocab_size:
                raise UserError(
                    f"{name} has {len(weight)} rows, but the vocabulary {config.vocab_size} tokens"
                )
            weight = weight[: config.vocab_size]
        out[RENAMED[prefix] + name.removeprefix(prefix)] = weight
    return out


def convert_config(config: ModelConfig, **extra: Any) -> InftyConfig:
    """The same model's configuration for transformers; `extra`: its other fields, such as eos_token_id.

    Raises UserError for positions or a memory that has no twin there.
    """
    if config.positions == "relative":
        raise UserError(
            "models with positions: relative (Transformer-XL, compressive transformer) are baselines of "
            "experiments and have no transformers twin: they cannot be exported. `infty evaluate` reads "
            "their checkpoints"
        )
    values = json.loads(json.dumps(config.to_dict()))  # as it will be read again
    first = {} if values["memory"] is None else {"memory": values["memory"]}
    memories = first | (values["memories"] or {})
    for name, section in memories.items():
        section_of(name, section)
    return InftyConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.ffn_size,
        segment_length=config.segment_length,
        stm_length=config.stm_length,
        stm_layers=values["stm_layers"],
        sinks=config.sinks,
        window=config.window,
        window_layers=values["window_layers"],
        norm=config.norm,
        activation=config.activation,
        positions=config.positions,
        bias=config.bias,
        qkv_bias=config.qkv_bias,
        attention_out_bias=config.attention_out_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=config.qk_norm,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        rotary_scaling=values["rope_scaling"],
        dropout=config.dropout,
        initializer_range=config.init_std,
        memories=memories or None,
        tie_word_embeddings=config.tie_embeddings,
        **extra,
    )
