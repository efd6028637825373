"""What a continuous memory costs: operations, bytes kept and sent. Tests count them in real runs.

b lanes, S segments of L tokens a window, N functions, M samples a write; w bytes a number of the run's precision.
"""

from __future__ import annotations

from infty.config import ModelConfig
from infty.layers.memories.base import Costs, Layout
from infty.memory.config import MemoryConfig
from infty.memory.densities import gibbs_points
from infty.memory.resample import band_of, touched
from infty.memory.writing import grid_tiles, operators, samples_of

GRID_TILE = 64
"""Functions that a sample of the old signal meets on a GPU: two tiles of kernels/grid.py."""
SEGMENT_LAUNCHES = 45
"""Kernels that a segment launches in each of a step's three passes: torch's operations, counted in a run on a CPU with
stand-ins for the Triton kernels."""


def costs(config: ModelConfig, layer: int, memory: MemoryConfig, layout: Layout) -> Costs:
    """See `Memory.costs`."""
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    N, H = memory.basis, config.heads
    hidden = memory.signal == "hidden"
    products = 2.0 * e * H * d
    if hidden:
        products += 2.0 * N * e * config.kv_heads * d / L
    if memory.gate:
        products += 2.0 * 3 * e * e
    reads, densities = _reads(config, memory)
    samples = samples_of(memory) * _stored(config, memory) / L
    shared_histogram = memory.sticky != "off" and memory.sticky_heads == "shared"
    return Costs(
        products=products,
        reads=reads,
        exact=densities + _writes(config, memory, layout),
        moved=4.0 * 4 * samples,  # two tiles of the old signal, the grid there and back
        launches=SEGMENT_LAUNCHES,
        sent=4.0 * (memory.bins if shared_histogram else 0) + (4.0 * N * e if hidden else 0.0),
        collectives=1 + 2 * hidden,
        saved=_saved(config, memory, layout, config.stm_of(layer)),
        saved_together=_projected(config, memory, layout),
        constants={memory: _operators(memory, L)},
    )


def joint_costs(config: ModelConfig, layer: int, memory: MemoryConfig, layout: Layout) -> Costs:
    """See `Memory.costs`, for `density: joint`."""
    d, L, N = config.head_size, config.segment_length, memory.basis
    stored = _stored(config, memory)
    band = band_of(N, memory.widths) or N
    points = 2.0 * N * band * stored / L
    b, S = layout.lanes, layout.segments
    n = b * S * L
    kv = config.kv_heads / layout.tensor
    w = layout.width
    mask = N + (0 if config.stm_of(layer) else L)
    # The signal at its centres, and from it keys and values; the mask; the bands of all reads; what is written.
    kept = S * b * N * kv * d * 4 * w + w * n * mask
    kept += S * b * N * (8 + 4 * band) + _kept_of_writes(
        config, memory, layout, config.stm_of(layer)
    )
    return Costs(
        reads=4.0 * config.heads * d * N,
        exact=points + _writes(config, memory, layout),
        extra_keys=0.0,
        moved=4.0 * 6 * samples_of(memory) * stored / L,
        launches=SEGMENT_LAUNCHES / 2,
        saved=kept,
        constants={memory: _operators(memory, L)},
    )


def _stored(config: ModelConfig, memory: MemoryConfig) -> int:
    """Numbers of the stored signal at one place, all heads."""
    return (
        2 * config.kv_heads * config.head_size if memory.signal == "heads" else config.hidden_size
    )


def _reads(config: ModelConfig, memory: MemoryConfig) -> tuple[float, float]:
    """Operations a token of the reads' products, and of what is made in float32 for them."""
    d, H, N = config.head_size, config.heads, memory.basis
    if memory.density != "gibbs":
        return 2.0 * N * d * H, (10.0 * N + 4.0 * d) * H
    # Keys and values on a grid, attention to it; scores once more for the histogram.
    cells = gibbs_points(N, memory.bins)
    shared = H + N * config.kv_heads / config.segment_length
    return (4.0 + 2.0 * (memory.sticky != "off")) * cells * d * shared, 4.0 * d * H


