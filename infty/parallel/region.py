"""Where a block's activations cross between the residual stream and the tensor-parallel shards.

A branch of a block is `x + leave(branch(enter(norm(x))))`. Without sequence parallelism the residual stream is
whole on every rank; with it, every rank keeps the stream of its share of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from infty.parallel import collectives, groups


@dataclass(frozen=True)
class Region:
    """Tokens are dimension 0 of every activation."""

    sequence_parallel: bool = False

    @property
    def active(self) -> bool:
        """Whether the residual stream is split over the ranks."""
        return self.sequence_parallel and groups.tensor_size() > 1

    def open(self, x: Tensor) -> Tensor:
        """From activations that are whole on every rank to the residual stream."""
        return collectives.scatter(x, 0) if self.active else x

    def enter(self, x: Tensor) -> Tensor:
        """From the residual stream to what every rank's shard of the parameters reads: all tokens."""
        return collectives.gather(x, 0) if self.active else collectives.copy(x)

    def leave(self, partial: Tensor) -> Tensor:
        """From the partial sums of the ranks' shards back to the residual stream."""
        return (
            collectives.reduce_scatter(partial, 0) if self.active else collectives.reduce(partial)
        )


def mark_stream(parameters: Iterable[nn.Parameter | None]) -> None:
    """Mark replicated parameters that act on the residual stream itself: norms, and biases added after `leave`."""
    for p in parameters:
        if p is not None:
            p.on_stream = True


def sum_stream_gradients(model: nn.Module, region: Region) -> None:
    """Under sequence parallelism, sum the gradients of marked parameters over the tensor-parallel ranks.

    Each rank sees only its tokens there. As hooks, and before the engine is built, because ZeRO consumes gradients
    as they appear.
    """
    if not region.active:
        return
    for p in model.parameters():
        if getattr(p, "on_stream", False):
            p.register_hook(_summed)


def _summed(grad: Tensor) -> Tensor:
    grad = grad.contiguous()
    dist.all_reduce(grad, group=groups.tensor_group())
    return grad
