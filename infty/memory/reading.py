"""The contract of read densities: what a family of them is to training, to an exported model and to
the planner.

A family is one class: its instances are the densities of a batch of queries, its class methods say
what it is made from, learns and costs. Names are given in `infty.memory.densities.FAMILIES`; nobody
else knows a family.

b lanes, K key/value heads and G query heads for each (H together), N basis functions, D bins, d
channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from infty.memory.basis import GaussianBasis
from infty.memory.costs import Costs, Layout

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig


Refused = list[tuple[str, str]]
"""Keys of a memory's config, and what is wrong with each."""


class Parameter(NamedTuple):
    """A parameter of a layer's densities as it begins, float32; its rows are one for each query
    head, or one for all (`maps: shared`)."""

    shape: tuple[int, ...]
    stream: str = ""
    """The random stream that it is drawn from."""
    std: float = 0.0
    """Standard deviation of what is drawn."""
    value: Tensor | None = None
    """What it is instead of drawn."""


@dataclass(frozen=True)
class Density:
    """The densities of one batch of queries [..., T]."""

    attends: ClassVar[bool] = False
    """Whether local attention reads the signal instead: then the family is a name and what it
    refuses, and its memory another class."""
    pools: ClassVar[bool] = False
    """Whether its parameters pool the keys of a signal; otherwise it reads with all of them."""
    of_tokens: ClassVar[tuple[str, ...]] = ()
    """What is made of each query (`place`): the names of the fields that hold it."""

    def expectation(self, basis: GaussianBasis) -> Tensor:
        """E[psi_j]: [..., T, N]."""
        raise NotImplementedError

    def read(self, values: Tensor, basis: GaussianBasis) -> Tensor:
        """E[psi] values: [..., T, d] for values [..., N, d]. Does not store the T x N weights."""
        raise NotImplementedError

    def histogram(self, bins: int, weights: Tensor | None = None) -> Tensor:
        """Mean mass in each bin over tokens [b, h, T], of which `weights` [b, T] tells the weights:
        float32 [b, h, bins], rows sum to 1. No gradient."""
        raise NotImplementedError

    def outside(self) -> Tensor:
        """Share of each density's mass that lies outside [0, 1], where there is nothing to read:
        [..., T]."""
        raise NotImplementedError

    def divergence(self, sigma: float) -> Tensor:
        """From a prior of this standard deviation: [..., T]."""
        raise NotImplementedError

    def figures(self) -> dict[str, Tensor]:
        """Scalars to watch that other families do not have."""
        return {}

    @classmethod
    def refused(cls, memory: MemoryConfig) -> Refused:
        """What this memory's config may not say with its family."""
        return []

    @classmethod
    def parameters(cls, memory: MemoryConfig, rows: int) -> dict[str, Parameter]:
        """What a layer learns to read with, by the names that checkpoints hold."""
        return {}

    @classmethod
    def pool(cls, memory: MemoryConfig, weights: dict[str, Tensor]) -> Tensor | None:
        """float32 [P, H, N]: makes P keys for each query head out of the signal's N. None: all N
        are used. `weights`: the parameters, a row for each head."""
        return None

    @classmethod
    def place(
        cls,
        memory: MemoryConfig,
        q: Tensor,
        keys: tuple[Tensor, ...],
        weights: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """What is made of each of the queries q [b, K, G, t, d], by its name: [b, K, G*t, ...].

        keys: the pooled ones, [b, K, G, d] each; or one tensor with all, [b, K, N, d].
        """
        raise NotImplementedError

    @classmethod
    def of(
        cls, memory: MemoryConfig, basis: GaussianBasis, keys: tuple[Tensor, ...], **place: Tensor
    ) -> Density:
        """The densities of queries of which `place` was made."""
        raise NotImplementedError

    @classmethod
    def costs(cls, memory: MemoryConfig, model: Any, layout: Layout) -> Costs:
        """What the reads of one layer cost; model: its `infty.config.ModelConfig`."""
        raise NotImplementedError


D = TypeVar("D", bound=Density)


def joined(places: Sequence[D], join: Callable[[list[Tensor]], Tensor]) -> D:
    """Densities made of those of several batches: `join` makes one tensor of one of each."""
    tensors = [f.name for f in fields(places[0]) if isinstance(getattr(places[0], f.name), Tensor)]
    together = {name: join([getattr(place, name) for place in places]) for name in tensors}
    return replace(places[0], **together)


def parameters(memory: MemoryConfig, heads: int) -> dict[str, Parameter]:
    """The parameters of the densities of a layer with this many query heads."""
    return memory.family.parameters(memory, 1 if memory.maps == "shared" else heads)


@torch.no_grad()
def histogram(
    memory: MemoryConfig,
    read: Density,
    heads: int,
    total: Callable[[Tensor], Tensor] = lambda p: p,
) -> Tensor:
    """Where a segment's reads fell: [b, 1, D] for all `heads` key/value heads of the layer, or [b,
    K, D] for each.

    total: adds up over the ranks that share the heads out.
    """
    p = read.histogram(memory.bins)  # [b, K, D]
    return p if memory.sticky_heads == "per_head" else total(p.sum(1, keepdim=True)) / heads


@torch.no_grad()
def statistics(place: Density, bins: int) -> dict[str, Tensor]:
    """Scalars to watch, of densities [b, h, T]: share of mass `outside` [0, 1]; `entropy` over
    `bins` bins of a head's mean density (nats, at most log(bins)), averaged over lanes and heads;
    and the family's own."""
    return {
        "outside": place.outside().mean(),
        "entropy": torch.special.entr(place.histogram(bins)).sum(-1).mean(),
        **place.figures(),
    }


@torch.no_grad()
def mean_mass(mass: Tensor, weights: Tensor | None) -> Tensor:
    """mass [b, h, T, D] of each token -> mean over tokens, rows sum to 1."""
    if weights is not None:
        mass = mass * weights[:, None, :, None]
    mass = mass.sum(-2).clamp(min=0)
    whole = mass.sum(-1, keepdim=True)
    return torch.where(whole > 0, mass / whole.clamp(min=1e-30), 1 / mass.shape[-1]).float()
