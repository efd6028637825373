"""The contract of a layer's memories in the transformers model: read a piece, write where a segment
ends.

It is that of `infty.layers.memories.base` for text that comes in pieces of any length: a memory is
a module without state, which goes in and comes out. A new kind of memory has a twin when it has a
class here and a line in `kinds_infty`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from infty.hf.pieces_infty import Piece
from infty.hf.state_infty import PartState
from infty.tree import Tree

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig


Losses = Callable[[Tensor, Tensor], Tensor]
"""float32 [b, n]: of tokens int64 [b, n], as streams [b, n, e] predict them through the model's last
norm and its head, without gradients."""


class Inputs(NamedTuple):
    """What a memory may read of a piece: b rows, t tokens, K key/value heads and G query heads for
    each."""

    q: Tensor
    """[b, K, G, t, d]: the attention's queries, unrotated."""
    normed: Tensor
    """[b, t, e]: the layer's input after its first norm. Its dtype is what projections are given: a
    weight's own says nothing when it is quantised."""
    residual: Tensor
    """[b, t, e]: the layer's input."""
    output_rows: Tensor | None
    """[b, t, e]: the tokens' rows of the output matrix, which predict them (with tied embeddings,
    the tokens' embeddings); None unless a memory of the model `predicts`."""
    piece: Piece
    tokens: Tensor | None = None
    """int64 [b, t]; None unless a memory of the model is `surprised`."""


class Ended(NamedTuple):
    """What a memory may write where the segment of a row ends."""

    keys: Tensor
    """[b, K, stm + L, d]: of the short-term memory and the segment, unrotated."""
    values: Tensor
    """[b, K, stm + L, d]."""
    piece: Piece
    """The last of the segment; `complete` says in which rows it ends."""
    enabled: bool
    """False: nothing is written."""
    losses: Losses | None = None
    """For a memory that is `surprised`."""


class Attended(NamedTuple):
    """Keys and values that local attention sees before the short-term memory. With rotary positions
    they stand where the oldest token in sight stands."""

    keys: Tensor
    """[b, K, n, d]"""
    values: Tensor
    visible: Tensor
    """bool [b]: the rows that see them."""
    prior: float
    """Added to the scores of queries with these keys."""


class Reading(NamedTuple):
    """What a memory gives for a piece: an update of the residual stream, or what is attended to."""

    state: PartState
    update: Tensor | None = None
    """[b, t, e]"""
    attended: Attended | None = None
    """Of memories that attend, and of no others."""


class InftyModule(nn.Module):
    """A module with parameters of its own, outside layers that transformers knows."""

    def initialise(self) -> None:
        """Fill them for a new model, with the functions of `transformers.initialization`, which
        leave alone what was loaded. The layers in it have been filled before."""


class InftyMemory(InftyModule):
    """One memory of one layer."""

    predicts: bool = False
    """Whether it wants `inputs.output_rows`."""
    surprised: bool = False
    """Whether it wants `inputs.tokens` and `ended.losses`."""

    def __init__(self, config: InftyConfig, layer: int, memory: Any) -> None:
        """`memory` is its section of the config, for this layer."""
        super().__init__()
        self.memory, self.layer = memory, layer
        self.segment_length = config.segment_length
        self.delay = config.stm_of(layer) // config.segment_length
        """Segments in the short-term memory, which are written when they leave it."""
        self.kv_heads = config.num_key_value_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.head_size = config.head_dim

    def fields(self, dtype: torch.dtype) -> Tree:
        """What a row keeps from segment to segment: a tree of `infty.tree.Field`. dtype: of the
        residual stream."""
        raise NotImplementedError

    def forward(self, given: Inputs | Ended, state: PartState) -> Any:
        """`read` or `write`: both by a call of the module, which is where weights that are kept
        elsewhere (offloaded, sharded) are fetched."""
        return self.write(given, state) if isinstance(given, Ended) else self.read(given, state)

    def read(self, inputs: Inputs, state: PartState) -> Reading:
        """Read with a piece's tokens what was written before their segment began."""
        raise NotImplementedError

    def write(self, ended: Ended, state: PartState) -> PartState:
        """Write, in rows whose segment is complete, the segment that leaves the short-term memory.
        A row's result must not depend on the others."""
        raise NotImplementedError

    def mark_shape(self) -> tuple[int, int] | None:
        """Heads h and rows n of what `write_marks` keeps; None: it cannot be told which tokens a
        read comes from.

        What a memory holds is a sum over the values that were written, and so is what is read. When
        marks are written in the place of values, by the same weights, reading them says how much of
        a read each token's value is. A mark is one of m numbers that a token has.
        """
        return None

    def read_marks(self, inputs: Inputs, state: PartState, marks: Tensor) -> Tensor | Attended:
        """How much of what `read` reads has each mark: float32 [b, H, t, m]. Of a memory that
        attends, what is attended to, with marks as values.

        state: of the `Reading` of the same inputs; marks float32 [b, h, n, m].
        """
        raise NotImplementedError

    def write_marks(self, ended: Ended, state: PartState, marks: Tensor, new: Tensor) -> Tensor:
        """The marks [b, h, n, m] after `write` of the same arguments; new float32 [b, L, m]: of the
        tokens of the segment that leaves the short-term memory."""
        raise NotImplementedError

    def share_of(self, state: PartState, marks: Tensor) -> Tensor:
        """How much of the memory each mark has: float32 [b, m], >= 0."""
        return marks.square().sum((1, 2))

    def ready(self, ended: Ended) -> Tensor:
        """bool [b]: rows in which a segment leaves the short-term memory."""
        return ended.piece.complete & (ended.piece.segments >= self.delay)

    @classmethod
    def variant(cls, memory: Any) -> type[InftyMemory]:
        """The class for a section of this kind, where a kind has several."""
        return cls

    @classmethod
    def describe(cls, memory: Any) -> str:
        """What the memory is, in words for a model card; `memory` is its section of the config."""
        raise NotImplementedError

    @classmethod
    def projections(cls, memory: Any) -> tuple[str, ...]:
        """Its linear layers, which an adapter (LoRA) may name."""
        raise NotImplementedError


__all__ = ["Attended", "Ended", "InftyMemory", "InftyModule", "Inputs", "Reading"]
