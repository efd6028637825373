"""Learning rate over the run, as a factor of its peak."""

from __future__ import annotations

import math

from infty_pretrain.config import ScheduleConfig


def factor(step: int, total: int, schedule: ScheduleConfig) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`, as a share of its peak.

    Linear warm-up over `warmup_steps`, then cosine or linear decay to `min_ratio` at the last step, or constant.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    decay = 1 - progress if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.min_ratio + (1 - schedule.min_ratio) * decay
