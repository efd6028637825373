"""The shape of a language model, as written under `model:` in a run's config."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from infty.errors import UserError
from infty.memory.config import MemoryConfig

# What each family means for the fields that a config may leave out.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layernorm", "activation": "gelu", "positions": "learned", "bias": True, "tie_embeddings": True},
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "positions": "rotary", "bias": False, "tie_embeddings": False},
}


@dataclass(frozen=True)
class CompressedConfig:
    """The compressed memory of a compressive transformer (Rae et al., arXiv 1911.05507), in every layer with an STM."""

    length: int = 512
    """Compressed memories kept and attended to; a multiple of what a segment is compressed to."""
    ratio: int = 4
    """Tokens that are compressed to one memory; divides segment_length."""
    reconstruction_weight: float = 1.0
    """Weight of the attention-reconstruction loss, which trains the compression alone."""
    backprop: bool = True
    """Let the main loss train the compression, too, as far as a window reaches. The paper does not."""

    def __post_init__(self) -> None:
        """Raises UserError."""
        for name in ("length", "ratio"):
            _require(getattr(self, name) > 0, f"compressed.{name}", f"{getattr(self, name)} must be > 0")
        _require(self.reconstruction_weight >= 0, "compressed.reconstruction_weight", "must be >= 0")
        _require(self.backprop or self.reconstruction_weight > 0, "compressed.reconstruction_weight",
                 "must be > 0 with backprop: false, or nothing trains the compression")


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with a short-term and a long-term memory. Validated when made; never changed after."""

    family: Literal["gpt2", "llama"] = "llama"
    """Sets norm, activation, positions, bias and tie_embeddings where these are left out."""
    vocab_size: int | None = None
    """Number of tokens; left out: taken from the dataset's tokenizer."""
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    kv_heads: int | None = None
    """Heads that share keys and values in groups; left out: as many as heads."""
    ffn_size: int | None = None
    """Left out: 4 x hidden (gelu) or 8/3 x hidden rounded up to a multiple of 64 (swiglu)."""
    segment_length: int = 512
    """Tokens in a segment [L]: the unit in which the long-term memory is written."""
    stm_length: int = 0
    """Tokens before the segment whose keys and values are attended to; a multiple of segment_length."""
    stm_layers: tuple[int, ...] | None = None
    """Layers (from 0) that have a short-term memory; left out: all."""
    norm: Literal["layernorm", "rmsnorm"] | None = None
    activation: Literal["gelu", "swiglu"] | None = None
    positions: Literal["learned", "rotary", "relative", "none"] | None = None
    """`relative`: Transformer-XL's (Dai et al., arXiv 1901.02860)."""
    bias: bool | None = None
    tie_embeddings: bool | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    dropout: float = 0.0
    init_std: float = 0.02
    vocab_multiple: int = 128
    """The embedding is padded to a multiple of this many rows; padding never changes the loss."""
    memory: MemoryConfig | None = field(default_factory=MemoryConfig)
    """The long-term memory; null: none."""
    compressed: CompressedConfig | None = None
    """A compressed memory instead of a long-term memory; left out: none."""

    def __post_init__(self) -> None:
        """Fill in what the family decides and refuse what cannot work. Raises UserError."""
        for name, value in FAMILIES[self.family].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.ffn_size is None:
            wide = 4 * self.hidden_size if self.activation == "gelu" else -(-8 * self.hidden_size // 192) * 64
            object.__setattr__(self, "ffn_size", wide)
        self._validate()

    def _validate(self) -> None:
        for name in ("hidden_size", "layers", "heads", "kv_heads", "ffn_size", "segment_length", "vocab_multiple"):
            _require(getattr(self, name) > 0, name, f"{getattr(self, name)} must be > 0")
        _require(self.vocab_size is None or self.vocab_size > 0, "vocab_size", f"{self.vocab_size} must be > 0")
        _require(self.hidden_size % self.heads == 0, "heads",
                 f"hidden_size {self.hidden_size} is not divisible by {self.heads} heads")
        _require(self.heads % self.kv_heads == 0, "kv_heads",
                 f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        _require(self.positions != "rotary" or self.head_size % 2 == 0, "positions",
                 f"rotary positions need an even head size, not {self.head_size}")
        _require(self.stm_length >= 0 and self.stm_length % self.segment_length == 0, "stm_length",
                 f"{self.stm_length} is not a multiple of segment_length {self.segment_length} (0 means none)")
        _require(0 <= self.dropout < 1, "dropout", f"{self.dropout} must lie in [0, 1)")
        for name, chosen in (("stm_layers", self.stm_layers), ("memory.layers", self.memory and self.memory.layers),
                             ("memory.overrides", self.memory and self.memory.overrides)):
            wrong = [i for i in chosen or () if not 0 <= i < self.layers]
            _require(not wrong, name, f"{wrong} are not layers of a model with layers 0 to {self.layers - 1}")
        idle = [i for i in (self.memory and self.memory.overrides) or () if not self.has_memory(i)]
        _require(not idle, "memory.overrides", f"layers {idle} have no memory to change: they are not in memory.layers")
        if self.compressed is not None:
            self._validate_compressed(self.compressed)

    def _validate_compressed(self, compressed: CompressedConfig) -> None:
        L, ratio = self.segment_length, compressed.ratio
        _require(self.memory is None, "compressed", "is another long memory: needs memory: null")
        _require(self.positions == "relative", "compressed", f"needs positions: relative, not {self.positions}")
        _require(self.stm_length > 0, "compressed", "is made of what leaves the STM: needs stm_length > 0")
        _require(L % ratio == 0, "compressed.ratio", f"{ratio} does not divide segment_length {L}")
        _require(compressed.length % (L // ratio) == 0, "compressed.length",
                 f"{compressed.length} is not a multiple of {L // ratio}, what a segment is compressed to")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of vocab_multiple."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not known yet: give it, or a dataset to take it from")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def remembers(self) -> bool:
        """Whether any layer has a memory beyond the short-term one."""
        return self.memory is not None or self.compressed is not None

    def has_memory(self, layer: int) -> bool:
        """Whether this layer has a long-term memory."""
        return self.memory is not None and (self.memory.layers is None or layer in self.memory.layers)

    def memory_of(self, layer: int) -> MemoryConfig | None:
        """This layer's long-term memory, with what is different in this layer; None: it has none."""
        return self.memory.of(layer) if self.has_memory(layer) else None

    def stm_of(self, layer: int) -> int:
        """Length of this layer's short-term memory in tokens."""
        return self.stm_length if self.stm_layers is None or layer in self.stm_layers else 0

    def compressed_of(self, layer: int) -> int:
        """Compressed memories that this layer keeps."""
        return self.compressed.length if self.compressed is not None and self.stm_of(layer) else 0

    def memory_heads(self) -> int:
        """Heads of the stored signal: one for each key/value head, or one for each slice of the hidden state."""
        return self.kv_heads if self.memory and self.memory.signal == "heads" else self.heads

    def memory_channels(self) -> int:
        """Channels of a head's stored signal: its key and its value, or its slice of the hidden state."""
        return 2 * self.head_size if self.memory and self.memory.signal == "heads" else self.head_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for YAML and JSON."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.memory is not None:
            out["memory"] = {f.name: getattr(self.memory, f.name) for f in fields(self.memory)}
        if self.compressed is not None:
            out["compressed"] = {f.name: getattr(self.compressed, f.name) for f in fields(self.compressed)}
        return {k: _plain(v) for k, v in out.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`."""
        values = dict(values)
        memory = values.pop("memory", None)
        if memory is not None:
            memory = MemoryConfig(**{k: _tuples(v) for k, v in memory.items()})
        compressed = values.pop("compressed", None)
        if compressed is not None:
            compressed = CompressedConfig(**compressed)
        return cls(**{k: _tuples(v) for k, v in values.items()}, memory=memory, compressed=compressed)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise UserError(f"model.{key}: {problem}")
