"""Floating-point operations of a model, for the utilisation that the monitor reports."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from infty import hardware
from infty.config import ModelConfig
from infty.layers.memories.base import Costs, Layout
from infty.memory_kinds import memory_of


@dataclass(frozen=True)
class Peak:
    """What one device could do at most."""

    operations: float
    """A second."""
    source: str
    """In words: who says so."""
    measured: bool = False
    """Here, and therefore no more than what it happened to do then."""


ONE = Layout(tensor=1, lanes=1, segments=1, width=4, device="cpu")
"""One process: operations a token depend on nothing of a layout."""


def forward_per_token(config: ModelConfig) -> dict[str, float]:
    """Operations of one token's forward pass, by part; a multiply-add counts as two."""
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    H, K, layers = config.heads, config.kv_heads, config.layers
    parts = {
        "projections": layers * 2.0 * e * d * (2 * H + 2 * K),
        "attention": 0.0,
        "mlp": layers * 2.0 * e * config.ffn_size * (3 if config.activation == "swiglu" else 2),
        "head": 2.0 * e * config.vocab_size,
        "memory": 0.0,
    }
    for i in range(layers):
        costs = memory_costs(config, i, ONE)
        parts["attention"] += 4.0 * H * d * (config.sinks_of(i) + config.stm_of(i) + L / 2)
        if (
            config.positions == "relative"
        ):  # scores by distance, and the projection of the distances once a window
            parts["attention"] += (
                2.0 * H * d * (config.stm_of(i) + L + sum(c.extra_keys for c in costs))
            )
        parts["memory"] += sum(c.operations for c in costs)
    return parts


def memory_costs(config: ModelConfig, layer: int, layout: Layout) -> list[Costs]:
    """What each memory of a layer says of itself."""
    return [
        memory_of(section).costs(config, layer, section, layout)
        for section in config.memories_of(layer).values()
    ]


def training_per_token(config: ModelConfig) -> float:
    """Forward and backward: three times the forward."""
    return 3 * sum(forward_per_token(config).values())


def peak(device: str, precision: str) -> Peak | None:
    """The peak of one device in `bf16` or `fp32`; None for a GPU that is not in the table. A CPU is measured."""
    if not device.startswith("cuda"):
        return Peak(_measured_on_cpu(), "measured when this process started", measured=True)
    gpu = hardware.identify(torch.cuda.get_device_name(device))
    return None if gpu is None else Peak(gpu.peak(precision), f"the data sheet of {gpu.name}")


@functools.cache
def _measured_on_cpu(size: int = 768, repeats: int = 4) -> float:
    """Operations a second of a matrix product with the threads this process has."""
    a = torch.ones(size, size)  # draws nothing: training random streams are not touched
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
