"""The states of lanes in a form that knows no layout: a row a lane, with the heads of all tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from infty.parallel import groups
from infty.tree import Tree
from infty_pretrain.checkpoint.reading import LaneRow
from infty_pretrain.engine import Engine


def collect(engine: Engine) -> dict[str, Tensor]:
    """This rank's lanes, whole over tensor parallelism, and their ids, in host memory. A collective."""
    whole = {"id": torch.tensor(list(engine.lanes))}
    fields = engine.model.fields().named()
    for name, tensor in engine.lane_state().named().items():
        if groups.tensor_size() > 1 and fields[name].split:
            parts = [torch.empty_like(tensor) for _ in range(groups.tensor_size())]
            dist.all_gather(parts, tensor.contiguous(), group=groups.tensor_group())
            tensor = torch.cat(parts, 1)
        whole[name] = tensor.cpu().contiguous().clone()
    return whole


def restore(engine: Engine, saved: Mapping[int, LaneRow]) -> Tree:
    """The states of this rank's lanes: from `saved` where it has them by id, empty otherwise."""
    fresh = engine.lane_state()
    fields = engine.model.fields().named()
    tensors = {}
    for name, default in fresh.named().items():
        rows = []
        for i, lane in enumerate(engine.lanes):
            if lane in saved:
                row = saved[lane].tensor(name)
                if fields[name].split:
                    row = row.chunk(groups.tensor_size(), 1)[groups.tensor_rank()]
                rows.append(row.to(default.dtype).to(default.device))
            else:
                rows.append(default[i : i + 1])
        tensors[name] = torch.cat(rows)
    return fresh.from_named(tensors)
