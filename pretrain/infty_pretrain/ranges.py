"""The numbers that each key of a run's config accepts; those of `model:` are declared beside the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infty import ranges
from infty.ranges import Range, whole

if TYPE_CHECKING:
    from infty_pretrain.config import Config

MOST = 2**53
"""Up to here a float holds every whole number."""
STEPS = whole(1, 10**12)
LARGEST_SEED = 2**31 - 1
YEAR = 366 * 24 * 60
"""In minutes."""

RANGES: dict[str, dict[str, Range]] = {
    "run": {
        "seed": whole(0, LARGEST_SEED),
        "steps": STEPS,
        "tokens": whole(1, MOST),
        "minutes": Range(0, YEAR, above=True),
        "stall_minutes": Range(0, YEAR, above=True),
    },
    "batch": {
        "lanes": whole(1, 2**20),
        "window_segments": whole(1, 2**16),
        "part_segments": whole(1, 2**16),
        "micro_batch": whole(1, 2**20),
    },
    "optimizer": {
        "lr": Range(0, 100, above=True),
        "memory_lr": Range(0, 100),
        "gate_lr": Range(0, 100),
        "betas": Range(0, 1, below=True),
        "eps": Range(0, 1, above=True),
        "weight_decay": Range(0, 100),
        "clip": Range(0, 1e9),
    },
    "schedule": {"warmup_steps": whole(0, 10**12), "min_ratio": Range(0, 1)},
    "parallel": {"tensor": whole(1, 2**16)},
    "checkpoint": {
        "every": STEPS,
        "keep_last": whole(1, 10**6),
        "keep_every": STEPS,
        "minutes": Range(0, YEAR, above=True),
    },
    "logging": {"every": STEPS, "pictures": STEPS, "peak_tflops": Range(0, 1e9, above=True)},
    "evaluation": {"every": STEPS, "windows": whole(1, 2**31)},
    "faults": {
        "spike_sigma": Range(0, 1e6, above=True),
        "spike_window": whole(2, 10**6),
        "patience": whole(1, 10**9),
    },
}


def check_ranges(config: Config) -> None:
    """Raise UserError for a number outside the range of its key."""
    for section, accepted in RANGES.items():
        ranges.check(getattr(config, section), accepted, f"{section}.")
