"""Local attention: each segment attends to itself, causally, and to the short-term memory before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.errors import UserError
from infty.layers.linear import ColumnParallelLinear, RowParallelLinear, lora_of, normal
from infty.layers.memories.base import Attended
from infty.layers.relative import RelativePositions
from infty.memory.attending import in_front
from infty.memory.rotary import angles, rotate
from infty.parallel import collectives, groups, randomness
from infty.tree import Field, Tree


class HeadNorm(nn.Module):
    """RMS norm of every head's queries or keys, with one weight [d] for all heads of the layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.head_size))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """[..., d] -> [..., d]. `frozen`: without gradients for the weight."""
        # Each rank sees its heads only: the gradients of all are summed.
        weight = self.weight.detach() if frozen else collectives.copy(self.weight)
        return F.rms_norm(x, [len(weight)], weight, self.eps)


class LocalAttention(nn.Module):
    """Multi-head attention with grouped keys/values, heads split over tensor-parallel ranks.

    All segments of a window are computed at once. The short-term memory follows Transformer-XL (Dai et al.,
    arXiv 1901.02860): every token of a segment sees the `stm` tokens before the segment, if they belong to the same
    document. Keys are kept unrotated, so that positions are relative to the window.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.segment_length, self.stm = config.segment_length, config.stm_of(layer)
        self.sinks = config.sinks_of(layer)
        self.head_size, self.group = config.head_size, config.heads // config.kv_heads
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.window = config.window_of(layer)
        self.rotary = (
            (config.rope_theta, config.rope_scaling) if config.positions == "rotary" else None
        )
        self.relative = RelativePositions(config, layer) if config.positions == "relative" else None
        self.dropout = config.dropout
        # For each key/value head: its group of queries, its key, its value. So any slice by heads is whole.
        width = config.kv_heads * (self.group + 2) * self.head_size
        self.qkv = ColumnParallelLinear(
            config.hidden_size,
            width,
            normal(f"{layer}.qkv", config.init_std),
            bias=config.qkv_bias,
            lora=lora_of(config, layer, "qkv", config.hidden_size),
        )
        self.query_norm = HeadNorm(config) if config.qk_norm else None
        self.key_norm = HeadNorm(config) if config.qk_norm else None
        self.out = RowParallelLinear(
            config.heads * self.head_size,
            config.hidden_size,
            normal(f"{layer}.attention.out", config.init_std / math.sqrt(2 * config.layers)),
            bias=config.attention_out_bias,
            lora=lora_of(config, layer, "attention_out", config.heads * self.head_size),
        )

    def fields(self, dtype: torch.dtype) -> Tree:
        """The short-term memory: unrotated keys and values of the last `stm` tokens, and of the sinks; nothing without
        one."""
        if not self.stm:
            return Tree({})
        field = Field((self.kv_heads, self.stm, self.head_size), dtype, split=True)
        fields = {"key": field, "value": field}
        if self.sinks:
            sink = Field((self.kv_heads, self.sinks, self.head_size), dtype, split=True)
            fields |= {"sink_key": sink, "sink_value": sink}
        return Tree(fields)

    def remember(
        self, keys: Tensor, values: Tensor, state: Tree, seen: Tensor
    ) -> tuple[Tensor, Tensor, list[Attended], Tree]:
        """Keys and values [b, K, T, d] of a window -> the same after those of the short-term memory, the sinks, and
        the new state. `seen`: as in `forward`."""
        if not self.stm:
            return keys, values, [], state
        sinks, new = self._keep_sinks(keys, values, state, seen)
        keys = torch.cat([state["key"].to(keys.dtype), keys], 2)
        values = torch.cat([state["value"].to(values.dtype), values], 2)
        new |= {"key": self._tail(keys), "value": self._tail(values)}
        return keys, values, sinks, Tree(new)

    def _keep_sinks(
        self, keys: Tensor, values: Tensor, state: Tree, seen: Tensor
    ) -> tuple[list[Attended], dict[str, Tensor]]:
        """The first tokens of every segment's document, to be attended to where the short-term memory has left them
        behind; and their new state."""
        if not self.sinks:
            return [], {}
        found: dict[str, Tensor] = {}
        new: dict[str, Tensor] = {}
        for name, tokens in (("sink_key", keys), ("sink_value", values)):
            kept = state[name].to(tokens.dtype)
            first = tokens.unflatten(2, (-1, self.segment_length))[:, :, :, : self.sinks]
            each = []
            for s in range(seen.shape[1]):
                begins = (seen[:, s] == 0)[:, None, None, None]
                kept = torch.where(begins, first[:, :, s], kept)
                each.append(kept)
            found[name] = torch.cat(each, 2)  # [b, K, S*n, d]
            new[name] = kept.clone()
        visible = self.sinks * (seen * self.segment_length > self.stm)
        n = self.sinks
        return [Attended(found["sink_key"], found["sink_value"], visible, n, n)], new

    def _tail(self, tokens: Tensor) -> Tensor:
        """The last `stm` tokens, [b, K, stm, d]; a copy, or the state would keep the whole window's storage."""
        return tokens[:, :, tokens.shape[2] - self.stm :].clone()

    def project(self, h: Tensor, frozen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """h [T, b, e] -> queries [b, K, G, T, d], keys and values [b, K, T, d] of this rank's heads.

        `frozen`: without gradients for the weights.
        """
        T, b, _ = h.shape
        qkv = (
            self.qkv(h, frozen)
            .view(T, b, self.kv_heads, self.group + 2, self.head_size)
            .permute(1, 2, 3, 0, 4)
        )
        q, keys, values = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
        if self.query_norm is not None and self.key_norm is not None:
            q, keys = self.query_norm(q, frozen), self.key_norm(keys, frozen)
        return q, keys, values

    def forward(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        seen: Tensor,
        attended: Sequence[Attended] = (),
    ) -> Tensor:
        """Attend. `keys` and `values` [b, K, stm+T, d] begin with the short-term memory; `seen` int64 [b, S] is the
        number of segments of its document before each segment; `attended` is what memories add to the keys and values.
        Returns [T, b, H/tp * d]."""
        b, K, G, T, d = q.shape
        L, S = self.segment_length, T // self.segment_length
        if self.rotary:
            cos, sin = angles(torch.arange(self.stm + T, device=q.device), d, *self.rotary)
            q, keys = rotate(q, cos[self.stm :], sin[self.stm :]), rotate(keys, cos, sin)
            attended = [self._rotated(memory, cos[:T:L], sin[:T:L]) for memory in attended]
        q = q.reshape(b, K * G, S, L, d).transpose(1, 2).flatten(0, 1)  # [b*S, H, L, d]
        keys, values = (by_segment(x, self.stm + L, L, S) for x in (keys, values))
        mask: Tensor | None = None
        if (
            self.stm or self.window or self.relative is not None or attended
        ):  # otherwise plain causality says it all
            visible = self._mask(seen)
            for memory in attended:
                keys, values, visible = before(memory, keys, values, visible)
            if self.relative is not None:
                q, bias = self.relative(q, keys.shape[2] - L)
                visible = bias.masked_fill(~visible, float("-inf"))
            mask = visible
        dropout = self.dropout if self.training else 0.0
        with randomness.sharded():
            z = F.scaled_dot_product_attention(
                q,
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                enable_gqa=G > 1,
            )
        return z.view(b, S, K * G, L, d).permute(1, 3, 0, 2, 4).reshape(T, b, K * G * d)

    def _rotated(self, memory: Attended, cos: Tensor, sin: Tensor) -> Attended:
        """The keys that each segment sees, rotated to the position of its oldest token in sight (angles [S, d])."""
        if memory.each != memory.length:
            raise UserError("memories whose keys several segments see need relative positions")
        cos, sin = (x.repeat_interleave(memory.length, 0) for x in (cos, sin))
        return memory._replace(keys=rotate(memory.keys, cos, sin))

    def _mask(self, seen: Tensor) -> Tensor:
        """True where a token may look, [b*S, 1, L, stm+L]."""
        L, stm = self.segment_length, self.stm
        key = torch.arange(stm + L, device=seen.device)
        query = torch.arange(L, device=seen.device)[:, None] + stm
        causal = key <= query
        if self.window:
            causal = causal & (key > query - self.window)
        same_document = key >= stm - (seen.flatten() * L).clamp(max=stm)[:, None]
        return (causal & same_document[:, None]).unsqueeze(1)


def before(
    attended: Attended, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys and values [b*S, K, k, d] of all segments and their mask [b*S, 1, L, k], with a memory's in front."""
    n = attended.length
    segments = attended.visible.shape[1]
    key = by_segment(attended.keys, n, attended.each, segments)
    value = by_segment(attended.values, n, attended.each, segments)
    allowed = torch.arange(n, device=mask.device) >= n - attended.visible.flatten()[:, None]
    return in_front((key, value), allowed, attended.prior, keys, values, mask)


def by_segment(x: Tensor, length: int, step: int, segments: int) -> Tensor:
    """[b, K, n, d] -> [b*S, K, length, d]: what each segment may see, overlapping."""
    return x.unfold(2, length, step)[:, :, :segments].permute(0, 2, 1, 4, 3).flatten(0, 1)