def _writes(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """Operations a token of the writes."""
    L = config.segment_length
    stored = _stored(config, memory)
    total = 2.0 * stored * write_per_channel(memory, L) / L
    band = band_of(memory.basis, memory.widths)
    if layout.device == "cuda" and band:  # whole tiles are multiplied there
        total += 2.0 * samples_of(memory) * stored / L * max(0, GRID_TILE - band)
    return total


def write_per_channel(memory: MemoryConfig, tokens: int) -> float:
    """Multiplications that a write of `tokens` tokens makes for each channel: samples of the old signal, the new tokens
    put in their cells, the regression."""
    N = memory.basis
    samples = samples_of(memory)
    band = None if memory.contraction == "learned" else band_of(N, memory.widths)
    sampling = samples * (band or N)
    if not memory.has_policy:
        return N * (N + tokens) if memory.sticky == "off" else sampling + N * (samples + tokens)
    pooling = tokens * (samples if memory.contraction == "learned" else touched(samples, tokens))
    return sampling + pooling + grid_tiles(memory)[0].operations


def _operators(memory: MemoryConfig, segment_length: int) -> float:
    """Bytes of the precomputed operators."""
    if memory.has_policy:
        return sum(t.entries.nbytes for t in grid_tiles(memory))
    return sum(x.nbytes for x in operators(memory, segment_length).values())


def _saved(config: ModelConfig, memory: MemoryConfig, layout: Layout, stm: int) -> float:
    """Bytes that autograd keeps of a window's reads and writes."""
    if memory.density == "gibbs":
        return _gibbs(config, memory, layout, stm)
    d, w, t = config.head_size, layout.width, layout.tensor
    b, S = layout.lanes, layout.segments
    n = b * S * config.segment_length
    heads, kv, N = config.heads / t, config.kv_heads / t, memory.basis
    queries = 0.0 if _projected(config, memory, layout) else 4 * n * d * heads
    pooled = S * b * heads * d * 2 * 4
    maps = 2 * 2 * 4 * heads * N
    widths = len(memory.widths)
    densities = 4 * n * heads * (2 + 1 + (widths if layout.device == "cpu" else 1))
    # The CPU's read makes its own float32 values; the slices for each width share one storage.
    values = (4 if layout.device == "cpu" else w) * S * b * kv * N * d
    # The CPU's blocked read keeps its result for each width.
    read = (
        4 * n * heads * d * widths if layout.device == "cpu" and memory.density == "gaussian" else 0
    )
    into_projection = w * n * heads * d
    return (
        queries
        + pooled
        + maps
        + densities
        + values
        + read
        + into_projection
        + _signal(config, memory, layout)
        + _kept_of_writes(config, memory, layout, stm)
    )


def _projected(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """In float32 and without grouped keys, queries are a view of all that was projected."""
    if layout.width != 4 or config.heads != config.kv_heads or memory.density == "gibbs":
        return 0.0
    n = layout.lanes * layout.segments * config.segment_length
    return 4 * n * config.head_size * 3 * config.heads / layout.tensor


def _gibbs(config: ModelConfig, memory: MemoryConfig, layout: Layout, stm: int) -> float:
    """Reads with a gibbs density: attention, in float32, to keys and values on a grid."""
    d, w, t = config.head_size, layout.width, layout.tensor
    b, S = layout.lanes, layout.segments
    n = b * S * config.segment_length
    heads, kv, cells = (
        config.heads / t,
        config.kv_heads / t,
        gibbs_points(memory.basis, memory.bins),
    )
    stored = w * S * b * memory.basis * config.hidden_size if memory.signal == "hidden" else 0.0
    return (
        4 * n * heads * (2 * d + 1)
        + 2 * 4 * S * b * kv * cells * d
        + stored
        + w * n * heads * d
        + (_gate(config, memory, layout) + _kept_of_writes(config, memory, layout, stm))
    )


def _signal(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """From a stored signal to pooled keys and values, and from the hidden state to what is stored."""
    e, d, w, t = config.hidden_size, config.head_size, layout.width, layout.tensor
    b, S, N = layout.lanes, layout.segments, memory.basis
    if memory.signal == "heads":
        return 4 * S * b * config.kv_heads / t * N * d
    gathered = S * b * N * e * (4 + w)
    pooled = 2 * S * b * config.heads / t * e * 4
    projection = 0.0 if w == 4 else 4 * config.kv_heads / t * d * e
    return gathered + pooled + projection + _gate(config, memory, layout)


def _gate(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    if not memory.gate:
        return 0.0
    n = layout.lanes * layout.segments * config.segment_length
    e, t = config.hidden_size, layout.tensor
    return layout.width * n * (3 * e + e / t + (e / t if t > 1 else 0))


def _kept_of_writes(config: ModelConfig, memory: MemoryConfig, layout: Layout, stm: int) -> float:
    """Operators that autograd keeps of every write, for the gradients of the old signal and of the new tokens."""
    if not memory.backprop:
        return 0.0
    L, N = config.segment_length, memory.basis
    b, S = layout.lanes, layout.segments
    samples = samples_of(memory)
    signals = config.heads / layout.tensor if memory.sticky_heads == "per_head" else 1
    # A learned contraction's gradient reaches the samples' places: the dense form.
    band = None if memory.contraction == "learned" else band_of(N, memory.widths)
    sampled = (
        4 * N if band is None else 8 + 4 * band
    )  # the place of a sample's first function, and the functions
    rewritten = (S - 1) * b * signals * samples * sampled
    if not memory.has_policy:
        return 0.0 if memory.sticky == "off" else rewritten
    if (
        memory.contraction == "learned"
    ):  # the places of samples and tokens, and everything made from them
        stored = _stored(config, memory) / layout.tensor
        stream = 4 * b * stored * (stm + S * L)
        return (
            rewritten
            + stream
            + S
            * b
            * (4 * N * (4 * signals * samples + stored) + 12 * 8 * samples + 4 * samples * L)
        )
    return rewritten + S * b * L * (8 + 4 * touched(samples, L))
