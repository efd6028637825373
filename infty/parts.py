"""Named parts of a training step: what `infty bench train --profile` and any profiler of torch's can tell apart."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.autograd import profiler

PREFIX = "infty: "
"""Of a part's name in a profile."""
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
EMBEDDING = "embedding"
LOSS = "loss"
READ = "memory read"
WRITE = "memory write"
HISTOGRAM = "memory histogram"
CHECKS = "checks"
OPTIMIZER = "optimizer"
DATA = "data"

_NOTHING = nullcontext()


def part(name: str) -> AbstractContextManager:
    """Marks what is computed inside for a profiler; inner parts are told from outer ones. Costs nothing without one."""
    if not profiler._is_profiler_enabled:
        return _NOTHING
    return profiler.record_function(PREFIX + name)
