"""What torch itself cannot do when it is told to leave out a machine's instructions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def attention_in_bf16() -> Iterator[None]:
    """Skip where torch's attention fails.

    With ATEN_CPU_CAPABILITY=default or avx2 on a machine that has AVX-512 in bf16, torch 2.13 chooses a kernel by the
    machine and compiles it without its instructions. Machines that have none are not concerned.
    """
    try:
        yield
    except Exception as error:
        left_out = os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2")
        if left_out and "pack_vnni2 is only supported" in str(error):
            pytest.skip("torch's attention in bf16 fails under ATEN_CPU_CAPABILITY here")
        raise
