"""What reading and writing a memory costs, and what of a run that depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Of how a run is spread, what a memory's costs depend on."""

    tensor: int
    lanes: int
    """Lanes that go through the model at once on one rank [b]."""
    segments: int
    """Segments of a window [S]."""
    width: int
    """Bytes of a number in the run's precision."""
    device: str = "cuda"


@dataclass(frozen=True)
class Costs:
    """What one layer's memory costs, for `infty plan` and the utilisation that training reports."""

    products: float = 0.0
    """Operations of a token's forward pass in wide matrix products, in the run's precision; a multiply-add is two."""
    reads: float = 0.0
    """The same, in products as narrow as a head."""
    exact: float = 0.0
    """The same, in float32."""
    moved: float = 0.0
    """Bytes a token that the float32 part moves through a GPU's memory."""
    extra_keys: float = 0.0
    """Keys that local attention sees beside its own, each token."""
    launches: float = 0.0
    """Kernels a segment and pass."""
    sent: float = 0.0
    """Bytes a lane and segment that one tensor-parallel all-reduce carries, forward and backward together."""
    collectives: float = 0.0
    """Tensor-parallel collectives a segment."""
    saved: float = 0.0
    """Bytes that autograd keeps of a window, on one rank."""
    saved_together: float = 0.0
    """Of these what all memories of a layer share, the attention's projections as they were made: counted once."""
    constants: dict[Any, float] = field(default_factory=dict)
    """Bytes of precomputed operators, by a key that is equal for layers which share them."""

    @property
    def operations(self) -> float:
        """Of one token's forward pass."""
        return self.products + self.reads + self.exact
