"""Windows that grow while a model trains: short ones first.

A memory is learned where a window reads what it has written. In a short window the way back to the write is short, and
steps are cheap; longer ones then teach what is to be kept for longer (as recurrent memory transformers are trained,
Bulatov et al., arXiv 2304.11062, section 4).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from infty_pretrain.ranges import STEPS

if TYPE_CHECKING:
    from infty_pretrain.config import BatchConfig

Stage = tuple[int, int | None]


def stages(batch: BatchConfig) -> list[Stage]:
    """(segments of a window, steps for which windows have so many; None: to the end of the run), in order."""
    return [*(batch.window_stages or {}).items(), (batch.window_segments, None)]


def window_segments(batch: BatchConfig, step: int) -> int:
    """Segments of a window [S] in optimizer step `step` (from 0)."""
    for segments, steps in stages(batch):
        if steps is None or step < steps:
            return segments
        step -= steps
    raise AssertionError("the last stage has no end")


def segments_read(batch: BatchConfig, steps: int) -> int:
    """Segments of one lane that the first `steps` steps read."""
    read = 0
    for segments, length in stages(batch):
        taken = steps if length is None else min(steps, length)
        read += taken * segments
        steps -= taken
    return read


def steps_to_read(batch: BatchConfig, segments: int) -> int:
    """Steps after which a lane has read that many segments or more."""
    steps = 0
    for size, length in stages(batch):
        needed = -(-max(0, segments) // size)
        if length is None or needed <= length:
            return steps + needed
        steps += length
        segments -= length * size
    raise AssertionError("the last stage has no end")


def problem(batch: BatchConfig) -> str | None:
    """What is wrong with the stages, if anything."""
    sizes = [segments for segments, _ in stages(batch)]
    for segments, steps in (batch.window_stages or {}).items():
        if segments < 1 or steps not in STEPS:
            return (
                f"{{{segments}: {steps}}}: segments must be > 0 and steps {STEPS}; {{2: 500}} is 500 steps with "
                "windows of 2 segments"
            )
    if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
        return (
            f"windows must grow from stage to stage, up to batch.window_segments: they have "
            f"{', '.join(map(str, sizes))} segments"
        )
    return None
