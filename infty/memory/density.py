"""Reading: each query turns into a density over [0, 1], and the context is the expected signal under it.

The functions here are for the Gaussian family: mu = sigmoid(s . w_mu), sigma^2 = softplus(s . w_sigma) +
floor, with scores s = K q / sqrt(d) over the basis. As s . w = q . (w^T K) / sqrt(d), the keys are pooled
over the basis first (one vector `key_mu` = w_mu^T K instead of N), and the L x N scores are never formed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from infty.memory.basis import GaussianBasis
from infty.memory.kernels import blocked, on_gpu
from infty.memory.precision import full_precision


@full_precision
def parameters(
    q: Tensor,
    key_mu: Tensor,
    key_sigma: Tensor,
    bias_mu: Tensor | float | None,
    bias_sigma: Tensor | float | None,
    floor: float,
    clamp: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of every query's density: float32 [..., h, T] each.

    q [..., h, T, d]; pooled keys [..., h, d]; biases [h], a scalar or None. `floor` is added to the variance,
    or with `clamp` is its lower bound (the paper).
    """
    scale = q.shape[-1] ** -0.5
    # One product for both maps; float32 from here on, whatever the queries' precision.
    keys = torch.stack([key_mu, key_sigma], -1).float()
    raw = torch.matmul(q.float(), keys) * scale
    mu = torch.sigmoid(_biased(raw[..., 0], bias_mu))
    variance = F.softplus(_biased(raw[..., 1], bias_sigma))
    return mu, variance.clamp(min=floor) if clamp else variance + floor


@full_precision
def read(mu: Tensor, variance: Tensor, values: Tensor, basis: GaussianBasis) -> Tensor:
    """The expected signal z = E[psi] values under N(mu, variance): float32 [..., T, d].

    mu, variance [..., T]; values [..., N, d] (leading dimensions equal). The T x N weights are never stored:
    kernels/blocked.py on a CPU, kernels/fused.py on a GPU with Triton. float64 takes the plain path.
    """
    if mu.dtype == torch.float64 or mu.numel() == 0:
        return read_plain(mu, variance, values, basis)
    if on_gpu(mu):
        from infty.memory.kernels import fused

        return fused.read(mu, variance, values, *basis.on(mu.device))
    if mu.device.type == "cpu":
        return blocked.read(mu, variance, values, *basis.on(mu.device), len(basis.each))
    return read_plain(mu, variance, values, basis)


def read_plain(mu: Tensor, variance: Tensor, values: Tensor, basis: GaussianBasis) -> Tensor:
    """`read` as the formula says, through the T x N weights: the specification of every faster path."""
    return torch.matmul(expectation(mu, variance, basis), values.to(working(mu)))


def expectation(mu: Tensor, variance: Tensor, basis: GaussianBasis) -> Tensor:
    """E[psi_j] under N(mu, variance) = N(mu; m_j, variance + s_j^2): [..., T, N], float32 (or float64)."""
    dtype = working(mu)
    mu, variance = mu.to(dtype).unsqueeze(-1), variance.to(dtype).unsqueeze(-1)
    centers, widths = basis.on(mu.device)
    total = variance + widths.to(dtype) ** 2
    return torch.exp(-0.5 * (mu - centers.to(dtype)) ** 2 / total) * torch.rsqrt(
        2 * math.pi * total
    )


@torch.no_grad()
@full_precision
def histogram(mu: Tensor, variance: Tensor, bins: int, weights: Tensor | None = None) -> Tensor:
    """Where attention fell: the mean over tokens of each density's mass in `bins` even bins of [0, 1].

    mu, variance [b, h, T]; weights [b, T] or None. Returns float32 [b, h, bins], rows sum to 1 (uniform where
    no token has weight).
    """
    if on_gpu(mu):
        from infty.memory.kernels import histogram as kernel

        mass = kernel.mass(mu, variance, bins, weights)
    else:
        mass = mass_plain(mu, variance, bins, weights)
    mass = mass.clamp_(min=0)
    whole = mass.sum(-1, keepdim=True)
    return torch.where(whole > 0, mass / whole.clamp(min=1e-30), 1 / bins)


def mass_plain(mu: Tensor, variance: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """Twice the summed mass of the densities [b, h, T] in each bin: float32 [b, h, bins]."""
    b, h, tokens = mu.shape
    edges = torch.linspace(0, 1, bins + 1, device=mu.device)
    mu, scale = (
        mu.float().reshape(b * h, tokens, 1),
        torch.rsqrt(2 * variance.float()).reshape(b * h, tokens, 1),
    )
    weights = mu.new_ones(b, tokens) if weights is None else weights.float()
    weights = weights[:, None].expand(b, h, tokens).reshape(b * h, 1, tokens)
    mass = mu.new_empty(b * h, bins)
    # A few heads at a time, in a CPU's cache.
    rows = max(1, blocked.BLOCK // (tokens * (bins + 1)))
    for i in range(0, b * h, rows):
        part = slice(i, i + rows)
        below = torch.sub(edges, mu[part]).mul_(scale[part]).erf_()
        # Bins first, tokens second: a bin's mass must not be a small difference of large sums.
        mass[part] = torch.bmm(weights[part], below[..., 1:] - below[..., :-1])[:, 0]
    return mass.view(b, h, bins)


def kl(mu: Tensor, variance: Tensor, sigma0: float) -> Tensor:
    """Divergence of N(mu, variance) from N(mu, sigma0^2), elementwise: [..., T]. Source: the paper's code."""
    ratio = variance / sigma0**2
    return 0.5 * (ratio - torch.log(ratio) - 1)


def _biased(raw: Tensor, bias: Tensor | float | None) -> Tensor:
    """Add a bias that is a scalar or one a head to raw [..., h, T]."""
    if bias is None:
        return raw
    if isinstance(bias, Tensor):
        bias = bias.float().unsqueeze(-1) if bias.ndim else bias.float()
    return raw + bias


def working(mu: Tensor) -> torch.dtype:
    """float64 stays (tests, gradient checks); everything else is computed in float32."""
    return torch.float64 if mu.dtype == torch.float64 else torch.float32
