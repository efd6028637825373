"""Process groups: the one place that knows megatron-core's parallel state and what DeepSpeed wants to see of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from infty.errors import UserError
from infty.megatron import parallel_state as ps


def initialize(tensor: int = 1, timeout: timedelta = timedelta(minutes=30)) -> None:
    """Split the world into tensor-parallel groups of neighbouring ranks; the rest is data parallelism.

    torch.distributed must be initialised. Groups of another layout are ended, those of the same are kept. A collective,
    which waits for `timeout`. Raises UserError when the world is not a multiple of `tensor`.
    """
    if ps.model_parallel_is_initialized():
        if tensor_size() == tensor:
            return
        dist.barrier()  # nobody is still in a collective of a group that ends
        destroy()
    world = dist.get_world_size()
    if world % tensor:
        raise UserError(
            f"parallel.tensor: {tensor} does not divide the {world} processes of this run; "
            f"start a multiple of {tensor} processes or change parallel.tensor"
        )
    ps.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        distributed_timeout_minutes=math.ceil(timeout.total_seconds() / 60),
    )


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Groups of this process alone, for a model that is only counted. Raises UserError inside a tensor-parallel run."""
    if ps.model_parallel_is_initialized():
        if tensor_size() > 1:
            raise UserError("a model cannot be counted inside a tensor-parallel run")
        yield
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        initialize(tensor=1)
        yield
    finally:
        destroy()
        if started:
            dist.destroy_process_group()


def destroy() -> None:
    """End the groups, before torch.distributed itself is ended.

    megatron-core itself only forgets most of them. A forgotten group of gloo keeps three threads, one of which wakes up
    again and again: after a dozen layouts a process does little else.
    """
    for group in ps._global_process_group_list or ():
        if group is not None:
            dist.destroy_process_group(group)
    ps.destroy_model_parallel()


def tensor_rank() -> int:
    return ps.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    return ps.get_tensor_model_parallel_world_size()


def tensor_group() -> dist.ProcessGroup:
    return ps.get_tensor_model_parallel_group()


def data_rank() -> int:
    return ps.get_data_parallel_rank()


def data_size() -> int:
    return ps.get_data_parallel_world_size()


def layout() -> dict[str, int]:
    """How the processes are shared out: tensor-parallel ranks and data-parallel ranks."""
    return {"tensor": tensor_size(), "data": data_size()}


def data_group() -> dist.ProcessGroup:
    return ps.get_data_parallel_group()


class MPU:
    """What DeepSpeed asks of a model-parallel unit, answered from megatron-core's parallel state.

    `parallel_state` itself will not do: DeepSpeed wants `get_model_parallel_*` to mean tensor parallelism alone.
    Pass an instance to `deepspeed.initialize(mpu=...)` and to its activation checkpointing.
    """

    get_model_parallel_rank = get_tensor_model_parallel_rank = staticmethod(tensor_rank)
    get_model_parallel_world_size = get_tensor_model_parallel_world_size = staticmethod(tensor_size)
    get_model_parallel_group = get_tensor_model_parallel_group = staticmethod(tensor_group)
    get_data_parallel_rank = staticmethod(data_rank)
    get_data_parallel_world_size = staticmethod(data_size)
    get_data_parallel_group = staticmethod(data_group)

    @staticmethod
    def get_tensor_model_parallel_src_rank() -> int:
        return ps.get_tensor_model_parallel_src_rank()

    @staticmethod
    def get_data_parallel_group_ranks() -> list[int]:
        return dist.get_process_group_ranks(data_group())
