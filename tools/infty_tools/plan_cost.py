"""How fast a layout would train: what is computed, what travels, and how long each takes under stated assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from infty.config import ModelConfig
from infty.hardware import GPU
from infty_tools.plan_memory import Layout
from infty_tools.plan_parameters import parameters

MATMUL_SHARE = 0.45
"""Of the peak that matrix products of a wide model reach, attention and pointwise work included."""
FP32_SHARE = 0.5
"""Of the fp32 peak that the memory's own products reach."""
NARROW = 512
"""Matrices whose narrow side is this wide run at half of MATMUL_SHARE."""
LINK_SHARE = 0.7
"""Of a link's bandwidth that collectives reach."""
OVERLAP = 0.5
"""Share of the computing time behind which ZeRO-3's traffic hides."""
KERNEL = 6e-6
"""Seconds between kernel launches."""
LAYER_LAUNCHES, SEGMENT_LAUNCHES = 50, 45
"""Kernels that a layer, and a segment in its memory, launch in each of a step's three passes: torch's operations,
counted in a run on a CPU with stand-ins for the Triton kernels."""
GRID_TILE = 64
"""Functions that a sample of the old signal meets on a GPU: two tiles of kernels/grid.py."""
LATENCY = 15e-6
"""Seconds that a collective takes however little it moves, within a node; it grows with log2 of the ranks."""

ASSUMPTIONS = (
    f"matrix products reach {MATMUL_SHARE:.0%} of the peak (half of that where they are only {NARROW} wide), the "
    f"memory's densities and writes {FP32_SHARE:.0%} of the fp32 peak and all of the memory bandwidth",
    f"links carry {LINK_SHARE:.0%} of their nominal bandwidth; ZeRO-3's traffic hides behind {OVERLAP:.0%} of the "
    "computing, other traffic behind nothing",
    f"{KERNEL * 1e6:.0f} us a kernel launch, {LATENCY * 1e6:.0f} us x log2(ranks) a collective",
    "no time for evaluation, checkpoints, failures and waiting for data",
)


@dataclass(frozen=True)
class Cost:
    """One optimizer step of one rank."""

    bytes: dict[str, float]
    """Sent by a rank, by kind."""
    seconds: dict[str, float]
    """By kind: they add up."""
    tokens: int
    """Of the whole step, all ranks."""
    flops_per_token: dict[str, float]
    """Forward pass, by part."""

    @property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds


def cost(config: ModelConfig, layout: Layout, gpu: GPU, gpus_per_node: int) -> Cost:
    """Estimate a step."""
    from infty_pretrain.flops import forward_per_token

    per_rank = layout.micro_lanes * layout.micro_batches * layout.window_segments * config.segment_length
    flops = forward_per_token(config)
    sent = traffic(config, layout)
    seconds = _compute_seconds(config, layout, gpu, flops, per_rank)
    computing = sum(seconds.values())
    inside = min(layout.world, gpus_per_node)
    tensor_link = gpu.node_link if layout.tensor <= inside else gpu.network
    data_link = gpu.node_link if layout.world <= gpus_per_node else gpu.network
    seconds["tensor parallel"] = ((sent["tensor parallel"] + sent["memory"]) / (LINK_SHARE * tensor_link)
                                  + _tensor_calls(config, layout) * _latency(layout.tensor))
    exchange = sent["data parallel"] / (LINK_SHARE * data_link) + _data_calls(config, layout) * _latency(layout.data)
    hidden = OVERLAP * computing if layout.zero_stage == 3 else 0.0
    seconds["data parallel"] = max(0.0, exchange - hidden)
    size = sum(p.local(layout.tensor) for p in parameters(config))
    seconds["update"] = 28 * size / (layout.data if layout.zero_stage else 1) / gpu.bandwidth
    return Cost(sent, seconds, per_rank * layout.data, flops)


