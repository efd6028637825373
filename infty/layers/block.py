"""One pre-norm block: attention with its two memories, then the feed-forward branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.attention import Compressed, LocalAttention
from infty.layers.compressive import CompressedMemory
from infty.layers.memory import LongTermMemory
from infty.layers.mlp import MLP
from infty.parallel.region import Region, mark_stream
from infty.state import LayerState


@dataclass(frozen=True)
class Pass:
    """How a forward pass is to go: the same for every layer."""

    seen: Tensor
    """int64 [b, S]: segments of its document before each segment."""
    memory_enabled: bool = True
    statistics: bool = False


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm; its parameters act on the residual stream."""
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    norm = kind(config.hidden_size, eps=config.norm_eps)
    mark_stream(norm.parameters())
    return norm


class Block(nn.Module):
    """Residual stream in, residual stream out; memories in, memories out."""

    def __init__(self, config: ModelConfig, layer: int, region: Region) -> None:
        super().__init__()
        self.region, self.dropout, self.stm = region, config.dropout, config.stm_of(layer)
        self.attention_norm = make_norm(config)
        self.attention = LocalAttention(config, layer)
        self.memory = LongTermMemory(config, layer) if config.has_memory(layer) else None
        self.compressed = CompressedMemory(config, layer) if config.compressed_of(layer) else None
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, layer)

    def forward(self, x: Tensor, state: LayerState, how: Pass) -> tuple[Tensor, Tensor | None, tuple]:
        """x [T, b, e] (this rank's tokens under sequence parallelism) -> (x, penalty, (state, figures)).

        The penalty, float32 [b, T] or None, is what the memories add to every token's loss. The state carries no
        gradient out of the window.
        """
        h = self.region.enter(self.attention_norm(x))
        q, keys, values = self.attention.project(h)
        if state.stm_key is not None:
            keys, values = (torch.cat([old.to(new.dtype), new], 2) for old, new in
                            ((state.stm_key, keys), (state.stm_value, values)))
        compressed, penalty, figures, new = None, None, None, {}
        if self.compressed is not None:
            compressed, penalty, new = self._compress(h, q, keys, values, state, how)
        partial = self.attention.out(self.attention(q, keys, values, how.seen, compressed))
        if self.memory is not None:
            stream = self._stream(h, x, keys, values, state)
            context, penalty, figures, new["memory"] = self.memory(
                q, stream, how.seen, state.memory, enabled=how.memory_enabled, statistics=how.statistics)
            partial = partial + self.memory.out(context.to(partial.dtype))
            new["pending"] = self._tail(stream) if state.pending is not None else None
        x = self._add(x, partial, self.attention.out.bias)
        h = self.region.enter(self.mlp_norm(x))
        x = self._add(x, self.mlp(h), self.mlp.out.bias)
        if self.stm:
            new |= {"stm_key": self._tail(keys), "stm_value": self._tail(values)}
        return x, penalty, (LayerState(**new).map(Tensor.detach), figures)

    def _compress(self, h: Tensor, q: Tensor, keys: Tensor, values: Tensor, state: LayerState,
                  how: Pass) -> tuple[Compressed, Tensor, dict[str, Tensor]]:
        """The compressed memories to attend to, their penalty, and what the state keeps."""
        memory = self.compressed
        content = memory.content(h)
        stream = torch.cat([state.pending.to(content.dtype), content], 2)
        (key, value), penalty, kept = memory(self.attention, q, keys, values, stream, how.seen, state.compressed)
        visible = memory.visible(how.seen) * how.memory_enabled
        compressed = Compressed(key, value, visible, kept.shape[2], memory.each)
        return compressed, penalty, {"pending": self._tail(stream), "compressed": kept}

    def _stream(self, h: Tensor, x: Tensor, keys: Tensor, values: Tensor, state: LayerState) -> Tensor:
        """What the memory will write, in order: [b, heads, (D+S)*L, c]."""
        if self.memory.memory.signal == "heads":
            return torch.cat([keys, values], -1)
        content = h if self.memory.memory.content == "normed" else self.region.enter(x)
        new = self.memory.content(content)
        return new if state.pending is None else torch.cat([state.pending.to(new.dtype), new], 2)

    def _tail(self, tokens: Tensor) -> Tensor:
        """The last `stm` tokens, [b, heads, stm, c]; a copy, or the state would keep the whole window's storage."""
        return tokens[:, :, tokens.shape[2] - self.stm:].detach().clone()

    def _add(self, x: Tensor, partial: Tensor, bias: Tensor | None) -> Tensor:
        y = self.region.leave(partial)
        if bias is not None:
            y = y + bias
        return x + F.dropout(y, self.dropout, self.training)
