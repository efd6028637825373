"""The memories' pictures as plain values: what `pictures.jsonl` holds and TensorBoard draws."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from infty.layers.memories.base import Picture

DIGITS = 4
"""Significant ones of a value."""


def plain(picture: Picture) -> dict[str, Any]:
    """A picture as JSON can hold it; None: there is nothing."""
    return {
        "values": _values(picture.values),
        "across": picture.across,
        "ends": list(picture.ends),
        "down": picture.down,
        "sides": list(picture.sides),
        "told": picture.told,
    }


def tag(name: str) -> str:
    """`layer.memory.figure` as TensorBoard's `memory_figure/layer_00`."""
    layer, memory, figure = name.split(".")
    return f"{memory}_{figure}/layer_{int(layer):02d}"


def _values(values: Tensor) -> list[Any]:
    rows = values.detach().double().cpu().tolist()
    return [[_short(x) for x in row] if isinstance(row, list) else _short(row) for row in rows]


def _short(x: float) -> float | None:
    return float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None
