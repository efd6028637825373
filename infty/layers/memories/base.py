"""The contract of a layer's memories: what a block gives a memory, what it gets back, and what everyone else may ask.

A memory is a module with parameters, without state: its state goes in and comes out. It declares that state (`fields`)
and describes itself for the planner (`costs`); checkpoints, resets, quarantine, tensor parallelism, TensorBoard and
`infty plan` need nothing else. A new kind is one class and one line in `infty.memory_kinds.KINDS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from infty.memory.costs import Costs, Layout
from infty.tree import Tree

if TYPE_CHECKING:
    import torch

    from infty.config import ModelConfig
    from infty.layers.attention import LocalAttention
    from infty.parallel.region import Region


class Inputs(NamedTuple):
    """What a memory may read of a window. (A tuple: ZeRO-3 looks for a module's tensors in tuples and dicts.)

    b lanes, S segments of L tokens, T = S * L; K key/value heads and G query heads for each, this rank's share.
    """

    q: Tensor
    """[b, K, G, T, d]: the attention's queries, unrotated."""
    keys: Tensor
    """[b, K, stm + T, d]: its keys, unrotated; they begin with the short-term memory."""
    values: Tensor
    """[b, K, stm + T, d]."""
    normed: Tensor
    """[T, b, e]: the layer's input after its first norm, all tokens."""
    residual: Tensor
    """[T, b, e]: the layer's input; under sequence parallelism this rank's tokens (see `region.enter`)."""
    output_rows: Tensor | None
    """[T, b, e]: the tokens' rows of the output matrix, which predict them (with tied embeddings, the tokens'
    embeddings), all tokens; None unless a memory of the model `predicts`."""
    seen: Tensor
    """int64 [b, S]: how many segments of its document come before each segment; 0: a document begins."""
    attention: LocalAttention
    """For memories that use its projections."""
    region: Region
    enabled: bool
    """False: nothing is remembered (evaluation without memory)."""
    statistics: bool
    """Whether figures are wanted."""
    losses: Tensor | None = None
    """float32 [b, S, L - 1]: of all tokens of a segment but its first, the loss under what the layer's input at the
    token before predicts through the model's last norm and output matrix, without gradients; None unless the memory is
    `surprised`."""
    pictures: bool = False
    """Whether pictures are wanted."""


class Attended(NamedTuple):
    """Keys and values that local attention sees before the short-term memory.

    With relative positions each counts as one position; with rotary ones all stand where the oldest token in sight
    stands.
    """

    keys: Tensor
    """[b, K, n + S*each, d], oldest first: segment s may see n of them, from s*each."""
    values: Tensor
    visible: Tensor
    """int64 [b, S]: how many of these n, the newest, are of the segment's document."""
    length: int
    """n"""
    each: int
    """How many each segment adds."""
    prior: float = 0.0
    """Added to the scores of queries with these keys."""


class Picture(NamedTuple):
    """What a memory shows of its first lane: a curve or a heat-map, equal on all ranks of a tensor-parallel group."""

    values: Tensor
    """[n], or [rows, n]; NaN where there is nothing."""
    across: str
    """What lies along the last dimension, in words."""
    ends: tuple[float, float] = (0.0, 1.0)
    """Where the last dimension begins and ends."""
    down: str = ""
    """What lies along the rows; of a curve, what its values are."""
    sides: tuple[float, float] = (0.0, 1.0)
    """Where the rows begin and end."""
    told: str = ""
    """What else a reader has to know."""


class Reading(NamedTuple):
    """What a memory gives for a window: an update of the residual stream, or something to attend to."""

    state: Tree
    """The new state, of the memory's `fields`."""
    update: Tensor | None = None
    """[T, b, e]: added to the residual stream; this rank's partial sum, in the compute dtype."""
    attended: Attended | None = None
    """Of memories that attend, and of no others."""
    penalty: Tensor | None = None
    """float32 [b, T]: what is added to every token's loss."""
    figures: dict[str, Tensor] | None = None
    """Scalars for monitoring, equal on all ranks of a tensor-parallel group; None unless asked for."""
    pictures: dict[str, Picture] | None = None
    """By their names; None unless asked for."""


class Memory(nn.Module):
    """One memory of one layer. Subclasses set what is not implemented here."""

    attends: bool = False
    """Whether its readings have `attended`: local attention waits for it then."""
    predicts: bool = False
    """Whether it wants `inputs.output_rows`."""
    surprised: bool = False
    """Whether it wants `inputs.losses`."""

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        """`name` is the memory's in the config; weights are drawn from streams named after it and the layer."""
        super().__init__()

    def fields(self, dtype: torch.dtype) -> Tree:
        """The state of a lane on this rank: a tree of `infty.tree.Field`. `dtype` is that of the run."""
        raise NotImplementedError

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window.

        At a document's first segment nothing of an earlier document may be read. Where `inputs.enabled` is False,
        nothing may be read at all. The result of a lane must not depend on the others.
        """
        raise NotImplementedError

    @classmethod
    def variant(cls, memory: Any) -> type[Memory]:
        """The class for a section of this kind, where a kind has several."""
        return cls

    @classmethod
    def costs(cls, config: ModelConfig, layer: int, memory: Any, layout: Layout) -> Costs:
        """What the memory costs; `memory` is its section of the config for this layer."""
        raise NotImplementedError
