"""The tests that compare to the bit pass on other kinds of machines (docs/exactness.md).

Which kernels torch, MKL and oneDNN use can only be said before they are loaded: each kind is a pytest of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
# What a machine with other instructions, another BLAS or more threads would do to a sum.
KINDS = {
    "no-vector-instructions": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
    "avx2-two-threads": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OMP_NUM_THREADS": "2",
    },
    "another-blas": {"INFTY_TEST_BLAS": "another"},
}
CHOSEN = [
    "memory/test_properties.py::test_lanes_are_alone",
    "memory/test_properties.py::test_a_reset_lane_is_a_fresh_lane",
    "memory/test_properties.py::test_the_order_of_lanes_does_not_matter",
    "memory/test_properties.py::test_heads_that_are_sampled_apart_are_memories_of_their_own",
    "memory/test_properties.py::test_a_saved_and_loaded_state_goes_on_alike",
    "models/test_lm.py::test_one_window_equals_its_segments_one_by_one",
    "models/test_lm.py::test_no_logit_depends_on_a_later_token",
    "models/test_lm.py::test_a_reset_touches_its_own_lane_only",
    "hf/test_modeling.py::test_rows_do_not_change_one_another_by_a_bit",
    "hf/test_modeling.py::test_logits_equal_the_training_models_without_rotation",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_promised_holds_on(kind):
    changed = (
        "ATEN_CPU_CAPABILITY",
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
        "ONEDNN_MAX_CPU_ISA",
        "INFTY_TEST_BLAS",
    )
    environment = {k: v for k, v in os.environ.items() if k not in changed}
    environment |= {"OMP_NUM_THREADS": "1", **KINDS[kind]}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *CHOSEN],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
