"""What memories other than the continuous one are made of, as written under `model.memory:` in a run's config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from infty import ranges
from infty.errors import UserError
from infty.ranges import Range, whole

# Of each kind of memory, the numbers that its section holds.
COMPRESSIVE: dict[str, Range] = {
    "length": whole(1, 2**24),
    "ratio": whole(1, 2**20),
    "reconstruction_weight": Range(0, 1e6),
}
CONTINUATION: dict[str, Range] = {"key_size": whole(1, 2**16)}


def held_in(section: Any, layers: int) -> Sequence[int]:
    """The layers (from 0) of a model with `layers` of them that have a section's memory."""
    if section.layers is not None:
        return section.layers
    return range(layers) if section.everywhere else (layers - 1,)


@dataclass(frozen=True)
class CompressiveConfig:
    """The compressed memory of a compressive transformer (Rae et al., arXiv 1911.05507), in layers with an STM."""

    kind: Literal["compressive"] = "compressive"
    """Which memory."""
    length: int = 512
    """Compressed memories kept and attended to; a multiple of what a segment is compressed to."""
    ratio: int = 4
    """Tokens that are compressed to one memory; divides segment_length."""
    reconstruction_weight: float = 1.0
    """Weight of the attention-reconstruction loss, which trains the compression alone."""
    backprop: bool = True
    """Let the main loss train the compression, too, as far as a window reaches. The paper does not."""
    layers: tuple[int, ...] | None = None
    """Layers (from 0) that have one; left out: all."""

    def __post_init__(self) -> None:
        """Raises UserError."""
        ranges.check(self, COMPRESSIVE, "model.memory.")
        _require(
            self.backprop or self.reconstruction_weight > 0,
            "reconstruction_weight",
            "must be > 0 with backprop: false, or nothing trains the compression",
        )

    @property
    def learns_to_write(self) -> bool:
        """No: the reconstruction loss trains the compression in every window."""
        return False

    @property
    def silent(self) -> bool:
        """No: its compressed memories are attended to from the start."""
        return False

    @property
    def everywhere(self) -> bool:
        """Yes: where `layers` is left out, all layers have one."""
        return True

    def of(self, layer: int) -> CompressiveConfig:
        """The section for one layer."""
        return self

    def check(self, model: Any) -> None:
        """Refuse a model (`infty.config.ModelConfig`) that cannot have this memory. Raises UserError."""
        tokens = model.segment_length
        _require(
            model.positions == "relative",
            "kind",
            f"compressive needs positions: relative, not {model.positions}",
        )
        chosen = held_in(self, model.layers)
        _require(
            all(model.stm_of(i) for i in chosen),
            "kind",
            "is made of what leaves the short-term memory: needs stm_length > 0 in its layers",
        )
        _require(
            tokens % self.ratio == 0,
            "ratio",
            f"{self.ratio} does not divide segment_length {tokens}",
        )
        _require(
            self.length % (tokens // self.ratio) == 0,
            "length",
            f"{self.length} is not a multiple of {tokens // self.ratio}, what a segment is compressed to",
        )


@dataclass(frozen=True)
class AssociativeConfig:
    """An associative memory: a matrix a head, written by the gated delta rule (Yang et al., arXiv 2412.06464)."""

    kind: Literal["associative"] = "associative"
    """Which memory."""
    backprop: bool = True
    """Let gradients flow through the memory from segment to segment inside a window."""
    layers: tuple[int, ...] | None = None
    """Layers (from 0) that have one; left out: all."""

    @property
    def learns_to_write(self) -> bool:
        """Yes: strength and decay."""
        return True

    @property
    def silent(self) -> bool:
        """Yes: its gate starts at zero."""
        return True

    @property
    def everywhere(self) -> bool:
        """Yes: where `layers` is left out, all layers have one."""
        return True

    def of(self, layer: int) -> AssociativeConfig:
        """The section for one layer."""
        return self

    def check(self, model: Any) -> None:
        """Every model can have one."""


@dataclass(frozen=True)
class ContinuationConfig:
    """A memory of what followed: from the hidden state before a token to the token, by the gated delta rule."""

    kind: Literal["continuation"] = "continuation"
    """Which memory."""
    key_size: int = 128
    """Channels of a head's keys: how many contexts a head keeps apart."""
    layers: tuple[int, ...] | None = None
    """Layers (from 0) that have one; left out: the last one, where a prediction helps."""

    def __post_init__(self) -> None:
        """Raises UserError."""
        ranges.check(self, CONTINUATION, "model.memory.")

    @property
    def learns_to_write(self) -> bool:
        """Yes: keys, strength and decay."""
        return True

    @property
    def silent(self) -> bool:
        """Yes: its gate starts at zero."""
        return True

    @property
    def everywhere(self) -> bool:
        """No: where `layers` is left out, the last layer has one, where a prediction helps."""
        return False

    def of(self, layer: int) -> ContinuationConfig:
        """The section for one layer."""
        return self

    def check(self, model: Any) -> None:
        """Refuse a model (`infty.config.ModelConfig`) that cannot have this memory. Raises UserError."""
        _require(
            model.hidden_size % model.heads == 0,
            "kind",
            f"continuation shares a row of the output matrix out over the heads: {model.heads} heads do not divide "
            f"hidden_size {model.hidden_size}",
        )


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise UserError(f"model.memory.{key}: {problem}")
