"""What a check of `infty doctor` has found, on one process and on all of them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace

import torch.distributed as dist


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    found: str
    fine: bool = True
    advice: str = ""
    warning: bool = False
    """Problems are reported, but do not stop the run."""

    @property
    def wrong(self) -> bool:
        return not self.fine and not self.warning

    @property
    def verdict(self) -> str:
        return "ok" if self.fine else "warning" if self.warning else "wrong"


def everywhere(finding: Finding) -> Finding:
    """Put together what all processes found: the first that is wrong, with its node, or a warning,
    or rank 0's."""
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(
        everything, (os.environ.get("SLURMD_NODENAME", socket.gethostname()), finding)
    )
    odd = [(rank, host, f) for rank, (host, f) in enumerate(everything) if not f.fine]
    odd = [o for o in odd if o[2].wrong] or odd
    if not odd:
        return everything[0][1]
    rank, host, f = odd[0]
    others = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    return replace(f, found=f"{f.found} on {host}, rank {rank}{others}")
