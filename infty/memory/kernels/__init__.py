"""Reads and writes without their large matrices: in cache on a CPU, in Triton tiles on a GPU."""

from __future__ import annotations

import importlib.util
from functools import lru_cache

from torch import Tensor


def on_gpu(x: Tensor) -> bool:
    """Whether the Triton kernels take a tensor."""
    return x.device.type == "cuda" and _triton()


@lru_cache(maxsize=1)
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None
