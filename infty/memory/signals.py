"""What the signal of a continuous memory stores, and how keys and values are got from it.

| name   | a head of the signal is                        | keys and values are                       |
|--------|------------------------------------------------|-------------------------------------------|
| heads  | a key/value head's keys and values             | there, as they were written               |
| hidden | a query head's slice of the hidden state       | projections of all slices (as the paper)  |

b lanes, K key/value heads and G query heads for each (H together), N basis functions, d channels of
a head, e = H*d.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from infty.memory.reading import Sizes

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig


class SignalCosts(NamedTuple):
    """What getting keys and values costs, and making what is stored: see the fields of the same
    names in `infty.layers.memories.base.Costs`."""

    products: float = 0.0
    sent: float = 0.0
    collectives: float = 0.0
    saved: float = 0.0


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

    def read(
        self, signal: Tensor, pool: Tensor | None, through: Projections, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Keys and values of the coefficients `signal`, float32 [b, h, N, c].

        Keys are float32 [b, K, G, d], pooled by each of pool [P, K, G, N]; without a pool all of
        them, [b, K, N, d]. Values [b, K, N, d], in `dtype` if they are read as they were written.
        """
        raise NotImplementedError

    def refused(self, memory: MemoryConfig) -> Iterator[tuple[str, str]]:
        """What a memory's config may not say with this signal: keys, and what is wrong with each."""
        raise NotImplementedError

    def costs(self, memory: MemoryConfig, sizes: Sizes, pooled: bool) -> SignalCosts:
        """pooled: whether keys are."""
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
        return torch.einsum("pkgn,bknd->pbkgd", pool, keys).unbind(0), values.to(dtype)

    def refused(self, memory: MemoryConfig) -> Iterator[tuple[str, str]]:
        if memory.gate:
            yield "gate", "true needs signal: hidden"

    def costs(self, memory: MemoryConfig, sizes: Sizes, pooled: bool) -> SignalCosts:
        kv = sizes.kv_heads / sizes.tensor
        keys = 4 * sizes.segments * sizes.lanes * kv * memory.basis * sizes.head_size
        return SignalCosts(saved=keys if pooled else 0.0)


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
        pooled = torch.einsum("pkgn,bne->pbkge", pool, whole)
        return through.project_pooled(pooled).unbind(0), values

    def refused(self, memory: MemoryConfig) -> Iterator[tuple[str, str]]:
        if memory.sticky_heads != "shared":
            yield (
                "sticky_heads",
                "'per_head' needs signal: heads (a hidden signal is shared by the heads of a layer)",
            )

    def costs(self, memory: MemoryConfig, sizes: Sizes, pooled: bool) -> SignalCosts:
        N, d, w, t = memory.basis, sizes.head_size, sizes.width, sizes.tensor
        e, windows = sizes.heads * d, sizes.segments * sizes.lanes
        saved = 1.0 * w * windows * N * e
        if pooled:
            keys = 2 * windows * sizes.heads / t * e * 4
            projection = 0.0 if w == 4 else 4 * sizes.kv_heads / t * d * e
            saved += 4 * windows * N * e + keys + projection
        if memory.gate:
            saved += w * sizes.tokens * (3 * e + e / t + (e / t if t > 1 else 0))
        projected = 2.0 * N * e * sizes.kv_heads * d / sizes.segment_length
        gate = 2.0 * 3 * e * e if memory.gate else 0.0
        return SignalCosts(projected + gate, sent=4.0 * N * e, collectives=2, saved=saved)


SIGNALS: dict[str, Signal] = {"heads": Heads(), "hidden": Hidden()}
"""What `model.memory.signal` can name."""


def neighbours(h: Tensor) -> Tensor:
    """[n, L, ..., e] -> [n, L, ..., 3e]: each token beside its neighbours in its segment, zeros
    outside."""
    zero = torch.zeros_like(h[:, :1])
    return torch.cat([torch.cat([zero, h[:, :-1]], 1), h, torch.cat([h[:, 1:], zero], 1)], -1)
