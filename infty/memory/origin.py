"""Where the segments of a document lie in [0, 1]: what the places of a signal stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from infty.memory.contraction import Policy


@torch.no_grad()
def regions(policy: Policy, written: int, rate: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Where each of the `written` segments begins and ends, the oldest first: float64 [written] each.

    Exact where old samples are taken evenly. A sticky memory moves its regions by what is read; this is where they
    lie if nothing is read more often than anything else. `rate`: of a learned contraction.
    """
    plan = policy.plan(torch.arange(written), None if rate is None else rate.cpu())
    if not written:
        return plan.keep, plan.end
    keep = plan.keep.clone()
    keep[0] = 0.0  # the first segment fills the signal
    # What later writes leave of a region: the product of their shares.
    shares = torch.where(plan.append, 1.0, keep)
    later = shares.flip(0).cumprod(0).flip(0).roll(-1)
    later[-1] = 1.0
    return keep * later, plan.end * later


@torch.no_grad()
def origins(start: Tensor, end: Tensor, points: Tensor) -> Tensor:
    """Which segment each of the points [n] of [0, 1] stands for, counted from the first, with its fraction: float64
    [n]; NaN where nothing lies. `start`, `end`: of `regions`."""
    if not len(end):
        return torch.full_like(points, torch.nan, dtype=torch.float64)
    index = torch.searchsorted(end, points.double().contiguous()).clamp(max=len(end) - 1)
    inside = (points - start[index]) / (end[index] - start[index]).clamp(min=1e-300)
    return torch.where(points <= end[-1], index + inside.clamp(0, 1), torch.nan)
