"""What autograd keeps of one forward pass, in bytes on one rank: one line for each tensor that the code saves.

`device` is "cuda" or "cpu": the memory has other kernels on each, and fused norms save less on a GPU. Tests count the
saved tensors of real CPU runs.
"""

from __future__ import annotations

from dataclasses import replace

from infty.config import ModelConfig
from infty_tools.plan.memory import Layout, lane_bytes, memory_costs


def activations(config: ModelConfig, layout: Layout, device: str = "cuda") -> float:
    """Bytes at the end of the forward pass; with recompute, at the worst moment of the backward pass."""
    size, segments = layout.part_segments, layout.window_segments
    if size is not None and size < segments:  # one part, and the states that parts begin with
        part = replace(layout, window_segments=size, part_segments=None)
        begun = (-(-segments // size) - 1) * layout.micro_lanes
        states = begun * lane_bytes(config, layout.width, layout.tensor)
        return activations(config, part, device) + states
    layers = [layer_bytes(config, i, layout, device) for i in range(config.layers)]
    n, w, e = _tokens(config, layout), layout.width, config.hidden_size
    ends = n * (2 * 8 + 4) + _norm(config, layout, device) + w * n * e
    if layout.recompute:
        stream = w * n * e / (layout.tensor if layout.sequence else 1)
        return ends + stream * config.layers + max(layers)
    return ends + sum(layers)


def layer_bytes(config: ModelConfig, layer: int, layout: Layout, device: str = "cuda") -> float:
    """One block's saved tensors."""
    n, w, t = _tokens(config, layout), layout.width, layout.tensor
    d, stm, L = config.head_size, config.stm_of(layer), config.segment_length
    heads, kv = config.heads / t, config.kv_heads / t
    entered = (
        2 * w * n * config.hidden_size
    )  # inputs of the query/key/value and of the feed-forward matrices
    seen = (stm + L) / L  # keys of neighbouring segments overlap
    attention = w * n * d * (3 * heads + 2 * kv * seen) + 4 * n * heads
    masked = stm or config.window_of(layer)
    attention += w * n * (stm + L) if masked else 0.0
    if config.qk_norm:  # queries and keys as they were projected
        attention += _head_norms(config, layout, device)
    costs = memory_costs(config, layer, layout, device)
    if config.positions == "relative":
        attention = _relative(config, sum(c.extra_keys for c in costs) + stm + L, layout)
    if config.positions == "rotary":
        attention += 2 * 4 * (2 * layout.window_segments * L + stm) * d
    mlp = w * n * config.ffn_size / t * (4 if config.activation == "swiglu" else 2)
    masks = 2 * n * config.hidden_size if config.dropout else 0.0
    memories = sum(c.saved for c in costs) + max((c.saved_together for c in costs), default=0.0)
    return 2 * _norm(config, layout, device) + entered + attention + mlp + masks + memories


def _head_norms(config: ModelConfig, layout: Layout, device: str) -> float:
    """What the norms of queries and keys save."""
    heads = (config.heads + config.kv_heads) / layout.tensor
    each = 2 * 4 if device == "cpu" else layout.width
    return _tokens(config, layout) * heads * (each * config.head_size + 4)


def _relative(config: ModelConfig, keys: float, layout: Layout) -> float:
    """Attention to `keys` a segment with scores by distance: a bias that is trained takes torch's plain form."""
    n, w, d, e = _tokens(config, layout), layout.width, config.head_size, config.hidden_size
    heads = config.heads / layout.tensor
    by_distance = w * n * heads * d + w * keys * (e + heads * d)
    scaled = 4 * n * heads * d + 2 * 4 * n / config.segment_length * heads * keys * d
    return by_distance + scaled + 4 * n * heads * keys + n * keys + w * n * heads * d


def _tokens(config: ModelConfig, layout: Layout) -> float:
    """Tokens of a forward pass on one rank."""
    return layout.micro_lanes * layout.window_segments * config.segment_length


def _norm(config: ModelConfig, layout: Layout, device: str) -> float:
    """A norm saves its input; on a CPU an RMS norm is made of parts and saves two tensors in float32."""
    rms = config.norm == "rmsnorm"
    each = 2 * 4 if rms and device == "cpu" else layout.width
    split = layout.tensor if layout.sequence else 1
    return _tokens(config, layout) * (each * config.hidden_size + 4 * (1 if rms else 2)) / split
