"""The paper's memory in float64, step by step, as plain as the formulas. Shares no code with the product."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

F64 = torch.float64


def basis(n, widths):
    """Centres and widths: every centre carries every width."""
    places = n // len(widths)
    m = [i / (places - 1) for i in range(places) for _ in widths]
    s = [w for _ in range(places) for w in widths]
    return torch.tensor(m, dtype=F64), torch.tensor(s, dtype=F64)


def psi(t, m, s):
    """[P, N] Gaussians at the points t [P]."""
    return torch.exp(-((t[:, None] - m) ** 2) / (2 * s**2)) / torch.sqrt(2 * math.pi * s**2)


def solve(points, keep, m, s, ridge):
    """G = F^T (F F^T + lambda I)^-1 by plain inversion; `keep`: which rows belong to samples."""
    f = psi(points, m, s).T
    g = f.T @ torch.linalg.inv(f @ f.T + ridge * torch.eye(len(m), dtype=F64))
    return g[keep]


def first_operator(length, m, s, ridge):
    """Twice as many points over [-1/2, 3/2], evenly; the middle ones carry tokens."""
    if length % 2:
        shift, count, cut = 1 / length, 2 * length - 1, (length - 1) // 2
    else:
        shift, count, cut = 1 / (2 * length), 2 * length, length // 2
    first = -0.5 + shift if count > 1 else 0.5
    points = torch.linspace(first, 1.5 - shift, count, dtype=F64)
    return solve(points, slice(cut, count - cut), m, s, ridge)


def later_operator(samples, length, tau, m, s, ridge):
    old = [tau * i / samples for i in range(1, samples + 1)]
    new = [tau + (1 - tau) * i / length for i in range(1, length + 1)]
    shift, count = 1 / (2 * length + samples), 2 * (length + samples)
    step = (2 - 2 * shift) / (count - 1)
    around = [-0.5 + shift + k * step for k in range(count)]
    left, right = [p for p in around if p < 0], [p for p in around if p > 1]
    points = torch.tensor(left + old + new + right, dtype=F64)
    return solve(points, slice(len(left), len(left) + samples + length), m, s, ridge)


def cdf(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def bin_masses(mu, variance, bins):
    """mu, variance [...]: masses of all densities together in each bin, summing to 1."""
    edges = torch.linspace(0, 1, bins + 1, dtype=F64)
    total = torch.stack(
        [
            (cdf((hi - mu) / variance.sqrt()) - cdf((lo - mu) / variance.sqrt())).sum()
            for lo, hi in pairwise(edges)
        ]
    )
    return total / total.sum()


def splitmix(x):
    mask = 2**64 - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def draws(seed, count):
    """`count` numbers in [0, 1) from a lane's seed."""
    start = splitmix(seed & (2**64 - 1))
    counters = [(start + i * 0x9E3779B97F4A7C15) & (2**64 - 1) for i in range(1, count + 1)]
    return [(splitmix(c) >> 11) / 2**53 for c in counters]


def sticky_times(p, mode, samples, seed=0):
    """Where the old samples are taken from: quantiles i/M of p, or sorted left edges of drawn bins."""
    upper = torch.cumsum(p, 0).tolist()
    where = []
    for u in (
        [i / samples for i in range(1, samples + 1)] if mode == "quantile" else draws(seed, samples)
    ):
        k = next((k for k, top in enumerate(upper) if u < top), len(p) - 1)
        inside = (1 - (upper[k] - u) / float(p[k])) if mode == "quantile" else 0
        where.append((k + min(1, inside)) / len(p))
    return torch.tensor(sorted(where), dtype=F64)


def carried(histogram, room, keep, end, append):
    """One row of past attention after a write: every old bin takes its attention to where the bin goes."""
    bins = len(histogram)
    out, place, pieces = torch.zeros(bins, dtype=F64), 0.0, []
    for k in range(bins):
        if append:  # the part in [0, keep] stays
            width = max(0.0, min((k + 1) / bins, keep) - k / bins)
            pieces.append((k / bins, width, float(histogram[k]) * width * bins))
        else:
            width = keep * float(room[k])
            pieces.append((place, width, float(histogram[k])))
            place += width
    total = sum(mass for _, _, mass in pieces)
    pieces = [(left, width, keep * mass / total) for left, width, mass in pieces if width > 0]
    for left, width, mass in [*pieces, (keep, end - keep, end - keep)]:  # new tokens: an even share
        for j in range(bins):
            out[j] += (
                mass * max(0.0, min(left + width, (j + 1) / bins) - max(left, j / bins)) / width
            )
    return out / out.sum()


class Paper:
    """One lane, one signal x [L, e] a segment; read by heads through K and V projections of the signal."""

    def __init__(self, n, widths, ridge, tau, samples, floor, bins=128, mode="off", explore=0.0):
        self.m, self.s = basis(n, widths)
        self.ridge, self.tau, self.samples, self.floor = ridge, tau, samples, floor
        self.bins, self.mode, self.explore = bins, mode, explore
        self.B, self.past, self.count = None, None, 0

    def write(self, x, seed=0):
        if self.B is None:
            self.B = first_operator(len(x), self.m, self.s, self.ridge).T @ x
        else:
            times = torch.arange(1, self.samples + 1, dtype=F64) / self.samples
            if self.mode != "off":
                p = (
                    self.past
                    if self.past is not None
                    else torch.ones(self.bins, dtype=F64) / self.bins
                )
                p = (1 - self.explore) * p + self.explore / self.bins
                times = sticky_times(p, self.mode, self.samples, seed)
            old = psi(times, self.m, self.s) @ self.B
            g = later_operator(self.samples, len(x), self.tau, self.m, self.s, self.ridge)
            self.B = g.T @ torch.cat([old, x])
        self.count += 1

    def read(self, q, w_key, w_value, w_mu, w_sigma):
        """q [h, T, d]; projections [h*d, e]; maps [N]. Returns context [T, h*d] and mu, variance [h, T]."""
        h, _, d = q.shape
        keys = (self.B @ w_key.T).view(-1, h, d).transpose(0, 1)
        values = (self.B @ w_value.T).view(-1, h, d).transpose(0, 1)
        scores = q @ keys.transpose(1, 2) / math.sqrt(d)  # [h, T, N]
        mu = torch.sigmoid(scores @ w_mu)
        variance = torch.clamp(torch.nn.functional.softplus(scores @ w_sigma), min=self.floor)
        self.past = bin_masses(mu.detach(), variance.detach(), self.bins)
        # Through the natural parameters, as the paper's code does.
        theta1, theta2 = mu / variance, -1 / (2 * variance)
        variance, mu = -0.5 / theta2, theta1 * (-0.5 / theta2)
        total = variance[..., None] + self.s**2
        r = torch.exp(-((mu[..., None] - self.m) ** 2) / (2 * total)) / torch.sqrt(
            2 * math.pi * total
        )
        return (r @ values).transpose(0, 1).reshape(q.shape[1], h * d), mu, variance
