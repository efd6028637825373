"""Differentiable collectives over the tensor-parallel group, on any device.

Each is named for its forward; the backward is its transpose. megatron-core has the same operations but allocates
on the CUDA device even where there is none.

| forward        | backward       | for a tensor that is                                             |
|----------------|----------------|------------------------------------------------------------------|
| copy           | all-reduce     | whole on every rank, used by each rank's shard of the parameters |
| reduce         | identity       | a partial sum on every rank                                      |
| gather         | reduce-scatter | split over ranks, about to be used by each rank's parameters     |
| scatter        | all-gather     | whole and equal on every rank, wanted split                      |
| reduce_scatter | all-gather     | a partial sum on every rank, wanted split                        |
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from infty.parallel import groups


def copy(x: Tensor) -> Tensor:
    """Identity; gradients are summed over the tensor-parallel ranks."""
    return x if groups.tensor_size() == 1 else _Copy.apply(x)


def reduce(x: Tensor) -> Tensor:
    """Sum over the tensor-parallel ranks; gradients pass unchanged."""
    return x if groups.tensor_size() == 1 else _Reduce.apply(x)


def gather(x: Tensor, dim: int) -> Tensor:
    """Concatenate the ranks' tensors along `dim`; each rank's gradient is the sum of all ranks' for its part."""
    return x if groups.tensor_size() == 1 else _Gather.apply(x, dim)


def scatter(x: Tensor, dim: int) -> Tensor:
    """This rank's part of a tensor that is equal on all ranks; gradients are concatenated."""
    return x if groups.tensor_size() == 1 else _Scatter.apply(x, dim)


def reduce_scatter(x: Tensor, dim: int) -> Tensor:
    """This rank's part of the sum over ranks; gradients are concatenated."""
    return x if groups.tensor_size() == 1 else _ReduceScatter.apply(x, dim)


def split(x: Tensor, dim: int) -> Tensor:
    """This rank's part of x along `dim`, with an ordinary gradient (zero elsewhere)."""
    return x.chunk(groups.tensor_size(), dim)[groups.tensor_rank()]


def sum_(x: Tensor) -> Tensor:
    """Sum over the tensor-parallel ranks in place, outside of autograd."""
    if groups.tensor_size() > 1:
        dist.all_reduce(x, group=groups.tensor_group())
    return x


def _all_reduce(x: Tensor) -> Tensor:
    return sum_(x.clone(memory_format=torch.contiguous_format))


def _all_gather(x: Tensor, dim: int) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(groups.tensor_size())]
    dist.all_gather(parts, x, group=groups.tensor_group())
    return torch.cat(parts, dim)


def _reduce_scatter(x: Tensor, dim: int) -> Tensor:
    parts = [p.contiguous() for p in x.chunk(groups.tensor_size(), dim)]
    out = torch.empty_like(parts[0])
    dist.reduce_scatter(out, parts, group=groups.tensor_group())
    return out


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return _all_reduce(grad)


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return _all_reduce(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.dim = dim
        return _all_gather(x, dim)

    @staticmethod
    def backward(ctx, grad):
        return _reduce_scatter(grad, ctx.dim), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.dim = dim
        return split(x, dim).contiguous()

    @staticmethod
    def backward(ctx, grad):
        return _all_gather(grad, ctx.dim), None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dim):
        ctx.dim = dim
        return _reduce_scatter(x, dim)

    @staticmethod
    def backward(ctx, grad):
        return _all_gather(grad, ctx.dim), None
