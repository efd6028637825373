"""The basis functions of the continuous signal: normalised Gaussians on [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

CPU = torch.device("cpu")
"""Where constants are made, also while a model is being made on another default device, such as meta."""


@dataclass(frozen=True)
class GaussianBasis:
    """N Gaussians psi_j(t) = N(t; m_j, s_j^2): even centres on [0, 1], ends included, each with every width.

    A plain value: its tensors are made once for every device and shared by all that need them, so that nothing a model
    goes through (casts, moves, ZeRO-3, construction on the meta device) can change them.
    """

    size: int
    """N"""
    each: tuple[float, ...]
    """The widths of the functions at a centre."""

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Centres and widths of all functions, float32 [N] each, ordered centre by centre as in the paper's code."""
        return _rounded(self.size, self.each, device)

    def evaluate(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """psi(t) for t [...]: [..., N].

        Distances are taken in float64: a float32 t is off by 3e-8, which is 1e-5 of a width of 0.005.
        """
        centers, widths = placement(self.size, self.each, t.device)
        z = ((t.double().unsqueeze(-1) - centers) / widths).to(dtype)
        return torch.exp(-0.5 * z * z) / (widths * math.sqrt(2 * math.pi)).to(dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _rounded(size: int, widths: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    centers, spread = placement(size, widths)
    return centers.float().to(device), spread.float().to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached while a model generates may be needed in training
def placement(
    size: int, widths: tuple[float, ...], device: torch.device = CPU
) -> tuple[Tensor, Tensor]:
    """Centres and widths of the basis functions, float64 [N] each."""
    if device != CPU:
        centers, spread = placement(size, widths)
        return centers.to(device), spread.to(device)
    places = size // len(widths)
    ends = (0.0, 1.0) if places > 1 else (0.5, 0.5)
    centers = torch.linspace(*ends, places, dtype=torch.float64, device="cpu")
    return (
        centers.repeat_interleave(len(widths)),
        torch.tensor(widths, dtype=torch.float64, device="cpu").repeat(places),
    )


def gaussian(t: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
    """N(t; centers, widths^2) for t [...]: [..., N], in t's dtype."""
    z = (t.unsqueeze(-1) - centers) / widths
    return torch.exp(-0.5 * z * z) / (widths * math.sqrt(2 * math.pi))
