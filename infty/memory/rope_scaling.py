"""How a model's rotary frequencies were stretched, so that it reads longer texts than it was first trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from infty.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """Under the names that transformers gives the same numbers, `kind` excepted (there: `rope_type`)."""

    kind: Literal["linear", "llama3", "yarn"]
    """linear: every frequency divided by `factor`; llama3: low ones only; yarn (arXiv 2309.00071): low ones, and
    queries and keys multiplied by `attention_factor`."""
    factor: float
    """How many times longer the texts became."""
    original_max_position_embeddings: int | None = None
    """Tokens of the texts before the stretch; llama3 and yarn need it."""
    low_freq_factor: float = 1.0
    """llama3: frequencies that turn less often than this over the original length are divided."""
    high_freq_factor: float = 4.0
    """llama3: frequencies that turn more often than this stay."""
    beta_fast: float = 32.0
    """yarn: as high_freq_factor."""
    beta_slow: float = 1.0
    """yarn: as low_freq_factor."""
    truncate: bool = True
    """yarn: round the borders between stretched and kept frequencies to whole channels."""
    attention_factor: float | None = None
    """yarn; left out: 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        """Fill in attention_factor. Raises UserError."""
        if self.factor < 1:
            raise UserError(f"model.rope_scaling.factor: {self.factor} must be >= 1")
        if self.kind != "linear" and not self.original_max_position_embeddings:
            raise UserError(
                f"model.rope_scaling.original_max_position_embeddings: kind {self.kind} needs it"
            )
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise UserError("model.rope_scaling.high_freq_factor: must be > low_freq_factor")
        if self.kind == "yarn" and self.attention_factor is None:
            object.__setattr__(self, "attention_factor", 0.1 * math.log(self.factor) + 1.0)

    @property
    def original_length(self) -> int:
        """`original_max_position_embeddings`, of kinds that need it."""
        return self.original_max_position_embeddings or 0

    @property
    def scale(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return 1.0 if self.attention_factor is None else self.attention_factor
