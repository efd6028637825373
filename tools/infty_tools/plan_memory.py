"""What one rank keeps in its memory, by kind, from the config alone. Everything is in bytes.

The rules are those of DeepSpeed 0.19 and of this model's own code; tests compare them with real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty_tools.plan_parameters import Parameter, parameters

# DeepSpeed's defaults (a test compares them with the installed version), in numbers of elements.
REDUCE_BUCKET = 5e8
PERSISTENT = 1e5
"""ZeRO-3 keeps smaller parameters gathered."""
LIVE = 1e9
"""ZeRO-3 gathers at most about this many parameters at once, but never less than a layer."""
PREFETCH = 5e7
SUB_GROUP = 1e9
"""ZeRO-3 updates this many parameters at a time."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread, and what each rank does in a step."""

    tensor: int
    data: int
    zero_stage: int
    sequence: bool
    recompute: bool
    micro_lanes: int
    """Lanes that go through the model at once, on one data-parallel rank [b]."""
    micro_batches: int
    """Forward passes a step."""
    window_segments: int
    """Segments of a window [S]."""
    precision: str
    """fp32 or bf16."""

    @property
    def world(self) -> int:
        return self.tensor * self.data

    @property
    def width(self) -> int:
        """Bytes of a number in forward and backward."""
        return 2 if self.precision == "bf16" else 4


def model_states(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """Weights, float32 masters, optimizer moments and gradients between backward and update."""
    weights = parameters(config)
    size = sum(p.local(layout.tensor) for p in weights)
    w, stage = layout.width, layout.zero_stage
    share = 1 / layout.data
    out = {"weights": size * w * (share if stage == 3 else 1), "masters": 0.0 if stage == 0 else 4 * size * share,
           "moments": 8 * size * (1 if stage == 0 else share)}
    if stage == 3 and layout.data > 1:
        out["weights"] += w * sum(p.local(layout.tensor) for p in weights if p.local(layout.tensor) < PERSISTENT)
    if stage in (1, 2):
        out["gradients"] = w * _largest_share(weights, layout)
    else:
        out["gradients"] = w * size * (share if stage == 3 else 1)
    return out


def _largest_share(weights: list[Parameter], layout: Layout) -> float:
    """Elements of the gradients that a rank keeps in stages 1 and 2: a parameter that straddles a border is whole."""
    groups: dict[tuple[bool, bool], list[int]] = {}
    for p in weights:  # the optimizer's groups, in each the model's order
        groups.setdefault((".memory." in p.name, len(p.shape) >= 2), []).append(p.local(layout.tensor))
    kept = [0.0] * layout.data
    for sizes in groups.values():
        part = -(-sum(sizes) // layout.data)
        start = 0
        for size in sizes:
            for rank in range(start // part, min(layout.data - 1, (start + size - 1) // part) + 1):
                kept[rank] += size
            start += size
    return max(kept)


def working(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """What comes and goes within a step, at the largest: buffers of DeepSpeed, gathered parameters, logits."""
    weights = parameters(config)
    size = sum(p.local(layout.tensor) for p in weights)
    w, stage, V = layout.width, layout.zero_stage, config.padded_vocab / layout.tensor
    layer = sum(p.local(layout.tensor) for p in weights if p.name.startswith("blocks.0."))
    vocabulary = max(p.local(layout.tensor) for p in weights if not p.name.startswith("blocks."))
    out = {"buckets": 0.0 if stage == 0 else w * min(REDUCE_BUCKET, size) if stage < 3 else w * REDUCE_BUCKET}
    if stage == 3:
        out["gathered"] = w * min(size, max(LIVE, layer + PREFETCH, vocabulary))
    # Stage 1 reduces when the backward pass is over: until then every gradient is there. The update casts a rank's to
    # float32. Stages 1 and 2 hold on to one whole gradient.
    cast = 4 * min(size / layout.data, SUB_GROUP if stage == 3 else size) if stage and w == 2 else 0.0
    out["update"] = max(w * size if stage == 1 else 0.0, cast)
    out["update"] += w * max(p.local(layout.tensor) for p in weights) if stage in (1, 2) else 0.0
    out["logits"] = 3 * 4 * layout.micro_lanes * config.segment_length * V
    return out


def lane_bytes(config: ModelConfig, width: int, tensor: int = 1) -> float:
    """One lane's state on a rank, of `width` bytes a number where the precision of the run decides."""
    total = 8.0
    for i in range(config.layers):
        stm = config.stm_of(i)
        total += 2 * width * config.kv_heads * stm * config.head_size / tensor
        if config.has_memory(i):
            memory = config.memory_of(i)
            heads, channels = config.memory_heads() / tensor, config.memory_channels()
            groups = heads if memory.sticky_heads == "per_head" else 1
            total += 4 * heads * memory.basis * channels + 4 * groups * memory.bins + 8
            if memory.signal == "hidden":
                total += width * heads * stm * channels
        if config.compressed_of(i):
            total += width * config.hidden_size * (stm + config.compressed_of(i)) / tensor
    return total


def lane_states(config: ModelConfig, layout: Layout) -> float:
    """The states of a rank's lanes when there are most of them: at the end of a step, with those of before it.

    The engine gives up none of the old ones until all are new, so that it can put lanes back.
    """
    lanes = layout.micro_lanes * layout.micro_batches
    return 2 * lanes * lane_bytes(config, layout.width, layout.tensor)


def checkpoint_bytes(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """A checkpoint on disk, all ranks together: whole float32 weights and moments, and every lane."""
    size = sum(p.size for p in parameters(config))
    lanes = layout.data * layout.micro_lanes * layout.micro_batches
    return {"weights": 4.0 * size, "moments": 8.0 * size, "lanes": lanes * lane_bytes(config, layout.width)}


def operators(config: ModelConfig, *, tensor: int = 1) -> float:
    """The memories' precomputed operators: layers with the same memory share them."""
    memories = {config.memory_of(i) for i in range(config.layers) if config.has_memory(i)}
    return sum(_operators(memory, config.segment_length) for memory in memories)


def _operators(memory: MemoryConfig, segment_length: int) -> float:
    from infty.memory.memory import grid_tiles, samples_of

    samples, each = samples_of(memory), 4 if memory.precision == "float32" else 8
    if isinstance(memory.contraction, str):
        return each * sum(t.operations for t in grid_tiles(memory))
    return each * memory.basis * (2 * segment_length + (memory.basis if memory.sticky == "off" else samples))
