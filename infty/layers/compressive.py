"""The compressed memory of the compressive transformer (Rae et al., ICLR 2020; arXiv 1911.05507)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.attention import LocalAttention
from infty.layers.linear import ColumnParallelLinear, normal
from infty.parallel import collectives, groups


class CompressedMemory(nn.Module):
    """Segments that leave the short-term memory are compressed, `ratio` tokens to one, by a convolution.

    Stored are hidden states (what the layer's projections read), each rank its heads' slices; their keys and values
    are made with the current weights. The attention-reconstruction loss (section 3.2 of the paper) compares what the
    current segment reads, by content alone, from the tokens that leave and from what they are compressed to.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config.compressed
        self.segment_length, self.delay = config.segment_length, config.stm_of(layer) // config.segment_length
        self.kv_heads, self.heads = config.kv_heads // groups.tensor_size(), config.heads
        self.share = config.heads // groups.tensor_size()
        self.each = config.segment_length // self.config.ratio
        inputs = self.config.ratio * config.hidden_size
        self.convolution = ColumnParallelLinear(
            inputs, config.hidden_size, normal(f"{layer}.compressed", 1 / math.sqrt(inputs)), bias=True)

    def content(self, h: Tensor) -> Tensor:
        """This rank's slices of the hidden state h [T, b, e] (whole): [b, h, T, c]."""
        return collectives.split(h, -1).unflatten(-1, (self.share, -1)).permute(1, 2, 0, 3)

    def compress(self, stream: Tensor) -> Tensor:
        """[b, h, T, c] -> [b, h, T/ratio, c]: a convolution over tokens whose stride is its width."""
        whole = _whole(stream)  # [T, b, e]
        grouped = whole.unflatten(0, (-1, self.config.ratio)).transpose(1, 2).flatten(2)  # [T/ratio, b, ratio*e]
        return self.convolution(grouped).unflatten(-1, (self.share, -1)).permute(1, 2, 0, 3)

    def forward(self, attention: LocalAttention, q: Tensor, keys: Tensor, values: Tensor, stream: Tensor, seen: Tensor,
                old: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Compress what leaves the short-term memory in a window of S segments.

        q [b, K, G, T, d]; keys, values [b, K, stm+T, d]; stream [b, h, stm+T, c], the hidden states they were made
        of; seen int64 [b, S]; old [b, h, n, c]. Returns keys and values of the old and the new memories
        [b, K, n + T/ratio, d] each (segment s may see n of them, from s * each); the weighted reconstruction loss of
        every token, float32 [b, T]; the memories to keep [b, h, n, c].
        """
        T, n = q.shape[3], old.shape[2]
        leaving = stream[:, :, :T]
        trained = self.compress(leaving.detach())  # by the reconstruction loss
        new = self.compress(leaving) if self.config.backprop else trained.detach()
        memories = torch.cat([old.to(new.dtype), new], 2)
        _, key, value = attention.project(_whole(memories))
        loss = self._reconstruction(attention, q.detach(), keys[:, :, :T].detach(), values[:, :, :T].detach(),
                                    trained, seen)
        kept = memories[:, :, memories.shape[2] - n:]
        own = torch.arange(n, device=kept.device) >= n - self.visible(seen[:, -1:] + 1)
        return (key, value), loss, torch.where(own[:, None, :, None], kept, 0.0)  # nothing of earlier documents stays

    def _reconstruction(self, attention: LocalAttention, q: Tensor, keys: Tensor, values: Tensor, new: Tensor,
                        seen: Tensor) -> Tensor:
        """Mean squared difference of the two readings, over heads and channels; 0 where nothing leaves."""
        S = seen.shape[1]
        _, key, value = attention.project(_whole(new), frozen=True)
        queries = q.unflatten(3, (S, -1)).permute(0, 3, 1, 2, 4, 5).flatten(2, 3)  # [b, S, H, L, d]

        def read(k: Tensor, v: Tensor) -> Tensor:
            k, v = (x.unflatten(2, (S, -1)).transpose(1, 2) for x in (k, v))  # [b, S, K, tokens, d]
            return F.scaled_dot_product_attention(queries.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1),
                                                  enable_gqa=queries.shape[2] != k.shape[2])

        square = (read(keys, values) - read(key, value)).float().square().mean(-1).sum(1)  # [b*S, L]
        square = collectives.reduce(square).unflatten(0, seen.shape) / self.heads
        leaves = (seen >= self.delay)[..., None]
        return self.config.reconstruction_weight * torch.where(leaves, square, 0 * square).flatten(1)

    def visible(self, seen: Tensor) -> Tensor:
        """int64 [b, S]: how many of the newest memories are of each segment's document."""
        return ((seen - self.delay) * self.each).clamp(0, self.config.length)


def _whole(x: Tensor) -> Tensor:
    """This rank's slices [b, h, t, c] -> the hidden states they are part of, [t, b, e]."""
    return collectives.gather(x.permute(2, 0, 1, 3).flatten(2), -1)
