"""Rotary position embedding (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from infty.memory.rope_scaling import RopeScaling


def angles(
    place: Tensor, size: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [..., size], of positions [...]; the halves of a head are paired.

    With yarn they are multiplied by its factor: so are the queries and keys that they rotate.
    """
    angle = place.float()[..., None] * frequencies(size, theta, scaling).to(place.device)
    angle = torch.cat([angle, angle], -1)
    if scaling is None or scaling.scale == 1:
        return angle.cos(), angle.sin()
    return angle.cos() * scaling.scale, angle.sin() * scaling.scale


def frequencies(size: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """float32 [size / 2]: radians a position, falling."""
    plain = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _llama3(plain, scaling) if scaling.kind == "llama3" else _yarn(size, theta, scaling)
    return plain * (kept + (1 - kept) / scaling.factor)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """float32 [size / 2]: 1 for frequencies that stay, 0 for those that are divided."""
    turns = scaling.original_length * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def _yarn(size: int, theta: float, scaling: RopeScaling) -> Tensor:
    """As `_llama3`, but even in the channel's number."""

    def channel(turns: float) -> float:
        """The channel that turns so often over the original length."""
        wavelength = scaling.original_length / (turns * 2 * math.pi)
        return size * math.log(wavelength) / (2 * math.log(theta))

    first = channel(scaling.beta_fast)
    last = channel(scaling.beta_slow)
    if scaling.truncate:
        first = math.floor(first)
        last = math.ceil(last)
    first = max(first, 0)
    last = min(last, size - 1)
    width = last - first or 0.001
    return 1 - ((torch.arange(size // 2, dtype=torch.float32) - first) / width).clamp(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., T, size] by angles [..., T, size]; computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (x.float() * cos + turned * sin).to(x.dtype)
