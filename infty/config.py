"""The shape of a language model, as written under `model:` in a run's config."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from infty import ranges
from infty.errors import UserError
from infty.memory.config import LEFT_OUT, LeftOut
from infty.memory.rope_scaling import RopeScaling
from infty.memory.sections import ContinuationConfig, held_in
from infty.memory_kinds import section_of
from infty.ranges import Range, whole

# What each family means for the fields that a config may leave out.
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layernorm",
        "activation": "gelu",
        "positions": "learned",
        "bias": True,
        "tie_embeddings": True,
    },
    "llama": {
        "norm": "rmsnorm",
        "activation": "swiglu",
        "positions": "rotary",
        "bias": False,
        "tie_embeddings": False,
    },
}

# Upper ends are far beyond any model and stop slips of the keyboard.
RANGES: dict[str, Range] = {
    "vocab_size": whole(1, 2**24),
    "hidden_size": whole(1, 2**20),
    "layers": whole(1, 10_000),
    "heads": whole(1, 2**16),
    "kv_heads": whole(1, 2**16),
    "head_size": whole(1, 2**16),
    "ffn_size": whole(1, 2**22),
    "segment_length": whole(1, 2**20),
    "stm_length": whole(0, 2**24),
    "sinks": whole(0, 2**20),
    "window": whole(1, 2**24),
    "norm_eps": Range(0, 0.1, above=True),
    "rope_theta": Range(1, 1e12),
    "dropout": Range(0, 1, below=True),
    "init_std": Range(0, 10, above=True),
    "vocab_multiple": whole(1, 2**20),
}


LORA: dict[str, Range] = {"rank": whole(1, 2**16), "alpha": Range(0, 1e6, above=True)}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank updates of projections that do not learn themselves (Hu et al., arXiv 2106.09685)."""

    rank: int = 8
    alpha: float = 16.0
    """Updates are multiplied by alpha / rank."""
    projections: tuple[Literal["qkv", "attention_out", "mlp_up", "mlp_out"], ...] = (
        "qkv",
        "attention_out",
    )
    """Which have one: queries, keys and values in one; what attention gives; and the two of the feed-forward branch."""
    layers: tuple[int, ...] | None = None
    """Layers (from 0) in which they have one; left out: all."""

    def __post_init__(self) -> None:
        """Raises UserError."""
        ranges.check(self, LORA, "model.lora.")
        _require(bool(self.projections), "lora.projections", "names no projection")


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder with a short-term and a long-term memory. Validated when made; never changed after."""

    family: Literal["gpt2", "llama"] = "llama"
    """Sets norm, activation, positions, bias and tie_embeddings where these are left out."""
    vocab_size: int | None = None
    """Number of tokens; left out: taken from the dataset's tokenizer."""
    hidden_size: int = 768
    """Features of the residual stream [e]."""
    layers: int = 12
    """Decoder layers."""
    heads: int = 12
    """Query heads [H]."""
    kv_heads: LeftOut[int] = LEFT_OUT
    """Heads that share keys and values in groups; left out: as many as heads."""
    head_size: LeftOut[int] = LEFT_OUT
    """Channels of a head [d]; left out: hidden_size / heads."""
    ffn_size: LeftOut[int] = LEFT_OUT
    """Width of the feed-forward layers; left out: 4 x hidden (gelu) or 8/3 x hidden rounded up to a multiple of 64
    (swiglu)."""
    segment_length: int = 512
    """Tokens in a segment [L]: the unit in which the long-term memory is written."""
    stm_length: int = 0
    """Tokens before the segment whose keys and values are attended to; a multiple of segment_length."""
    stm_layers: tuple[int, ...] | None = None
    """Layers (from 0) that have a short-term memory; left out: all."""
    sinks: int = 0
    """Tokens at the beginning of a document that stay in sight of layers with a short-term memory, when it has left
    them behind: attention sinks (arXiv 2309.17453). At most segment_length."""
    window: int | None = None
    """Tokens that local attention sees at most, the token's own included; null: the short-term memory and the segment
    so far."""
    window_layers: tuple[int, ...] | None = None
    """Layers (from 0) in which `window` holds; left out: all."""
    norm: LeftOut[Literal["layernorm", "rmsnorm"]] = LEFT_OUT
    """The norm before attention, before the feed-forward layer and at the end; left out: the family's."""
    activation: LeftOut[Literal["gelu", "swiglu"]] = LEFT_OUT
    """Of the feed-forward layers; left out: the family's."""
    positions: LeftOut[Literal["learned", "rotary", "relative", "none"]] = LEFT_OUT
    """How attention knows positions; left out: the family's. `relative`: Transformer-XL's (Dai et al., arXiv
    1901.02860)."""
    bias: LeftOut[bool] = LEFT_OUT
    """Biases of the linear layers, where none of the next three keys says otherwise; left out: the family's."""
    qkv_bias: LeftOut[bool] = LEFT_OUT
    """Biases of queries, keys and values; left out: `bias`."""
    attention_out_bias: LeftOut[bool] = LEFT_OUT
    """Bias of attention's output; left out: `bias`."""
    mlp_bias: LeftOut[bool] = LEFT_OUT
    """Biases of the feed-forward layers; left out: `bias`."""
    qk_norm: bool = False
    """Normalise each head's queries and keys (RMS) before they are rotated, as Qwen3 does."""
    tie_embeddings: LeftOut[bool] = LEFT_OUT
    """Use the embedding as the output matrix; left out: the family's."""
    norm_eps: float = 1e-5
    """Added to the variance in a norm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched; null: not at all."""
    dropout: float = 0.0
    """Share of the embeddings, attention weights and layer outputs that training drops."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    vocab_multiple: int = 128
    """The embedding is padded to a multiple of this many rows; padding never changes the loss."""
    memory: Any = field(default_factory=ContinuationConfig)
    """The memory beyond the short-term one, of the kind that it names; null: none; left out: what
    followed, in the last layer (docs/memory.md says why)."""
    memories: dict[str, Any] | None = None
    """Further memories beside it, by name."""
    lora: LoraConfig | None = None
    """Low-rank updates that learn beside the memories (`train: memory+lora`); null: none."""

    def __post_init__(self) -> None:
        """Fill in what the family decides and refuse what cannot work. Raises UserError."""
        for name, value in FAMILIES[self.family].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("qkv_bias", "attention_out_bias", "mlp_bias"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.bias)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.head_size is None:
            first = {name: RANGES[name] for name in ("hidden_size", "heads")}  # before they divide
            ranges.check(self, first, "model.")
            _require(
                self.hidden_size % self.heads == 0,
                "heads",
                f"hidden_size {self.hidden_size} is not divisible by {self.heads} heads",
            )
            object.__setattr__(self, "head_size", self.hidden_size // self.heads)
        if self.ffn_size is None:
            wide = (
                4 * self.hidden_size
                if self.activation == "gelu"
                else round_up(8 * self.hidden_size // 3, 64)
            )
            object.__setattr__(self, "ffn_size", wide)
        self._validate()

    def _validate(self) -> None:
        ranges.check(self, RANGES, "model.")
        _require(
            self.heads % self.kv_heads == 0,
            "kv_heads",
            f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly",
        )
        _require(
            self.positions != "rotary" or self.head_size % 2 == 0,
            "positions",
            f"rotary positions need an even head size, not {self.head_size}",
        )
        _require(
            self.stm_length % self.segment_length == 0,
            "stm_length",
            f"{self.stm_length} is not a multiple of segment_length {self.segment_length} (0 means none)",
        )
        self._validate_layers("stm_layers", self.stm_layers)
        _require(
            self.sinks <= self.segment_length,
            "sinks",
            f"{self.sinks} must not exceed segment_length {self.segment_length}",
        )
        _require(
            not self.sinks or self.positions != "relative",
            "sinks",
            "need positions other than relative",
        )
        self._validate_layers("window_layers", self.window_layers)
        if self.lora is not None:
            self._validate_layers("lora.layers", self.lora.layers)
        for name in self.memories or ():
            _require(
                name != "memory" and name.isidentifier(),
                f"memories.{name}",
                "a further memory's name is made of letters, digits and underscores, and is not 'memory'",
            )
        for name, section in self.sections().items():
            key = "memory" if name == "memory" else f"memories.{name}"
            self._validate_layers(f"{key}.layers", section.layers)
            section.check(self)

    def _validate_layers(self, key: str, chosen: tuple[int, ...] | None) -> None:
        wrong = [i for i in chosen or () if not 0 <= i < self.layers]
        _require(
            not wrong, key, f"{wrong} are not layers of a model with layers 0 to {self.layers - 1}"
        )

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of vocab_multiple."""
        if self.vocab_size is None:
            raise UserError(
                "model.vocab_size is not known yet: give it, or a dataset to take it from"
            )
        return round_up(self.vocab_size, self.vocab_multiple)

    def sections(self) -> dict[str, Any]:
        """Every memory beyond the short-term one, by name: its section of the config."""
        first = {} if self.memory is None else {"memory": self.memory}
        return first | (self.memories or {})

    def memories_of(self, layer: int) -> dict[str, Any]:
        """The memories of one layer, by name, each with what is different in this layer."""
        return {
            name: section.of(layer)
            for name, section in self.sections().items()
            if layer in held_in(section, self.layers)
        }

    @property
    def remembers(self) -> bool:
        """Whether any layer has a memory beyond the short-term one."""
        return bool(self.sections())

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

    def lora_of(self, layer: int, projection: str) -> LoraConfig | None:
        """The update of one projection of a layer; None where it has none."""
        lora = self.lora
        if lora is None or projection not in lora.projections:
            return None
        return lora if lora.layers is None or layer in lora.layers else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, for YAML and JSON."""
        return _plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises UserError."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if isinstance(values.get("rope_scaling"), dict):
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        if isinstance(values.get("lora"), dict):
            given = values["lora"].items()
            values["lora"] = LoraConfig(
                **{k: tuple(v) if isinstance(v, list) else v for k, v in given}
            )
        if values.get("memory") is not None:
            values["memory"] = section_of(values["memory"])
        if values.get("memories") is not None:
            values["memories"] = {
                name: section_of(section) for name, section in values["memories"].items()
            }
        return cls(**values)


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `number`."""
    return -(-number // multiple) * multiple


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise UserError(f"model.{key}: {problem}")
