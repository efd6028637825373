"""Floating-point operations of a model, for the utilisation that the monitor reports."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import torch

from infty import hardware
from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.densities import gibbs_points
from infty.memory.memory import grid_tiles, samples_of
from infty.memory.resample import band_of, touched


@dataclass(frozen=True)
class Peak:
    """What one device could do at most."""

    operations: float
    """A second."""
    source: str
    """In words: who says so."""
    measured: bool = False
    """Here, and therefore no more than what it happened to do then."""


def forward_per_token(config: ModelConfig) -> dict[str, float]:
    """Operations of one token's forward pass, by part; a multiply-add counts as two.

    The memory's write and read of a segment are divided by the segment's tokens.
    """
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    H, K, layers = config.heads, config.kv_heads, config.layers
    parts = {"projections": layers * 2.0 * e * d * (2 * H + 2 * K),
             "attention": sum(4.0 * H * d * (config.stm_of(i) + L / 2) for i in range(layers)),
             "mlp": layers * 2.0 * e * config.ffn_size * (3 if config.activation == "swiglu" else 2),
             "head": 2.0 * e * config.vocab_size, "memory": 0.0}
    for i in range(layers):
        if config.has_memory(i):
            parts["memory"] += sum(memory_layer_per_token(config, config.memory_of(i)).values())
        if config.compressed_of(i):
            parts["memory"] += compressed_layer_per_token(config, i)
        if config.positions == "relative":  # scores by distance, and the projection of the distances once a window
            parts["attention"] += 2.0 * H * d * (config.stm_of(i) + config.compressed_of(i) + L)
    return parts


def compressed_layer_per_token(config: ModelConfig, layer: int) -> float:
    """One layer's compressed memory: the convolution and the projections, both for the loss, too; attention to the
    memories; the two reads of the reconstruction loss."""
    e, d, H, K, L = config.hidden_size, config.head_size, config.heads, config.kv_heads, config.segment_length
    n, ratio = config.compressed_of(layer), config.compressed.ratio
    convolutions = 2 * 2.0 * e * e
    projections = 2.0 * e * d * (H + 2 * K) * (2 / ratio + n / L)
    return convolutions + projections + 4.0 * H * d * (n + L + L / ratio)


def memory_layer_per_token(config: ModelConfig, memory: MemoryConfig) -> dict[str, float]:
    """One layer's long-term memory: `projections` of what is read and, with `signal: hidden`, of what is stored;
    `reads`, products in the run's precision; the `densities` of these reads, and `writes`, both in float32."""
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    N, H = memory.basis, config.heads
    parts = {"projections": 2.0 * e * H * d, "reads": 2.0 * N * d * H, "densities": (10.0 * N + 4.0 * d) * H}
    if memory.density == "gibbs":  # keys and values on a grid, attention to it; scores once more for the histogram
        cells = gibbs_points(N, memory.bins)
        parts["reads"] = (4.0 + 2.0 * (memory.sticky != "off")) * cells * d * (H + N * config.kv_heads / L)
        parts["densities"] = 4.0 * d * H
    parts["writes"] = 2.0 * config.memory_heads() * config.memory_channels() * write_per_channel(memory, L) / L
    if memory.signal == "hidden":
        parts["projections"] += 2.0 * N * e * config.kv_heads * d / L
    if memory.gate:
        parts["projections"] += 2.0 * 3 * e * e
    return parts


def write_per_channel(memory: MemoryConfig, tokens: int) -> float:
    """Multiplications that a write of `tokens` tokens makes for each channel: samples of the old signal, the new tokens
    put in their cells, the regression."""
    N, samples = memory.basis, samples_of(memory)
    band = None if memory.contraction == "learned" else band_of(N, memory.widths)
    sampling = samples * (band or N)
    if not isinstance(memory.contraction, str):
        return N * (N + tokens) if memory.sticky == "off" else sampling + N * (samples + tokens)
    pooling = tokens * (samples if memory.contraction == "learned" else touched(samples, tokens))
    return sampling + pooling + grid_tiles(memory)[0].operations


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
