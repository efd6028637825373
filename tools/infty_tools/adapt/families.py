"""The families of models that can be adapted: what their configs mean for infty, and where their weights go.

A new family is a subclass of `Family` and a line in `FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.errors import UserError

SEGMENT = 512
"""Tokens of a segment where the user names none, and of the short-term memory."""
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


class Part(NamedTuple):
    """How one parameter of infty's model is made."""

    sources: tuple[str, ...]
    """The original's tensors, without the name of its base model."""
    make: Callable[..., Tensor]
    """From these tensors to the parameter, whole; moves numbers about and changes none."""


Parts = dict[str, Part]


class Family(ABC):
    """One `model_type`."""

    base: str
    """Under this name the original's language model keeps its decoder."""
    buffers: tuple[str, ...] = ()
    """Ends of names that are no parameters, though some files hold them."""

    @abstractmethod
    def shape(self, config: Any) -> dict[str, Any]:
        """The values of `model:`. Raises UserError for what infty's model cannot represent, by name."""

    @abstractmethod
    def ends(self, model: ModelConfig) -> tuple[Parts, Parts]:
        """What lies before the layers, and behind them."""

    @abstractmethod
    def layer(self, model: ModelConfig, index: int) -> Parts:
        """One layer, memories excepted."""


class GPT2(Family):
    """GPT-2: learned positions, LayerNorm, biases everywhere; its matrices are stored transposed."""

    base = "transformer"
    buffers = (".attn.bias", ".attn.masked_bias")

    def shape(self, config: Any) -> dict[str, Any]:
        refuse(
            {
                "activation_function": (config.activation_function, TANH_GELU),
                "scale_attn_weights": (config.scale_attn_weights, (True,)),
                "scale_attn_by_inverse_layer_idx": (
                    config.scale_attn_by_inverse_layer_idx,
                    (False,),
                ),
                "add_cross_attention": (config.add_cross_attention, (False,)),
            }
        )
        return {
            "family": "gpt2",
            "vocab_size": config.vocab_size,
            "hidden_size": config.n_embd,
            "layers": config.n_layer,
            "heads": config.n_head,
            "ffn_size": config.n_inner or 4 * config.n_embd,
            "tie_embeddings": config.tie_word_embeddings,
            "norm_eps": config.layer_norm_epsilon,
            "init_std": config.initializer_range,
            "dropout": float(config.resid_pdrop),
            "segment_length": min(SEGMENT, config.n_positions),
            "stm_length": 0,
        }

    def ends(self, model: ModelConfig) -> tuple[Parts, Parts]:
        rows = model.stm_length + model.segment_length
        before = {
            "embedding.weight": Part(("wte.weight",), lambda x: padded(x, model)),
            "position.weight": Part(("wpe.weight",), lambda x: x[:rows]),
        }
        return before, _norm("norm", "ln_f") | _head(model)

    def layer(self, model: ModelConfig, index: int) -> Parts:
        source, target = f"h.{index}", f"blocks.{index}"

        def fused(x: Tensor) -> Tensor:
            """[e, 3e] or [3e]: queries, keys and values of all heads, one after the other."""
            return interleaved(model, *x.t().chunk(3))

        parts = _norm(f"{target}.attention_norm", f"{source}.ln_1")
        parts |= _norm(f"{target}.mlp_norm", f"{source}.ln_2")
        for kind in ("weight", "bias"):
            parts[f"{target}.attention.qkv.{kind}"] = Part((f"{source}.attn.c_attn.{kind}",), fused)
            for ours, theirs in (
                ("attention.out", "attn.c_proj"),
                ("mlp.up", "mlp.c_fc"),
                ("mlp.out", "mlp.c_proj"),
            ):
                parts[f"{target}.{ours}.{kind}"] = Part((f"{source}.{theirs}.{kind}",), torch.t)
        return parts


