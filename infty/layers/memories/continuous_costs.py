"""What a continuous memory costs: operations, bytes kept and sent. Tests count them in real runs.

b lanes, S segments of L tokens a window, N functions, M samples a write; w bytes a number of the run's precision.
"""

from __future__ import annotations

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.costs import Costs, Layout
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
    read = memory.family.costs(memory, config, layout)
    signal = memory.signal_kind.costs(memory, config, layout, memory.family.pools)
    shared_histogram = memory.sticky != "off" and memory.sticky_heads == "shared"
    tokens = layout.lanes * layout.segments * L
    into_projection = layout.width * tokens * config.heads / layout.tensor * d
    kept = kept_of_writes(config, memory, layout, config.stm_of(layer))
    room = weighing(config, memory, layout)
    return Costs(
        products=2.0 * e * config.heads * d + signal.products + room.products,
        reads=read.reads,
        exact=read.exact + writes(config, memory, layout) + room.exact,
        # Two tiles of the old signal, the grid there and back.
        moved=4.0 * 4 * samples_of(memory) * stored(config, memory) / L,
        launches=SEGMENT_LAUNCHES,
        sent=4.0 * (memory.bins if shared_histogram else 0) + signal.sent,
        collectives=1 + signal.collectives,
        saved=read.saved + signal.saved + into_projection + kept + room.saved,
        saved_together=read.saved_together,
        constants={memory: operators_of(memory, L)},
    )


def stored(config: ModelConfig, memory: MemoryConfig) -> int:
    """Numbers of the stored signal at one place, all heads."""
    heads, channels = memory.signal_kind.shape(config.heads, config.kv_heads, config.head_size)
    return heads * channels


def writes(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> float:
    """Operations a token of the writes."""
    L = config.segment_length
    numbers = stored(config, memory)
    total = 2.0 * numbers * write_per_channel(memory, L) / L
    band = band_of(memory.basis, memory.widths)
    if layout.device == "cuda" and band:  # whole tiles are multiplied there
        total += 2.0 * samples_of(memory) * numbers / L * max(0, GRID_TILE - band)
    return total


def write_per_channel(memory: MemoryConfig, tokens: int) -> float:
    """Multiplications that a write of `tokens` tokens makes for each channel: samples of the old signal, the new tokens
    put in their cells, the regression."""
    N = memory.basis
    samples = samples_of(memory)
    band = None if memory.learns_places else band_of(N, memory.widths)
    sampling = samples * (band or N)
    if memory.policy.constant:
        return N * (N + tokens) if memory.sticky == "off" else sampling + N * (samples + tokens)
    uneven = memory.room != "even" or memory.policy.learned
    pooling = tokens * (samples if uneven else touched(samples, tokens))
    return sampling + pooling + grid_tiles(memory)[0].operations


def operators_of(memory: MemoryConfig, segment_length: int) -> float:
    """Bytes of the precomputed operators."""
    if memory.policy.constant:
        return sum(x.nbytes for x in operators(memory, segment_length).values())
    return sum(t.entries.nbytes for t in grid_tiles(memory))


def kept_of_writes(config: ModelConfig, memory: MemoryConfig, layout: Layout, stm: int) -> float:
    """Operators that autograd keeps of every write, for the gradients of the old signal and of the new tokens, and of
    their weights."""
    if not (memory.backprop or memory.room == "salience"):
        return 0.0
    L, N = config.segment_length, memory.basis
    b, S = layout.lanes, layout.segments
    samples = samples_of(memory)
    signals = config.heads / layout.tensor if memory.sticky_heads == "per_head" else 1
    # Where gradients reach the samples' places: the dense form.
    band = None if memory.learns_places else band_of(N, memory.widths)
    sampled = (
        4 * N if band is None else 8 + 4 * band
    )  # the place of a sample's first function, and the functions
    rewritten = (S - 1) * b * signals * samples * sampled
    if memory.policy.constant:
        return 0.0 if memory.sticky == "off" else rewritten
    if memory.room == "even" and not memory.policy.learned:
        return rewritten + S * b * L * (8 + 4 * touched(samples, L))
    if memory.room == "surprise" and not memory.policy.learned:
        return rewritten + S * b * samples * L * 4  # the share of a cell that a token covers
    numbers = stored(config, memory) / layout.tensor
    stream = 4 * b * numbers * (stm + S * L)
    covered = samples * L * (8 + 4)  # for its own gradient, too
    places = 0.0
    if memory.learns_places:  # and everything made from them
        places = 4 * N * (4 * signals * samples + numbers) + 12 * 8 * samples
    return rewritten + stream + S * b * (places + covered)


def weighing(config: ModelConfig, memory: MemoryConfig, layout: Layout) -> Costs:
    """What the weights of tokens cost, by which they share out their room."""
    if memory.room == "even":
        return Costs()
    e, tokens = config.hidden_size, layout.lanes * layout.segments * config.segment_length
    if memory.room == "surprise":  # no backward pass: a third of a product that learns
        return Costs(products=2.0 * e * config.padded_vocab / 3)
    widened = 0 if layout.width == 4 else 4 * e  # the hidden state, in float32
    return Costs(exact=2.0 * e, saved=tokens * (widened + 2 * 4))
