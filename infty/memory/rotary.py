"""Rotary position embedding (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def angles(place: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [..., size], of positions [...]; the halves of a head are paired."""
    frequency = theta ** (
        -torch.arange(0, size, 2, device=place.device, dtype=torch.float32) / size
    )
    angle = place.float()[..., None] * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., T, size] by angles [..., T, size]; computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (x.float() * cos + turned * sin).to(x.dtype)
