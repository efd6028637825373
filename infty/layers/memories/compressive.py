"""The compressed memory of the compressive transformer (Rae et al., ICLR 2020; arXiv 1911.05507)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.attention import LocalAttention
from infty.layers.linear import ColumnParallelLinear, normal
from infty.layers.memories.base import Attended, Costs, Inputs, Layout, Memory, Reading
from infty.memory.sections import CompressiveConfig
from infty.parallel import collectives, groups
from infty.tree import Field, Tree


class Compressive(Memory):
    """Segments that leave the short-term memory are compressed, `ratio` tokens to one, by a convolution.

    Stored are hidden states (what the layer's projections read), each rank its heads' slices; their keys and values
    are made with the current weights. The attention-reconstruction loss (section 3.2 of the paper) compares what the
    current segment reads, by content alone, from the tokens that leave and from what they are compressed to.
    """

    attends = True

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.memory: CompressiveConfig = config.memories_of(layer)[name]
        self.segment_length = config.segment_length
        self.stm = config.stm_of(layer)
        self.delay = self.stm // config.segment_length
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.heads = config.heads
        self.head_size = config.head_size
        self.share = config.heads // groups.tensor_size()
        self.each = config.segment_length // self.memory.ratio
        inputs = self.memory.ratio * config.hidden_size
        # The stream's name is older than the memory's kind; a seed still draws the weights that it drew then.
        init = normal(f"{layer}.compressed", 1 / math.sqrt(inputs))
        self.convolution = ColumnParallelLinear(inputs, config.hidden_size, init, bias=True)

    def fields(self, dtype: torch.dtype) -> Tree:
        """Hidden states: the compressed, newest last, and those in the STM, which are not compressed yet."""
        return Tree(
            {
                "compressed": Field(
                    (self.share, self.memory.length, self.head_size), dtype, split=True
                ),
                "pending": Field((self.share, self.stm, self.head_size), dtype, split=True),
            }
        )

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Compress what leaves the short-term memory; see `Memory.forward`. The penalty is the weighted
        reconstruction loss of every token."""
        content = self.content(inputs.normed)
        stream = torch.cat([state["pending"].to(content.dtype), content], 2)
        keys, values, penalty, kept = self._compress(inputs, stream, state["compressed"])
        visible = self.visible(inputs.seen) * inputs.enabled
        pending = stream[:, :, stream.shape[2] - self.stm :].clone()
        return Reading(
            Tree({"compressed": kept, "pending": pending}),
            penalty=penalty,
            attended=Attended(keys, values, visible, self.memory.length, self.each),
        )

    @classmethod
    def costs(
        cls, config: ModelConfig, layer: int, memory: CompressiveConfig, layout: Layout
    ) -> Costs:
        return costs(config, layer, memory, layout)

    def content(self, h: Tensor) -> Tensor:
        """This rank's slices of the hidden state h [T, b, e] (whole): [b, h, T, c]."""
        return collectives.split(h, -1).unflatten(-1, (self.share, -1)).permute(1, 2, 0, 3)

    def compress(self, stream: Tensor) -> Tensor:
        """[b, h, T, c] -> [b, h, T/ratio, c]: a convolution over tokens whose stride is its width."""
        whole = _whole(stream)  # [T, b, e]
        grouped = (
            whole.unflatten(0, (-1, self.memory.ratio)).transpose(1, 2).flatten(2)
        )  # [T/ratio, b, ratio*e]
        return self.convolution(grouped).unflatten(-1, (self.share, -1)).permute(1, 2, 0, 3)

    def _compress(
        self, inputs: Inputs, stream: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compress what leaves the short-term memory in a window of S segments.

        stream [b, h, stm+T, c], the hidden states of the STM and the window; old [b, h, n, c]. Returns keys and values
        of the old and the new memories [b, K, n + T/ratio, d] each (segment s may see n of them, from s * each); the
        weighted reconstruction loss of every token, float32 [b, T]; the memories to keep [b, h, n, c].
        """
        T = inputs.q.shape[3]
        n = old.shape[2]
        leaving = stream[:, :, :T]
        trained = self.compress(leaving.detach())  # by the reconstruction loss
        new = self.compress(leaving) if self.memory.backprop else trained.detach()
        memories = torch.cat([old.to(new.dtype), new], 2)
        _, key, value = inputs.attention.project(_whole(memories))
        loss = self._reconstruction(
            inputs.attention,
            inputs.q.detach(),
            inputs.keys[:, :, :T].detach(),
            inputs.values[:, :, :T].detach(),
            trained,
            inputs.seen,
        )
        kept = memories[:, :, memories.shape[2] - n :]
        own = torch.arange(n, device=kept.device) >= n - self.visible(inputs.seen[:, -1:] + 1)
        kept = torch.where(own[:, None, :, None], kept, 0.0)  # nothing of earlier documents stays
        return key, value, loss, kept

    def _reconstruction(
        self,
        attention: LocalAttention,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        new: Tensor,
        seen: Tensor,
    ) -> Tensor:
        """Mean squared difference of the two readings, over heads and channels; 0 where nothing leaves."""
        S = seen.shape[1]
        _, key, value = attention.project(_whole(new), frozen=True)
        queries = q.unflatten(3, (S, -1)).permute(0, 3, 1, 2, 4, 5).flatten(2, 3)  # [b, S, H, L, d]

        def read(k: Tensor, v: Tensor) -> Tensor:
            k, v = (x.unflatten(2, (S, -1)).transpose(1, 2) for x in (k, v))  # [b, S, K, tokens, d]
            return F.scaled_dot_product_attention(
                queries.flatten(0, 1),
                k.flatten(0, 1),
                v.flatten(0, 1),
                enable_gqa=queries.shape[2] != k.shape[2],
            )

        square = (
            (read(keys, values) - read(key, value)).float().square().mean(-1).sum(1)
        )  # [b*S, L]
        square = collectives.reduce(square).unflatten(0, seen.shape) / self.heads
        leaves = (seen >= self.delay)[..., None]
        return self.memory.reconstruction_weight * torch.where(leaves, square, 0 * square).flatten(
            1
        )

    def visible(self, seen: Tensor) -> Tensor:
        """int64 [b, S]: how many of the newest memories are of each segment's document."""
        return ((seen - self.delay) * self.each).clamp(0, self.memory.length)


def costs(config: ModelConfig, layer: int, memory: CompressiveConfig, layout: Layout) -> Costs:
    """See `Memory.costs`: the convolution and the projections, both for the loss, too; attention to the memories; the
    two reads of the reconstruction loss."""
    e, d, L = config.hidden_size, config.head_size, config.segment_length
    H, K = config.heads, config.kv_heads
    n = memory.length
    convolutions = 2 * 2.0 * e * e
    projections = 2.0 * e * d * (H + 2 * K) * (2 / memory.ratio + n / L)
    return Costs(
        products=convolutions + projections + 4.0 * H * d * (n + L + L / memory.ratio),
        extra_keys=n,
        saved=_saved(config, memory, layout),
        # Gathered to be compressed, and what is kept to be projected; twice for the loss.
        sent=layout.width * L * e * (2 + 2 / memory.ratio + n / L / layout.segments),
        collectives=4,
    )


def _saved(config: ModelConfig, memory: CompressiveConfig, layout: Layout) -> float:
    """What the convolution and the projection of the memories read, and the reconstruction loss."""
    w, e, d = layout.width, config.hidden_size, config.head_size
    n = layout.lanes * layout.segments * config.segment_length
    new = n / memory.ratio
    convolved = w * n * e * (2 if memory.backprop else 1)
    projected = w * (layout.lanes * memory.length + new) * e
    heads = config.heads / layout.tensor
    reads = n * heads * (d * (2 * w + 4) + 4) + 2 * w * new * config.kv_heads / layout.tensor * d
    return convolved + projected + reads


def _whole(x: Tensor) -> Tensor:
    """This rank's slices [b, h, t, c] -> the hidden states they are part of, [t, b, e]."""
    return collectives.gather(x.permute(2, 0, 1, 3).flatten(2), -1)