def _compute_seconds(config: ModelConfig, layout: Layout, gpu: GPU, flops: dict[str, float],
                     per_rank: float) -> dict[str, float]:
    """Seconds of matrix products, of the memories, and of launching."""
    passes = 4 if layout.recompute else 3
    peak = gpu.bf16 if layout.precision == "bf16" else gpu.fp32
    narrow = config.hidden_size / layout.tensor
    share = MATMUL_SHARE * narrow / (narrow + NARROW) * (1 + NARROW / 8192)
    memory, moved = _memory(config)
    # Products in the run's precision: wide ones, and a memory's reads, whose matrices are as narrow as a head.
    wide = (sum(flops.values()) - sum(memory.values()) + memory["projections"]) / (share * peak)
    reads = memory["reads"] / (MATMUL_SHARE / 2 * peak)
    exact = (memory["densities"] + memory["writes"]) / (FP32_SHARE * gpu.fp32) + moved / gpu.bandwidth
    layers = sum(config.has_memory(i) for i in range(config.layers))
    launches = passes * layout.micro_batches * (LAYER_LAUNCHES * config.layers
                                                + SEGMENT_LAUNCHES * layers * layout.window_segments)
    products = passes * wide * per_rank / layout.tensor
    memories = passes * (reads + exact) * per_rank / layout.tensor
    waiting = max(0.0, KERNEL * launches - products - memories)  # launching runs ahead of a busy device
    return {"products": products, "memory": memories, "launches": waiting}


def _memory(config: ModelConfig) -> tuple[dict[str, float], float]:
    """Operations a token in all layers' long-term memories, by part, and bytes that their writes move."""
    from infty.memory.memory import samples_of
    from infty.memory.resample import band_of
    from infty_pretrain.flops import memory_layer_per_token

    total, moved = dict.fromkeys(("projections", "reads", "densities", "writes"), 0.0), 0.0
    for i in range(config.layers):
        memory = config.memory_of(i)
        if memory is None:
            continue
        for part, operations in memory_layer_per_token(config, memory).items():
            total[part] += operations
        samples = samples_of(memory) * config.memory_heads() * config.memory_channels() / config.segment_length
        moved += 4.0 * 4 * samples  # two tiles of the old signal, the grid there and back
        band = band_of(memory.basis, memory.widths)
        total["writes"] += 2.0 * samples * max(0, GRID_TILE - band) if band else 0.0
    return total, moved


def traffic(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """Bytes a rank sends in a step, by ring collectives: (n-1)/n of the data for a gather, twice that to all-reduce."""
    t, d, w, e = layout.tensor, layout.data, layout.width, config.hidden_size
    size = sum(p.local(t) for p in parameters(config))
    tokens = layout.micro_lanes * layout.micro_batches * layout.window_segments * config.segment_length
    ring, share = (t - 1) / t, (d - 1) / d
    reductions = (6 if layout.recompute else 4) * config.layers + 2  # of the residual stream, and embedding and head
    out = {"tensor parallel": 2 * ring * w * tokens * e * reductions, "memory": 0.0}
    reads = layout.window_segments * layout.micro_lanes * layout.micro_batches
    for i in range(config.layers):
        memory = config.memory_of(i)
        if memory is not None and memory.sticky != "off" and memory.sticky_heads == "shared":
            out["memory"] += 2 * ring * 4 * memory.bins * reads
        if memory is not None and memory.signal == "hidden":
            out["memory"] += 2 * ring * 4 * memory.basis * e * reads
        if config.compressed_of(i):  # gathered to be compressed, and what is kept to be projected; twice for the loss
            kept = config.compressed_of(i) / config.segment_length * layout.micro_lanes * layout.micro_batches
            gathered = reads * (2 + 2 / config.compressed.ratio) + kept
            out["memory"] += 2 * ring * w * config.segment_length * e * gathered
    if layout.zero_stage == 3:
        out["data parallel"] = 3 * share * w * size * layout.micro_batches
    else:  # DeepSpeed all-reduces gradients in every stage below 3; from stage 1 it gathers the updated weights
        steps = layout.micro_batches if layout.zero_stage == 2 else 1
        out["data parallel"] = share * w * size * (2 * steps + (1 if layout.zero_stage else 0))
    return out


def _tensor_calls(config: ModelConfig, layout: Layout) -> float:
    if layout.tensor == 1:
        return 0.0
    memories = sum(config.has_memory(i) for i in range(config.layers)) * layout.window_segments
    gathers = 2 if config.memory is not None and config.memory.signal == "hidden" else 0
    return layout.micro_batches * ((6 if layout.recompute else 4) * config.layers + memories * (1 + gathers))


def _data_calls(config: ModelConfig, layout: Layout) -> float:
    if layout.data == 1:
        return 0.0
    return 3 * config.layers * layout.micro_batches if layout.zero_stage == 3 else 4.0


def _latency(ranks: int) -> float:
    return LATENCY * math.log2(ranks) if ranks > 1 else 0.0