class Llama(Family):
    """Llama, and what its relatives have in common with it (SmolLM2 is one of this very type)."""

    base = "model"
    buffers = ("rotary_emb.inv_freq",)

    def shape(self, config: Any) -> dict[str, Any]:
        refuse({"hidden_act": (config.hidden_act, ("silu", "swish"))})
        bias = bool(getattr(config, "attention_bias", False))
        length = min(SEGMENT, max(1, config.max_position_embeddings // 2))
        return {
            "family": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            "ffn_size": config.intermediate_size,
            "qkv_bias": bias,
            "attention_out_bias": bias,
            "mlp_bias": bool(getattr(config, "mlp_bias", False)),
            "tie_embeddings": config.tie_word_embeddings,
            "norm_eps": config.rms_norm_eps,
            "init_std": config.initializer_range,
            "segment_length": length,
            "stm_length": length,
            **_rope(config),
            **_window(config),
        }

    def ends(self, model: ModelConfig) -> tuple[Parts, Parts]:
        before = {"embedding.weight": Part(("embed_tokens.weight",), lambda x: padded(x, model))}
        return before, {"norm.weight": Part(("norm.weight",), same)} | _head(model)

    def layer(self, model: ModelConfig, index: int) -> Parts:
        source, target = f"layers.{index}", f"blocks.{index}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        parts = {
            f"{target}.attention_norm.weight": Part((f"{source}.input_layernorm.weight",), same),
            f"{target}.mlp_norm.weight": Part((f"{source}.post_attention_layernorm.weight",), same),
        }
        for kind, qkv, out, ffn in (
            ("weight", True, True, True),
            ("bias", model.qkv_bias, model.attention_out_bias, model.mlp_bias),
        ):
            if qkv:
                names = tuple(f"{attention}.{x}_proj.{kind}" for x in "qkv")
                parts[f"{target}.attention.qkv.{kind}"] = Part(
                    names, lambda *x: interleaved(model, *x)
                )
            if out:
                parts[f"{target}.attention.out.{kind}"] = Part(
                    (f"{attention}.o_proj.{kind}",), same
                )
            if ffn:
                parts[f"{target}.mlp.up.{kind}"] = Part(
                    (f"{mlp}.gate_proj.{kind}", f"{mlp}.up_proj.{kind}"), side_by_side
                )
                parts[f"{target}.mlp.out.{kind}"] = Part((f"{mlp}.down_proj.{kind}",), same)
        if model.qk_norm:
            for ours, theirs in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
                parts[f"{target}.attention.{ours}.weight"] = Part(
                    (f"{attention}.{theirs}.weight",), same
                )
        return parts


class Qwen2(Llama):
    """Qwen2 and Qwen2.5: biases of queries, keys and values."""

    def shape(self, config: Any) -> dict[str, Any]:
        return super().shape(config) | {"qkv_bias": True}


class Qwen3(Llama):
    """Qwen3: norms of queries and keys."""

    def shape(self, config: Any) -> dict[str, Any]:
        return super().shape(config) | {"qk_norm": True}


FAMILIES: dict[str, Family] = {
    "gpt2": GPT2(),
    "llama": Llama(),
    "mistral": Llama(),
    "qwen2": Qwen2(),
    "qwen3": Qwen3(),
}
"""By the `model_type` of a config."""


def refuse(values: dict[str, tuple[Any, tuple]]) -> None:
    """Raise UserError for a key of a config whose value is not one of those that infty's model has."""
    for key, (value, allowed) in values.items():
        if value not in allowed:
            raise UserError(
                f"the model cannot be adapted: its config says {key} {value!r}, and infty "
                f"supports only {' or '.join(map(repr, allowed))}"
            )


def same(x: Tensor) -> Tensor:
    return x


def interleaved(model: ModelConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries [H*d, ...], keys and values [K*d, ...] -> for each key/value head its queries, key and value."""
    heads = [
        x.unflatten(0, (model.kv_heads, -1, model.head_size)) for x in (q, k, v)
    ]  # [K, G or 1, d, ...]
    return torch.cat(heads, 1).flatten(0, 2)


def side_by_side(gate: Tensor, value: Tensor) -> Tensor:
    """[ffn, ...] each -> [2*ffn, ...]: gate and value of a channel lie side by side."""
    return torch.stack([gate, value], 1).flatten(0, 1)


def padded(x: Tensor, model: ModelConfig) -> Tensor:
    """[V, e] -> [padded_vocab, e], zeros below."""
    if x.shape[0] != model.vocab_size:
        return x  # the shapes are compared, and refused
    out = x.new_zeros(model.padded_vocab, x.shape[1], dtype=torch.float32)
    out[: x.shape[0]] = x
    return out


def _norm(target: str, source: str) -> Parts:
    return {f"{target}.{kind}": Part((f"{source}.{kind}",), same) for kind in ("weight", "bias")}


def _head(model: ModelConfig) -> Parts:
    if model.tie_embeddings:
        return {}
    return {"head.weight": Part(("lm_head.weight",), lambda x: padded(x, model))}


def _rope(config: Any) -> dict[str, Any]:
    """Rotary frequencies, as transformers writes them since version 5."""
    given = dict(config.rope_parameters)
    refuse({"partial_rotary_factor": (given.get("partial_rotary_factor", 1.0), (1, 1.0))})
    kind = given.get("rope_type", "default")
    refuse({"rope_type": (kind, ("default", "linear", "llama3", "yarn"))})
    values: dict[str, Any] = {"rope_theta": float(given["rope_theta"])}
    if kind == "default":
        return values
    known = {
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
        "yarn": (
            "factor",
            "beta_fast",
            "beta_slow",
            "truncate",
            "attention_factor",
            "original_max_position_embeddings",
        ),
    }[kind]
    scaling = {key: given[key] for key in known if given.get(key) is not None}
    if kind == "yarn":
        scaling |= _yarn(config, given)
    return values | {"rope_scaling": {"kind": kind, **scaling}}


def _yarn(config: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What yarn leaves to be computed, by transformers itself."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    factor = given.get("factor")
    if factor is None:
        factor = config.max_position_embeddings / given["original_max_position_embeddings"]
    return {"factor": float(factor), "attention_factor": float(scale)}


def _window(config: Any) -> dict[str, Any]:
    """The sliding window and the layers that have one."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return {}
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"window": window}
    for kind in kinds:
        refuse({"layer_types": (kind, ("full_attention", "sliding_attention"))})
    chosen = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if not chosen:
        return {}
    return {"window": window} | ({} if len(chosen) == len(kinds) else {"window_layers": chosen})
