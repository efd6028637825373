"""What followed: an associative memory from a context to the token that came next, read to predict the next one."""

from __future__ import annotations

import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.layers.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    eye,
    normal,
    sharded_parameter,
)
from infty.layers.memories.base import Costs, Inputs, Layout, Memory, Reading
from infty.memory.associative import (
    GATE_SCALE,
    initial_biases,
    read,
    segment_map,
    through_segments,
    told_after,
)
from infty.memory.sections import ContinuationConfig
from infty.parallel import collectives, groups
from infty.parallel.zero3 import touch
from infty.parts import WRITE, part
from infty.tree import Field, Tree


class Continuation(Memory):
    """The gated delta rule (arXiv 2412.06464) from the hidden state before a token to that token's row of the output
    matrix.

    Adding a token's row to the residual stream of the last layers raises the token's logit: what is read is a
    prediction, "in this book, after something like this came ...". That is what a cache of bigrams knows, in constant
    space and with contexts that are learned. A gate a head starts at zero: a fresh memory changes nothing. Values take
    no gradient: the memory does not pull at the rows it stores.
    """

    predicts = True

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.memory: ContinuationConfig = config.memories_of(layer)[name]
        self.segment_length = config.segment_length
        self.stm = config.stm_of(layer)
        self.delay = self.stm // config.segment_length
        self.heads = config.heads // groups.tensor_size()
        self.value_size = config.hidden_size // config.heads
        e, H, k = config.hidden_size, config.heads, self.memory.key_size
        self.key = ColumnParallelLinear(e, H * k, normal(f"{layer}.{name}.key", e**-0.5))
        self.strength_weight = sharded_parameter(torch.zeros(H, k + self.value_size))
        strength, decay = initial_biases(H)
        self.strength_bias = sharded_parameter(strength)
        self.decay_weight = sharded_parameter(torch.zeros(H, k + self.value_size))
        self.decay_bias = sharded_parameter(decay)
        self.gate = sharded_parameter(torch.zeros(H))
        self.out = RowParallelLinear(e, e, eye)

    def fields(self, dtype: torch.dtype) -> Tree:
        """A matrix a head, and what is in the STM: the keys of one token more, since a token goes with the key before
        it."""
        H, k, d = self.heads, self.memory.key_size, self.value_size
        fields = {
            "matrix": Field((H, k, d), torch.float32, split=True),
            "keys": Field((H, self.stm + 1, k), dtype, split=True),
        }
        if self.stm:
            fields["values"] = Field((H, self.stm, d), dtype, split=True)
        return Tree(fields)

    @classmethod
    def costs(
        cls, config: ModelConfig, layer: int, memory: ContinuationConfig, layout: Layout
    ) -> Costs:
        return costs(config, layer, memory, layout)

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`."""
        key = self._by_head(self.key(inputs.normed))
        assert inputs.output_rows is not None
        value = self._by_head(collectives.split(inputs.output_rows, -1)).to(key.dtype)
        keys = torch.cat([state["keys"].to(key.dtype), key], 2)  # [b, H, stm+1+T, k]
        values = (
            torch.cat([state["values"].to(key.dtype), value], 2) if self.stm else value
        )  # [b, H, stm+T, d]
        with part(WRITE):
            maps = self._maps(keys, values, inputs.seen)
            found, matrix = through_segments(
                maps, state["matrix"], inputs.seen, self.delay, inputs.enabled
            )
        z = read(key[:, :, None], found)[:, :, 0] * (GATE_SCALE * self.gate.float())[:, None, None]
        z = z.permute(2, 0, 1, 3).flatten(2)  # [T, b, H/tp * d]
        z = z + touch(self.strength_weight, self.strength_bias, self.decay_weight, self.decay_bias)
        new = {"matrix": matrix, "keys": _tail(keys, self.stm + 1)}
        if self.stm:
            new["values"] = _tail(values, self.stm)
        return Reading(
            Tree(new),
            update=self.out(z.to(inputs.q.dtype)),
            figures=self._figures(matrix) if inputs.statistics else None,
        )

    def _by_head(self, x: Tensor) -> Tensor:
        """[T, b, H/tp * n] -> [b, H/tp, T, n]."""
        return x.unflatten(-1, (self.heads, -1)).permute(1, 2, 0, 3)

    def _maps(self, keys: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What writing each segment that leaves the STM does to the matrices: [b, H, S, k, k] and [b, H, S, k, d]."""
        tokens = seen.shape[1] * self.segment_length
        strength = (self.strength_weight, self.strength_bias)
        decay = (self.decay_weight, self.decay_bias)
        told = told_after(
            keys[:, :, :tokens], values[:, :, :tokens], seen == self.delay, strength, decay
        )
        return segment_map(*(x.unflatten(2, (seen.shape[1], -1)) for x in told))

    @torch.no_grad()
    def _figures(self, matrix: Tensor) -> dict[str, Tensor]:
        """Means over the heads of the layer: their gates, and the size of a lane's matrices."""
        gate = GATE_SCALE * self.gate.detach().float()
        size = matrix.square().mean((-2, -1)).sqrt()
        figures = collectives.sum_(torch.stack([gate.mean(), size.mean()])) / groups.tensor_size()
        return {"gate": figures[0], "matrix_size": figures[1]}


def _tail(tokens: Tensor, length: int) -> Tensor:
    """The last `length` tokens; a copy, or the state would keep the whole window's storage."""
    return tokens[:, :, tokens.shape[2] - length :].clone()


def costs(config: ModelConfig, layer: int, memory: ContinuationConfig, layout: Layout) -> Costs:
    """See `Memory.costs`."""
    e, d, L, H, k = (
        config.hidden_size,
        config.hidden_size // config.heads,
        config.segment_length,
        config.heads,
        memory.key_size,
    )
    exact = H * (2.0 * L * k + L * (k + d) + 2.0 * k * (k + d) + 2.0 * k * k * d / L)
    n = layout.lanes * layout.segments * L
    w, heads = layout.width, H / layout.tensor
    systems = 4 * n * heads * (5 * L + 7 * k + 4 * d + 10)
    matrices = 4 * n / L * heads * k * (k + 2 * d)
    projected = w * n * heads * d
    return Costs(
        products=2.0 * e * H * k + 2.0 * e * e,
        reads=2.0 * H * k * d,
        exact=exact,
        moved=4.0 * 4 * H * L,
        launches=8,
        saved=systems + matrices + projected,
    )
