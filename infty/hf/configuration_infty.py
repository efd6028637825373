"""Configuration of an infty model for transformers: the shape of the decoder and of its memories."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from infty.errors import UserError
from infty.memory.rope_scaling import RopeScaling

UNLIMITED = 2**31 - 1  # tokens


class InftyConfig(PretrainedConfig):
    """A pre-norm decoder with a short-term and a long-term memory.

    Decoder fields have the names that transformers gives them; `memories` holds the sections of the memories beyond the
    short-term one as plain values, by name (the one that most models have is called "memory"), or is None for a model
    without. Every value is stored, none is derived when loaded.
    """

    model_type = "infty"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  Trainer adds a list to it

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int = 2048,
        segment_length: int = 512,
        stm_length: int = 0,
        stm_layers: list[int] | None = None,
        sinks: int = 0,
        window: int | None = None,
        window_layers: list[int] | None = None,
        norm: str = "rmsnorm",
        activation: str = "swiglu",
        positions: str = "rotary",
        bias: bool = False,
        qkv_bias: bool | None = None,
        attention_out_bias: bool | None = None,
        mlp_bias: bool | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        rotary_scaling: dict[str, Any] | None = None,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        memories: dict[str, dict[str, Any]] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Raises UserError for a model that an earlier version exported."""
        if kwargs.get("memory") is not None:
            raise UserError(
                "this model was exported before memories had names (its config.json says `memory`, not "
                "`memories`): export its checkpoint again, or load the folder with trust_remote_code=True, "
                "which runs the code that lies in it"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.intermediate_size = intermediate_size
        self.segment_length = segment_length
        self.stm_length = stm_length
        self.stm_layers = stm_layers
        self.sinks = sinks
        self.window = window
        self.window_layers = window_layers
        self.norm = norm
        self.activation = activation
        self.positions = positions
        self.bias = bias
        self.qkv_bias = bias if qkv_bias is None else qkv_bias
        self.attention_out_bias = bias if attention_out_bias is None else attention_out_bias
        self.mlp_bias = bias if mlp_bias is None else mlp_bias
        self.qk_norm = qk_norm
        self.norm_eps = norm_eps
        self.rope_theta = rope_theta
        self.rotary_scaling = rotary_scaling
        self.dropout = dropout
        self.initializer_range = initializer_range
        self.memories = memories
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @property
    def max_position_embeddings(self) -> int:
        """No limit: a number that no text reaches. Tools that find none assume a short one and cut texts there."""
        return UNLIMITED

    def rotary(self) -> tuple[float, RopeScaling | None]:
        """What rotary angles are made of, beside positions and a head's size."""
        scaling = self.rotary_scaling
        return self.rope_theta, None if scaling is None else RopeScaling(**scaling)

    def stm_of(self, layer: int) -> int:
        """Length of this layer's short-term memory in tokens."""
        return self.stm_length if self.stm_layers is None or layer in self.stm_layers else 0

    def sinks_of(self, layer: int) -> int:
        """Tokens at the beginning of the document that this layer keeps in sight."""
        return self.sinks if self.stm_of(layer) else 0

    def window_of(self, layer: int) -> int | None:
        """Tokens that this layer's attention sees at most; None where it sees all that are in sight."""
        chosen = self.window_layers is None or layer in self.window_layers
        in_sight = self.stm_of(layer) + self.segment_length
        return self.window if chosen and self.window and self.window < in_sight else None


__all__ = ["InftyConfig"]
