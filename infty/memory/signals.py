"""What the signal of a continuous memory stores, and how keys and values are got from it.

| name   | a head of the signal is                        | keys and values are                       |
|--------|------------------------------------------------|-------------------------------------------|
| heads  | a key/value head's keys and values             | there, as they were written               |
| hidden | a query head's slice of the hidden state       | projections of all slices (as the paper)  |

b lanes, K key/value heads and G query heads for each (H together), N basis functions, d channels of
a head, e = H*d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infty.memory.costs import Costs, Layout
from infty.memory.reading import Refused
from infty.tree import Field, Tree

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig


class Projections:
    """A layer's way from a hidden signal to keys and values, in the dtype that projections are
    given."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        """layer: has `key`, `value`, `kv_heads` and `head_size`."""
        self.layer, self.dtype = layer, dtype

    def whole(self, slices: Tensor) -> Tensor:
        """[b, N, e] of all ranks from the slices of this one, side by side."""
        return slices

    def project(self, part: str, whole: Tensor) -> Tensor:
        """[b, N, e] -> [b, K, N, d], by the layer's projection called `part`."""
        y = getattr(self.layer, part)(whole.to(self.dtype))
        return y.unflatten(-1, (self.layer.kv_heads, self.layer.head_size)).transpose(1, 2)

    def project_pooled(self, pooled: Tensor) -> Tensor:
        """[P, b, K, G, e] -> float32 [P, b, K, G, d], by each head's projection of keys."""
        raise NotImplementedError


class Signal:
    """One kind of signal."""

    of_attention: bool
    """Whether it stores keys and values of attention, which the short-term memory holds until they
    are written. Otherwise it stores hidden states, which the memory holds itself."""
    projections: tuple[str, ...]
    """The layer's linear maps from the stored signal."""

    def shape(self, heads: int, kv_heads: int, head_size: int) -> tuple[int, int]:
        """Heads of the signal, and channels of each."""
        raise NotImplementedError

    def fields(self, signal: Tree, shape: tuple[int, int], stm: int, dtype: torch.dtype) -> Tree:
        """What a lane keeps: the `signal`, and what is stored of the `stm` tokens in the short-term
        memory, which are not written yet. shape: heads, on this rank, and channels."""
        if self.of_attention or not stm:
            return Tree({"signal": signal})
        heads, channels = shape
        pending = Field((heads, stm, channels), dtype, split=True)
        return Tree({"signal": signal, "pending": pending})

    def read(
        self, signal: Tensor, pool: Tensor | None, through: Projections, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Keys and values of the coefficients `signal`, float32 [b, h, N, c].

        Keys are float32 [b, K, G, d], pooled by each of pool [P, H, N]; without a pool all of them,
        [b, K, N, d]. Values [b, K, N, d], in `dtype` if they are read as they were written.
        """
        raise NotImplementedError

    def refused(self, memory: MemoryConfig) -> Refused:
        """What this memory's config may not say with its signal."""
        raise NotImplementedError

    def costs(self, memory: MemoryConfig, model: Any, layout: Layout, pooled: bool) -> Costs:
        """What it costs a layer to store it and to get keys, `pooled` or all, and values; model:
        the layer's `infty.config.ModelConfig`."""
        raise NotImplementedError


class Heads(Signal):
    """A head's keys and values (c = 2d): reading and writing need no communication."""

    of_attention = True
    projections = ()

    def shape(self, heads: int, kv_heads: int, head_size: int) -> tuple[int, int]:
        return kv_heads, 2 * head_size

    def read(
        self, signal: Tensor, pool: Tensor | None, through: Projections, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        keys, values = signal.chunk(2, -1)
        if pool is None:
            return (keys,), values.to(dtype)
        by_head = pool.unflatten(1, (signal.shape[1], -1))
        return torch.einsum("pkgn,bknd->pbkgd", by_head, keys).unbind(0), values.to(dtype)

    def refused(self, memory: MemoryConfig) -> Refused:
        return [("gate", "true needs signal: hidden")] if memory.gate else []

    def costs(self, memory: MemoryConfig, model: Any, layout: Layout, pooled: bool) -> Costs:
        kv = model.kv_heads / layout.tensor
        keys = 4 * layout.segments * layout.lanes * kv * memory.basis * model.head_size
        return Costs(saved=keys if pooled else 0.0)


class Hidden(Signal):
    """The layer's hidden state (c = d for each head's slice), projected to keys and values when
    read, which gathers the slices first."""

    of_attention = False
    projections = ("key", "value")

    def shape(self, heads: int, kv_heads: int, head_size: int) -> tuple[int, int]:
        return heads, head_size

    def read(
        self, signal: Tensor, pool: Tensor | None, through: Projections, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        whole = through.whole(signal.transpose(1, 2).flatten(2))  # [b, N, e]
        values = through.project("value", whole)
        if pool is None:
            return (through.project("key", whole),), values
        # Pooled first, then projected: O(e^2) a head instead of O(N e^2).
        by_head = pool.unflatten(1, (through.layer.kv_heads, -1))
        pooled = torch.einsum("pkgn,bne->pbkge", by_head, whole)
        return through.project_pooled(pooled).unbind(0), values

    def refused(self, memory: MemoryConfig) -> Refused:
        problem = "needs signal: heads (a hidden signal is shared by the heads of a layer)"
        shared = memory.sticky_heads == "shared"
        return [] if shared else [("sticky_heads", f"'{memory.sticky_heads}' {problem}")]

    def costs(self, memory: MemoryConfig, model: Any, layout: Layout, pooled: bool) -> Costs:
        N, L, e, d = memory.basis, model.segment_length, model.hidden_size, model.head_size
        w, t, windows = layout.width, layout.tensor, layout.segments * layout.lanes
        products = 2.0 * N * e * model.kv_heads * d / L
        saved = 1.0 * w * windows * N * e
        if pooled:
            keys = 2 * windows * model.heads / t * e * 4
            projection = 0.0 if w == 4 else 4 * model.kv_heads / t * d * e
            saved += 4 * windows * N * e + keys + projection
        if memory.gate:
            products += 2.0 * 3 * e * e
            saved += w * windows * L * (3 * e + e / t + (e / t if t > 1 else 0))
        return Costs(products, sent=4.0 * N * e, collectives=2, saved=saved)


SIGNALS: dict[str, Signal] = {"heads": Heads(), "hidden": Hidden()}
"""What `model.memory.signal` can name."""


def neighbours(h: Tensor) -> Tensor:
    """[n, L, ..., e] -> [n, L, ..., 3e]: each token beside its neighbours in its segment, zeros
    outside."""
    zero = torch.zeros_like(h[:, :1])
    return torch.cat([torch.cat([zero, h[:, :-1]], 1), h, torch.cat([h[:, 1:], zero], 1)], -1)
