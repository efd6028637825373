"""The basis functions of the continuous signal: normalised Gaussians on [0, 1]."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """N Gaussians psi_j(t) = N(t; m_j, s_j^2): even centres on [0, 1], ends included, each with every width.

    Buffers `centers` and `widths` are float32 [N], ordered centre by centre as in the paper's code. They
    follow the module to its device but stay float32 when a model is cast.
    """

    centers: Tensor
    widths: Tensor

    def __init__(self, size: int, widths: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.each = size, tuple(widths)
        centers, spread = placement(size, self.each)
        self.register_buffer("centers", centers.float(), persistent=False)
        self.register_buffer("widths", spread.float(), persistent=False)

    def evaluate(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """psi(t) for t [...]: [..., N].

        Distances are taken in float64: a float32 t is off by 3e-8, which is 1e-5 of a width of 0.005.
        """
        centers, widths = placement(self.size, self.each, t.device)
        z = ((t.double().unsqueeze(-1) - centers) / widths).to(dtype)
        return torch.exp(-0.5 * z * z) / (widths * math.sqrt(2 * math.pi)).to(dtype)

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.centers.dtype != torch.float32:
            device = self.centers.device
            centers, widths = placement(self.size, self.each)
            self.centers, self.widths = centers.float().to(device), widths.float().to(device)
        return self


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is cached while a model generates may be needed in training
def placement(size: int, widths: tuple[float, ...],
              device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Centres and widths of the basis functions, float64 [N] each, on a device (the CPU)."""
    if device is not None:
        return tuple(x.to(device) for x in placement(size, widths))
    places = size // len(widths)
    ends = (0.0, 1.0) if places > 1 else (0.5, 0.5)
    centers = torch.linspace(*ends, places, dtype=torch.float64, device="cpu")
    return (centers.repeat_interleave(len(widths)),
            torch.tensor(widths, dtype=torch.float64, device="cpu").repeat(places))


def gaussian(t: Tensor, centers: Tensor, widths: Tensor) -> Tensor:
    """N(t; centers, widths^2) for t [...]: [..., N], in t's dtype."""
    z = (t.unsqueeze(-1) - centers) / widths
    return torch.exp(-0.5 * z * z) / (widths * math.sqrt(2 * math.pi))
