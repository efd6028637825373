"""The associative memory of a layer: facts by their keys, in one matrix a head, written by the gated delta rule."""

from __future__ import annotations

import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.layers.linear import RowParallelLinear, normal, sharded_parameter
from infty.layers.memories.base import Costs, Inputs, Layout, Memory, Reading
from infty.memory.associative import (
    initial_biases,
    read_normed,
    segment_map,
    through_segments,
    told,
)
from infty.memory.sections import AssociativeConfig
from infty.parallel import collectives, groups
from infty.parallel.zero3 import touch
from infty.parts import WRITE, part
from infty.tree import Field, Tree


class Associative(Memory):
    """The gated delta rule (arXiv 2412.06464) over the attention's own keys and values, as segments leave the STM.

    A head's matrix maps keys to values; queries that share a key/value head read the same one. Keys and queries have
    length 1. How strongly a token is written, and how much of the old it erases, follow from its key and value. A gate
    a query head starts at zero: a model with a fresh memory is the model without one. (An output matrix that starts at
    zero would do that, too; but what is read has length 1 however little is known, and the optimizer moves such a
    matrix by the learning rate times that in every step: docs/memory.md.)
    """

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.memory: AssociativeConfig = config.memories_of(layer)[name]
        self.delay = config.stm_of(layer) // config.segment_length
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.head_size = config.head_size
        K, d = config.kv_heads, config.head_size
        strength, decay = initial_biases(K)
        self.strength_weight = sharded_parameter(torch.zeros(K, 2 * d))
        self.strength_bias = sharded_parameter(strength)
        self.decay_weight = sharded_parameter(torch.zeros(K, 2 * d))
        self.decay_bias = sharded_parameter(decay)
        self.norm_weight = sharded_parameter(torch.ones(K, config.heads // K, d))
        self.gate = sharded_parameter(torch.zeros(K, config.heads // K))
        std = (config.heads * d) ** -0.5
        self.out = RowParallelLinear(
            config.heads * d, config.hidden_size, normal(f"{layer}.{name}.out", std)
        )

    def fields(self, dtype: torch.dtype) -> Tree:
        """One matrix a key/value head, in float32."""
        return Tree(
            {
                "matrix": Field(
                    (self.kv_heads, self.head_size, self.head_size), torch.float32, split=True
                )
            }
        )

    @classmethod
    def costs(
        cls, config: ModelConfig, layer: int, memory: AssociativeConfig, layout: Layout
    ) -> Costs:
        return costs(config, layer, layout)

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`."""
        with part(WRITE):
            maps = self._maps(inputs)
            found, matrix = through_segments(
                maps, state["matrix"], inputs.seen, self.delay, inputs.enabled
            )
        z = read_normed(inputs.q, found, self.norm_weight, self.gate)
        z = z.permute(3, 0, 1, 2, 4).flatten(2)  # [T, b, H/tp * d]
        z = z + touch(self.strength_weight, self.strength_bias, self.decay_weight, self.decay_bias)
        figures = self._figures(maps, matrix) if inputs.statistics else None
        return Reading(
            Tree({"matrix": matrix}), update=self.out(z.to(inputs.q.dtype)), figures=figures
        )

    def _maps(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """What writing each segment that leaves the STM does to the matrices: M, C float32 [b, K, S, d, d] each."""
        tokens = inputs.q.shape[3]
        keys = inputs.keys[:, :, :tokens]
        values = inputs.values[:, :, :tokens]
        if not self.memory.backprop:
            keys, values = keys.detach(), values.detach()
        tokens_told = told(
            keys,
            values,
            (self.strength_weight, self.strength_bias),
            (self.decay_weight, self.decay_bias),
        )
        return segment_map(*(x.unflatten(2, (inputs.seen.shape[1], -1)) for x in tokens_told))

    @torch.no_grad()
    def _figures(self, maps: tuple[Tensor, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        """Means over lanes and heads: the norm of a matrix, and the share of one that a segment's writing keeps."""
        size = self.head_size
        figures = torch.stack(
            [matrix.norm(dim=(-2, -1)).mean(), maps[0].diagonal(dim1=-2, dim2=-1).mean()]
        )
        figures = collectives.sum_(figures) / groups.tensor_size()
        return {"matrix_norm": figures[0] / size**0.5, "kept": figures[1]}


def costs(config: ModelConfig, layer: int, layout: Layout) -> Costs:
    """See `Memory.costs`."""
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    H, K = config.heads, config.kv_heads
    system = 2.0 * L * d + 2.0 * L * d  # keys by keys; the triangular system for keys and values
    maps = 2.0 * d * 2 * d + 2.0 * d**3 / L
    return Costs(
        products=2.0 * e * H * d,
        reads=2.0 * H * d * d,
        exact=K * (system + maps + 8.0 * d),
        moved=4.0 * 4 * K * L,
        launches=SEGMENT_LAUNCHES,
        saved=_saved(config, layout, config.stm_of(layer)),
        saved_together=_projected(config, layout),
    )


SEGMENT_LAUNCHES = 8
"""Kernels that a segment of the recurrence launches; the maps of a window are some thirty together."""


def _saved(config: ModelConfig, layout: Layout, stm: int) -> float:
    """Bytes that autograd keeps of a window."""
    d, L, w = config.head_size, config.segment_length, layout.width
    n = layout.lanes * layout.segments * L
    heads, kv = config.heads / layout.tensor, config.kv_heads / layout.tensor
    queries = 0.0 if w == 4 else 4 * n * d * heads
    told = 2 * 4 * n * kv * d * (1 + stm / (layout.segments * L) if w == 4 else 1)
    systems = 4 * n * kv * (5 * L + 6 * d)
    matrices = 4 * n / L * d * d * (heads + 2 * kv)
    reads = (3 * 4 + w) * n * heads * d
    return queries + told + systems + matrices + reads + 4 * n * (8 * kv + 4 * heads)


def _projected(config: ModelConfig, layout: Layout) -> float:
    """In float32 the queries are a view of all that was projected; in bf16 they are copied."""
    n = layout.lanes * layout.segments * config.segment_length
    whole = 4 * n * config.head_size * (config.heads + 2 * config.kv_heads) / layout.tensor
    return whole if layout.width == 4 else 0.0
