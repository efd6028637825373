"""What is watched of a step beside its loss: where its time goes, and how far the weights move."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SAMPLE = 65_536
"""Most numbers of each tensor of weights that are looked at."""


class Stopwatch:
    """Seconds by the part of the work that they went to, on this process's clock.

    A GPU works on after a call returns, until something asks for a number: its time counts where the program waits.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.monotonic()

    def lap(self, part: str) -> None:
        """All since the last lap went to this part."""
        now = time.monotonic()
        self.seconds[part] += now - self._last
        self._last = now


class Gauges:
    """Learning rates, size of the weights and of a step's update, by the optimizer's groups of parameters.

    Sizes are root mean squares of the float32 weights that this optimizer holds, over all ranks; of a large tensor an
    even sample is looked at. Weights that tensor-parallel ranks share count once a rank.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._before: list[list[Tensor]] = []

    @torch.no_grad()
    def before(self, engine: Any) -> None:
        """Keep a sample of the weights, from which the step's update is told."""
        self._before = [[_sample(x).clone() for x in held] for held in _held(engine)]

    @torch.no_grad()
    def after(self, engine: Any) -> dict[str, float]:
        """`lr/group`, `weight_size/group`, `update_ratio/group` (size of the update ÷ that of the weights). A
        collective of all ranks."""
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=engine.device)
        for row, held, kept in zip(sums, _held(engine), self._before):
            for x, old in zip(map(_sample, held), kept):
                row += torch.stack(
                    [
                        (x - old).double().square().sum(),
                        x.double().square().sum(),
                        row.new_tensor(x.numel()),
                    ]
                )
        self._before = []
        dist.all_reduce(sums)
        found = {}
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        for name, rate, (moved, size, count) in zip(self.names, rates, sums.tolist()):
            found[f"lr/{name}"] = rate
            found[f"weight_size/{name}"] = math.sqrt(size / max(1.0, count))
            found[f"update_ratio/{name}"] = math.sqrt(moved / size) if size else 0.0
        return found


def _sample(x: Tensor) -> Tensor:
    """An even sample of a tensor's numbers: float32 [at most SAMPLE]."""
    flat = x.detach().flatten()
    return flat[:: max(1, -(-flat.numel() // SAMPLE))].float()


def _held(engine: Any) -> list[list[Tensor]]:
    """The float32 weights that this rank's optimizer steps, by group of parameters."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "fp32_partitioned_groups_flat"):  # ZeRO-3
        found: list[list[Tensor]] = [[] for _ in wrapper.param_groups]
        for index, x in enumerate(wrapper.fp32_partitioned_groups_flat):
            found[wrapper.sub_group_to_group_id[index]].append(x)
        return found
    for name in ("single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(wrapper, name):  # ZeRO-1 and 2; bf16 with ZeRO-1
            return [[x] for x in getattr(wrapper, name)]
    return [group["params"] for group in wrapper.param_groups]
