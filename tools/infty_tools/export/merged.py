"""A checkpoint's parameters with the low-rank updates of its projections added to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from infty.config import LoraConfig
from infty_pretrain.checkpoint import Reader
from infty_pretrain.learning import LORA


class Merged:
    """What an export needs of a `checkpoint.Reader`, of a model without `lora` that computes the same."""

    def __init__(self, reader: Reader, lora: LoraConfig) -> None:
        self._reader = reader
        self._scale = lora.alpha / lora.rank
        self._there = set(reader.names())

    @property
    def run(self) -> dict[str, Any]:
        return self._reader.run

    def names(self) -> list[str]:
        """The parameters, updates excepted."""
        return sorted(name for name in self._there if not name.endswith(LORA))

    def shape(self, name: str) -> list[int]:
        """Of one whole parameter."""
        return self._reader.shape(name)

    def parameter(self, name: str) -> Tensor:
        """One whole parameter, float32."""
        weight = self._reader.parameter(name)
        a, b = (f"{name.removesuffix('.weight')}{end}" for end in LORA)
        if not name.endswith(".weight") or a not in self._there:
            return weight
        update = self._reader.parameter(b) @ self._reader.parameter(a)
        return weight + self._scale * update
