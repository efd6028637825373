"""Local attention: each segment attends to itself, causally, and to the short-term memory before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.linear import ColumnParallelLinear, RowParallelLinear, normal
from infty.layers.positions import rotary_angles, rotate
from infty.parallel import groups, randomness


class LocalAttention(nn.Module):
    """Multi-head attention with grouped keys/values, heads split over tensor-parallel ranks.

    All segments of a window are computed at once. The short-term memory follows Transformer-XL (Dai et al.,
    arXiv 1901.02860): every token of a segment sees the `stm` tokens before the segment, if they belong to the same
    document. Keys are kept unrotated, so that positions are relative to the window.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.segment_length, self.stm = config.segment_length, config.stm_of(layer)
        self.head_size, self.group = config.head_size, config.heads // config.kv_heads
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.rotary = config.rope_theta if config.positions == "rotary" else None
        self.dropout = config.dropout
        # For each key/value head: its group of queries, its key, its value. So any slice by heads is whole.
        width = config.kv_heads * (self.group + 2) * self.head_size
        self.qkv = ColumnParallelLinear(
            config.hidden_size, width, normal(f"{layer}.qkv", config.init_std), bias=config.bias)
        self.out = RowParallelLinear(
            config.heads * self.head_size, config.hidden_size,
            normal(f"{layer}.attention.out", config.init_std / math.sqrt(2 * config.layers)), bias=config.bias)

    def project(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [T, b, e] -> queries [b, K, G, T, d], keys and values [b, K, T, d] of this rank's heads."""
        T, b, _ = h.shape
        qkv = self.qkv(h).view(T, b, self.kv_heads, self.group + 2, self.head_size).permute(1, 2, 3, 0, 4)
        return qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]

    def forward(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Attend. `keys` and `values` [b, K, stm+T, d] begin with the short-term memory; `seen` int64 [b, S] is the
        number of segments of its document before each segment. Returns [T, b, H/tp * d]."""
        b, K, G, T, d = q.shape
        L, S = self.segment_length, T // self.segment_length
        if self.rotary:
            cos, sin = rotary_angles(self.stm + T, d, self.rotary, q.device)
            q, keys = rotate(q, cos[self.stm:], sin[self.stm:]), rotate(keys, cos, sin)
        q = q.reshape(b, K * G, S, L, d).transpose(1, 2).flatten(0, 1)  # [b*S, H, L, d]
        keys, values = (self._by_segment(x) for x in (keys, values))
        dropout = self.dropout if self.training else 0.0
        with randomness.sharded():
            z = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=self._mask(seen), is_causal=self.stm == 0, dropout_p=dropout,
                enable_gqa=G > 1)
        return z.view(b, S, K * G, L, d).permute(1, 3, 0, 2, 4).reshape(T, b, K * G * d)

    def _by_segment(self, x: Tensor) -> Tensor:
        """[b, K, stm+T, d] -> [b*S, K, stm+L, d]: what each segment may see, overlapping."""
        L = self.segment_length
        return x.unfold(2, self.stm + L, L).permute(0, 2, 1, 4, 3).flatten(0, 1)

    def _mask(self, seen: Tensor) -> Tensor | None:
        """True where a token may look, [b*S, 1, L, stm+L]; None where plain causality says it all."""
        if self.stm == 0:
            return None
        L, stm = self.segment_length, self.stm
        key = torch.arange(stm + L, device=seen.device)
        causal = key <= torch.arange(L, device=seen.device)[:, None] + stm
        same_document = key >= stm - (seen.flatten() * L).clamp(max=stm)[:, None]
        return (causal & same_document[:, None]).unsqueeze(1)
