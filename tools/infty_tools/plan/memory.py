"""What one rank keeps in its memory, by kind, from the config alone. Everything is in bytes.

The rules are those of DeepSpeed 0.19 and of this model's own code; tests compare them with real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infty.config import ModelConfig
from infty_pretrain.learning import MEMORIES, learns

if TYPE_CHECKING:
    from infty.layers.memories.base import Costs
    from infty.models.outline import Parameter

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
    train: str = "everything"
    """What learns (`train:` of the config)."""
    part_segments: int | None = None
    """Segments of a window that go through the model at once; None: all."""

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass computes activations again, of layers or of parts of a window."""
        parts = self.part_segments is not None and self.part_segments < self.window_segments
        return self.recompute or parts

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
    learning = learned(weights, layout)
    size = sum(p.local(layout.tensor) for p in weights)
    trained = sum(p.local(layout.tensor) for p in learning)
    w, stage = layout.width, layout.zero_stage
    share = 1 / layout.data
    out = {
        "weights": size * w * (share if stage == 3 else 1),
        "masters": 0.0 if stage == 0 else 4 * trained * share,
        "moments": 8 * trained * (1 if stage == 0 else share),
    }
    if stage == 3 and layout.data > 1:
        out["weights"] += w * sum(
            p.local(layout.tensor) for p in weights if p.local(layout.tensor) < PERSISTENT
        )
    if stage in (1, 2):
        out["gradients"] = w * _largest_share(learning, layout)
    else:
        out["gradients"] = w * trained * (share if stage == 3 else 1)
    return out


def learned(weights: Sequence[Parameter], layout: Layout) -> list[Parameter]:
    """Those that have gradients and optimizer state."""
    return [p for p in weights if learns(p.name, layout.train)]


def _largest_share(weights: list[Parameter], layout: Layout) -> float:
    """Elements of the gradients that a rank keeps in stages 1 and 2: a parameter that straddles a border is whole."""
    groups: dict[tuple[bool, bool], list[int]] = {}
    for p in weights:  # the optimizer's groups, in each the model's order
        groups.setdefault((MEMORIES in p.name, len(p.shape) >= 2), []).append(
            p.local(layout.tensor)
        )
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
    out = {
        "buckets": 0.0
        if stage == 0
        else w * min(REDUCE_BUCKET, size)
        if stage < 3
        else w * REDUCE_BUCKET
    }
    if stage == 3:
        out["gathered"] = w * min(size, max(LIVE, layer + PREFETCH, vocabulary))
    # Stage 1 reduces when the backward pass is over: until then every gradient is there. The update casts a rank's to
    # float32. Stages 1 and 2 hold on to one whole gradient.
    cast = (
        4 * min(size / layout.data, SUB_GROUP if stage == 3 else size) if stage and w == 2 else 0.0
    )
    out["update"] = max(w * size if stage == 1 else 0.0, cast)
    out["update"] += w * max(p.local(layout.tensor) for p in weights) if stage in (1, 2) else 0.0
    out["logits"] = 3 * 4 * layout.micro_lanes * config.segment_length * V
    return out


def lane_bytes(config: ModelConfig, width: int, tensor: int = 1) -> float:
    """One lane's state on a rank, of `width` bytes a number where the precision of the run decides."""
    import torch

    from infty.models.outline import outline

    fields = (
        outline(config, torch.bfloat16 if width == 2 else torch.float32).fields.named().values()
    )
    return sum(field.bytes / (tensor if field.split else 1) for field in fields)


def lane_states(config: ModelConfig, layout: Layout) -> float:
    """The states of a rank's lanes when there are most of them: at the end of a step, with those of before it.

    The engine gives up none of the old ones until all are new, so that it can put lanes back.
    """
    lanes = layout.micro_lanes * layout.micro_batches
    return 2 * lanes * lane_bytes(config, layout.width, layout.tensor)


def checkpoint_bytes(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """A checkpoint on disk, all ranks together: whole float32 weights and moments, and every lane."""
    size = sum(p.size for p in parameters(config))
    trained = sum(p.size for p in learned(parameters(config), layout))
    lanes = layout.data * layout.micro_lanes * layout.micro_batches
    return {
        "weights": 4.0 * size,
        "moments": 8.0 * trained,
        "lanes": lanes * lane_bytes(config, layout.width),
    }


def memory_costs(
    config: ModelConfig, layer: int, layout: Layout, device: str = "cuda"
) -> list[Costs]:
    """What each memory of a layer says of itself in this layout."""
    from infty.layers.memories.base import Layout as MemoryLayout
    from infty_pretrain import flops

    return flops.memory_costs(
        config,
        layer,
        MemoryLayout(
            layout.tensor, layout.micro_lanes, layout.window_segments, layout.width, device
        ),
    )


def operators(config: ModelConfig, layout: Layout) -> float:
    """The memories' precomputed operators: layers with the same memory share them."""
    constants = {}
    for i in range(config.layers):
        for costs in memory_costs(config, i, layout):
            constants |= costs.constants
    return sum(constants.values())


def parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of the model."""
    from infty.models.outline import outline

    return outline(config).parameters


def total(config: ModelConfig) -> int:
    """Parameters of the model, all together."""
    return sum(p.size for p in parameters(config))
