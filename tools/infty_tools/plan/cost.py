"""How fast a layout would train: what is computed, what travels, and how long each takes under stated assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infty.config import ModelConfig
from infty.hardware import GPU
from infty_tools.plan.memory import Layout, memory_costs, parameters

if TYPE_CHECKING:
    from infty.layers.memories.base import Costs

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
LAYER_LAUNCHES = 50
"""Kernels that a layer launches in each of a step's three passes: torch's operations, counted in a run on a CPU."""
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

    per_rank = (
        layout.micro_lanes * layout.micro_batches * layout.window_segments * config.segment_length
    )
    flops = forward_per_token(config)
    sent = traffic(config, layout)
    seconds = _compute_seconds(config, layout, gpu, flops, per_rank)
    computing = sum(seconds.values())
    inside = min(layout.world, gpus_per_node)
    tensor_link = gpu.node_link if layout.tensor <= inside else gpu.network
    data_link = gpu.node_link if layout.world <= gpus_per_node else gpu.network
    seconds["tensor parallel"] = (sent["tensor parallel"] + sent["memory"]) / (
        LINK_SHARE * tensor_link
    ) + _tensor_calls(config, layout) * _latency(layout.tensor)
    exchange = sent["data parallel"] / (LINK_SHARE * data_link) + _data_calls(
        config, layout
    ) * _latency(layout.data)
    hidden = OVERLAP * computing if layout.zero_stage == 3 else 0.0
    seconds["data parallel"] = max(0.0, exchange - hidden)
    size = sum(p.local(layout.tensor) for p in parameters(config))
    seconds["update"] = 28 * size / (layout.data if layout.zero_stage else 1) / gpu.bandwidth
    return Cost(sent, seconds, per_rank * layout.data, flops)


def _compute_seconds(
    config: ModelConfig, layout: Layout, gpu: GPU, flops: dict[str, float], per_rank: float
) -> dict[str, float]:
    """Seconds of matrix products, of the memories, and of launching."""
    passes = 4 if layout.recomputes else 3
    peak = gpu.bf16 if layout.precision == "bf16" else gpu.fp32
    narrow = config.hidden_size / layout.tensor
    share = MATMUL_SHARE * narrow / (narrow + NARROW) * (1 + NARROW / 8192)
    memories = _all_memories(config, layout)
    # Products in the run's precision: wide ones, and a memory's reads, whose matrices are as narrow as a head.
    wide = (sum(flops.values()) - flops["memory"] + sum(c.products for c in memories)) / (
        share * peak
    )
    reads = sum(c.reads for c in memories) / (MATMUL_SHARE / 2 * peak)
    exact = sum(c.exact / (FP32_SHARE * gpu.fp32) + c.moved / gpu.bandwidth for c in memories)
    launches = (
        passes
        * layout.micro_batches
        * (
            LAYER_LAUNCHES * config.layers
            + sum(c.launches for c in memories) * layout.window_segments
        )
    )
    products = passes * wide * per_rank / layout.tensor
    remembering = passes * (reads + exact) * per_rank / layout.tensor
    waiting = max(
        0.0, KERNEL * launches - products - remembering
    )  # launching runs ahead of a busy device
    return {"products": products, "memory": remembering, "launches": waiting}


def _all_memories(config: ModelConfig, layout: Layout) -> list[Costs]:
    return [costs for i in range(config.layers) for costs in memory_costs(config, i, layout)]


def traffic(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """Bytes a rank sends in a step, by ring collectives: (n-1)/n of the data for a gather, twice that to all-reduce."""
    t, d, w, e = layout.tensor, layout.data, layout.width, config.hidden_size
    size = sum(p.local(t) for p in parameters(config))
    tokens = (
        layout.micro_lanes * layout.micro_batches * layout.window_segments * config.segment_length
    )
    ring, share = (t - 1) / t, (d - 1) / d
    reductions = (
        6 if layout.recomputes else 4
    ) * config.layers + 2  # of the residual stream, and embedding and head
    out = {"tensor parallel": 2 * ring * w * tokens * e * reductions}
    reads = layout.window_segments * layout.micro_lanes * layout.micro_batches
    out["memory"] = 2 * ring * reads * sum(c.sent for c in _all_memories(config, layout))
    if layout.zero_stage == 3:
        out["data parallel"] = 3 * share * w * size * layout.micro_batches
    else:  # DeepSpeed all-reduces gradients in every stage below 3; from stage 1 it gathers the updated weights
        steps = layout.micro_batches if layout.zero_stage == 2 else 1
        out["data parallel"] = share * w * size * (2 * steps + (1 if layout.zero_stage else 0))
    return out


def _tensor_calls(config: ModelConfig, layout: Layout) -> float:
    if layout.tensor == 1:
        return 0.0
    collectives = sum(c.collectives for c in _all_memories(config, layout)) * layout.window_segments
    return layout.micro_batches * ((6 if layout.recomputes else 4) * config.layers + collectives)


def _data_calls(config: ModelConfig, layout: Layout) -> float:
    if layout.data == 1:
        return 0.0
    return 3 * config.layers * layout.micro_batches if layout.zero_stage == 3 else 4.0


def _latency(ranks: int) -> float:
    return LATENCY * math.log2(ranks) if ranks > 1 else 0.0
