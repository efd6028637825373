"""What is used of megatron-core, imported without a compiler.

megatron-core decorates its fused kernels with `torch.compile`, which imports torch's inductor: most of its import,
about three seconds in every process. None of these kernels is used here, so they stay plain functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Let `torch.compile` return what it is given."""
    compiler = torch.compile

    def plain(function: Callable | None = None, **_: Any) -> Callable:
        return (lambda inner: inner) if function is None else function

    torch.compile = plain
    try:
        yield
    finally:
        torch.compile = compiler


with _uncompiled():
    from megatron.core import ModelParallelConfig, parallel_state, tensor_parallel
    from megatron.core.datasets import indexed_dataset
    from megatron.core.tensor_parallel import layers

__all__ = [
    "ModelParallelConfig",
    "indexed_dataset",
    "layers",
    "parallel_state",
    "tensor_parallel",
]
