"""GPUs and how fast they are, from manufacturers' data sheets: for the planner, and for the utilisation of a run."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from infty.errors import UserError


@dataclass(frozen=True)
class GPU:
    """One device and how it is connected."""

    name: str
    memory: float
    """Bytes a program can use: what is on the label less what the driver, the context and NCCL take."""
    bf16: float
    """Dense peak, floating-point operations a second, bf16 inputs."""
    fp32: float
    """The same for fp32 (with tf32 matrix units left off, as PyTorch does by default)."""
    bandwidth: float
    """Bytes a second to its own memory."""
    node_link: float
    """Bytes a second and direction between the GPUs of a node."""
    network: float = 50e9
    """Bytes a second and direction that each GPU has to other nodes: 400 Gbit/s unless the machine is smaller."""
    reported: tuple[str, ...] = ()
    """What its driver calls it: words that all occur in the name, alternatives."""

    def peak(self, precision: str) -> float:
        """Peak operations a second of a run in `bf16` or `fp32`."""
        return self.bf16 if precision == "bf16" else self.fp32


_GB = 1e9
_TFLOPS = 1e12

# Usable memory: NVIDIA's GB are 2^30 bytes here, less 5 % for context, NCCL buffers and fragmentation.
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU(
            "v100-32",
            0.95 * 32 * 2**30,
            125 * _TFLOPS,
            15.7 * _TFLOPS,
            900 * _GB,
            150 * _GB,
            12.5 * _GB,
            ("V100",),
        ),
        GPU(
            "a100-40",
            0.95 * 40 * 2**30,
            312 * _TFLOPS,
            19.5 * _TFLOPS,
            1555 * _GB,
            300 * _GB,
            25 * _GB,
            ("A100 40GB",),
        ),
        GPU(
            "a100-80",
            0.95 * 80 * 2**30,
            312 * _TFLOPS,
            19.5 * _TFLOPS,
            2039 * _GB,
            300 * _GB,
            25 * _GB,
            ("A100", "A800"),
        ),
        GPU(
            "h100-80",
            0.95 * 80 * 2**30,
            989 * _TFLOPS,
            67 * _TFLOPS,
            3350 * _GB,
            450 * _GB,
            reported=("H100", "H800", "GH200"),
        ),
        GPU(
            "h100-pcie-80",
            0.95 * 80 * 2**30,
            756 * _TFLOPS,
            51 * _TFLOPS,
            2000 * _GB,
            64 * _GB,
            25 * _GB,
            ("H100 PCIE", "H800 PCIE"),
        ),
        GPU(
            "h200-141",
            0.95 * 141 * 2**30,
            989 * _TFLOPS,
            67 * _TFLOPS,
            4800 * _GB,
            450 * _GB,
            reported=("H200",),
        ),
        GPU(
            "b200-180",
            0.95 * 180 * 2**30,
            2250 * _TFLOPS,
            75 * _TFLOPS,
            8000 * _GB,
            900 * _GB,
            reported=("B200",),
        ),
        GPU(
            "a10-24",
            0.95 * 24 * 2**30,
            125 * _TFLOPS,
            31.2 * _TFLOPS,
            600 * _GB,
            32 * _GB,
            3 * _GB,
            ("A10",),
        ),
        GPU(
            "l40-48",
            0.95 * 48 * 2**30,
            181 * _TFLOPS,
            90.5 * _TFLOPS,
            864 * _GB,
            32 * _GB,
            12.5 * _GB,
            ("L40",),
        ),
        GPU(
            "l40s-48",
            0.95 * 48 * 2**30,
            362 * _TFLOPS,
            91 * _TFLOPS,
            864 * _GB,
            32 * _GB,
            12.5 * _GB,
            ("L40S",),
        ),
        GPU(
            "rtx4090-24",
            0.95 * 24 * 2**30,
            165 * _TFLOPS,
            83 * _TFLOPS,
            1008 * _GB,
            16 * _GB,
            3 * _GB,
            ("4090",),
        ),
    )
}

_OTHERS = {"MIG", "LAPTOP", "D", "NVL"}
"""Words that mark slower or faster versions of a GPU of the same name, of which the table knows nothing."""


def identify(reported: str) -> GPU | None:
    """The GPU of the name that its driver reports, such as `NVIDIA A100-SXM4-80GB`; None where it is not known."""
    words = set(re.split(r"[\s_-]+", reported.upper()))
    if words & _OTHERS:
        return None
    fitting = [
        (len(name.split()), gpu)
        for gpu in GPUS.values()
        for name in gpu.reported
        if set(name.split()) <= words
    ]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None


def find(name: str) -> GPU:
    """The GPU of that name. Raises UserError with the nearest known one."""
    if name in GPUS:
        return GPUS[name]
    near = difflib.get_close_matches(name, GPUS, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--gpu {name} is not in the table; {hint}known: {', '.join(GPUS)}")
