"""What autograd keeps of one forward pass, in bytes on one rank: one line for each tensor that the code saves.

`device` is "cuda" or "cpu": the memory has other kernels on each, and fused norms save less on a GPU. Tests count the
saved tensors of real CPU runs.
"""

from __future__ import annotations

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty_tools.plan_memory import Layout


def activations(config: ModelConfig, layout: Layout, device: str = "cuda") -> float:
    """Bytes at the end of the forward pass; with recompute, at the worst moment of the backward pass."""
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
    entered = 2 * w * n * config.hidden_size  # inputs of the query/key/value and of the feed-forward matrices
    seen = (stm + L) / L  # keys of neighbouring segments overlap
    attention = w * n * d * (3 * heads + 2 * kv * seen) + 4 * n * heads
    attention += w * n * (stm + L) if stm else 0.0  # the mask
    if config.positions == "relative":
        attention = _relative(config, config.compressed_of(layer) + stm + L, layout)
    if config.compressed_of(layer):
        attention += _compressed(config, config.compressed_of(layer), layout)
    if config.positions == "rotary":
        attention += 2 * 4 * (2 * layout.window_segments * L + stm) * d
    mlp = w * n * config.ffn_size / t * (4 if config.activation == "swiglu" else 2)
    masks = 2 * n * config.hidden_size if config.dropout else 0.0
    memory = _memory(config, config.memory_of(layer), layout, device) if config.has_memory(layer) else 0.0
    return 2 * _norm(config, layout, device) + entered + attention + mlp + masks + memory


def _relative(config: ModelConfig, keys: int, layout: Layout) -> float:
    """Attention to `keys` a segment with scores by distance: a bias that is trained takes torch's plain form."""
    n, w, d, e = _tokens(config, layout), layout.width, config.head_size, config.hidden_size
    heads = config.heads / layout.tensor
    by_distance = w * n * heads * d + w * keys * (e + heads * d)
    scaled = 4 * n * heads * d + 2 * 4 * n / config.segment_length * heads * keys * d
    return by_distance + scaled + 4 * n * heads * keys + n * keys + w * n * heads * d


def _compressed(config: ModelConfig, length: int, layout: Layout) -> float:
    """What the convolution and the projection of the memories read, and the reconstruction loss."""
    n, w, d, e = _tokens(config, layout), layout.width, config.head_size, config.hidden_size
    heads, kv, new = config.heads / layout.tensor, config.kv_heads / layout.tensor, n / config.compressed.ratio
    convolved = w * n * e * (2 if config.compressed.backprop else 1)
    projected = w * (layout.micro_lanes * length + new) * e
    reads = n * heads * (d * (2 * w + 4) + 4) + 2 * w * new * kv * d
    return convolved + projected + reads


def _tokens(config: ModelConfig, layout: Layout) -> float:
    """Tokens of a forward pass on one rank."""
    return layout.micro_lanes * layout.window_segments * config.segment_length


def _norm(config: ModelConfig, layout: Layout, device: str) -> float:
    """A norm saves its input; on a CPU an RMS norm is made of parts and saves two tensors in float32."""
    rms = config.norm == "rmsnorm"
    each = 2 * 4 if rms and device == "cpu" else layout.width
    split = layout.tensor if layout.sequence else 1
    return _tokens(config, layout) * (each * config.hidden_size + 4 * (1 if rms else 2)) / split


def _memory(config: ModelConfig, memory: MemoryConfig, layout: Layout, device: str) -> float:
    """Reads and writes of a window."""
    if memory.density == "gibbs":
        return _gibbs(config, memory, layout)
    d, w, t = config.head_size, layout.width, layout.tensor
    b, S, n = layout.micro_lanes, layout.window_segments, _tokens(config, layout)
    heads, kv, N = config.heads / t, config.kv_heads / t, memory.basis
    whole = w == 4 and config.heads == config.kv_heads  # queries are a view of the whole product then
    queries = 4 * n * d * (heads + 2 * kv if whole else heads)
    pooled = S * b * heads * d * 2 * 4
    maps = 2 * 2 * 4 * heads * N
    widths = len(memory.widths)
    densities = 4 * n * heads * (2 + 1 + (widths if device == "cpu" else 1))
    # The CPU's read makes its own float32 values; the slices for each width share one storage.
    values = (4 if device == "cpu" else w) * S * b * kv * N * d
    # The CPU's blocked read keeps its result for each width.
    read = 4 * n * heads * d * widths if device == "cpu" and memory.density == "gaussian" else 0
    into_projection = w * n * heads * d
    return (queries + pooled + maps + densities + values + read + into_projection
            + _signal(config, memory, layout) + _write(config, memory, layout))


def _gibbs(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """Reads with a gibbs density: attention, in float32, to keys and values on a grid."""
    from infty.memory.densities import gibbs_points

    d, w, t = config.head_size, layout.width, layout.tensor
    b, S, n = layout.micro_lanes, layout.window_segments, _tokens(config, layout)
    heads, kv, cells = config.heads / t, config.kv_heads / t, gibbs_points(memory.basis, memory.bins)
    stored = w * S * b * memory.basis * config.hidden_size if memory.signal == "hidden" else 0.0
    return 4 * n * heads * (2 * d + 1) + 2 * 4 * S * b * kv * cells * d + stored + w * n * heads * d + (
        _gate(config, memory, layout) + _write(config, memory, layout))


def _signal(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """From a stored signal to pooled keys and values, and from the hidden state to what is stored."""
    e, d, w, t = config.hidden_size, config.head_size, layout.width, layout.tensor
    b, S, N = layout.micro_lanes, layout.window_segments, memory.basis
    if memory.signal == "heads":
        return 4 * S * b * config.kv_heads / t * N * d
    gathered = S * b * N * e * (4 + w)
    pooled = 2 * S * b * config.heads / t * e * 4
    projection = 0.0 if w == 4 else 4 * config.kv_heads / t * d * e
    return gathered + pooled + projection + _gate(config, memory, layout)


def _gate(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    n, w, t, e = _tokens(config, layout), layout.width, layout.tensor, config.hidden_size
    return w * n * (3 * e + e / t + (e / t if t > 1 else 0)) if memory.gate else 0.0


def _write(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """Operators that autograd keeps of every write, for the gradients of the old signal and of the new tokens."""
    from infty.memory.memory import samples_of
    from infty.memory.resample import band_of, touched

    L = config.segment_length
    b, S, N = layout.micro_lanes, layout.window_segments, memory.basis
    if not memory.backprop:
        return 0.0
    samples = samples_of(memory)
    groups = config.heads / layout.tensor if memory.sticky_heads == "per_head" else 1
    # A learned contraction's gradient reaches the samples' places: the dense form.
    band = None if memory.contraction == "learned" else band_of(N, memory.widths)
    sampled = 4 * N if band is None else 8 + 4 * band  # the place of a sample's first function, and the functions
    rewritten = (S - 1) * b * groups * samples * sampled
    if not isinstance(memory.contraction, str):
        return 0.0 if memory.sticky == "off" else rewritten
    if memory.contraction == "learned":  # the places of samples and tokens, and everything made from them
        heads, channels = config.memory_heads() / layout.tensor, config.memory_channels()
        stream = 4 * b * heads * channels * (config.stm_length + S * L)
        return rewritten + stream + S * b * (4 * N * (4 * groups * samples + heads * channels) + 12 * 8 * samples
                                             + 4 * samples * L)
    return rewritten + S * b * L * (8 + 4 * touched(samples, L))
