"""Bytes that a real training run keeps on one rank, by kind: what the planner's estimates are checked against."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import torch
from torch import Tensor

from infty.data.lanes import Window
from infty.tree import Tree


def training_bytes(config, lanes_window: dict) -> dict[str, int]:
    """Train two steps with the real engine and look at every tensor that is alive before the second update.

    Runs in a process of a group; `lanes_window` is a window of all lanes (see tests/support/small.py).
    """
    from infty_pretrain.engine import Engine

    before = {
        t.untyped_storage().data_ptr() for t in _alive()
    }  # an earlier run in the same process
    engine = Engine(config, "cpu")
    ds = engine.deepspeed
    mine = {k: v[engine.lanes.start : engine.lanes.stop] for k, v in lanes_window.items()}
    saved = 0
    for last in (False, True):
        kept = Saved(engine.model)
        with kept:
            loss, out = ds(
                mine["tokens"],
                mine["reset"],
                engine.states[0],
                labels=mine["labels"],
                weights=mine["weights"],
            )
        saved = kept.bytes
        kept.kept.clear()
        ds.backward(loss / mine["weights"].sum())
        engine.states = [out.state]
        del loss, out
        if not last:
            ds.step()
    return _by_kind(engine, before) | {"activations": saved}


def lane_states_bytes(config, lanes_window: dict) -> int:
    """Take two steps with the real engine and look at every lane's state that is alive at the end of the second, when
    the last of its micro-batches is through and the states of before are not given up yet."""
    from infty_pretrain.engine import Engine

    others = (
        _lane_states()
    )  # an earlier run in the same process; held, so that no address is used twice
    engine, found = Engine(config, "cpu"), []
    plain = engine.update

    def update(last: bool) -> float:
        if last:
            new = [s for s in _lane_states() if not any(s is o for o in others)]
            found.append(_bytes((t for s in new for t in s.named().values()), set()))
        return plain(last)

    engine.update = update
    for _ in range(2):  # the first begins with states that no pass has made
        engine.step(_window(lanes_window, engine.lanes))
    return found[-1]


def _window(lanes_window: dict, lanes: range) -> Window:
    mine = {k: v[lanes.start : lanes.stop] for k, v in lanes_window.items()}
    return Window(
        **mine,
        document=torch.zeros_like(mine["reset"], dtype=torch.long),
        tokens_in_step=int(lanes_window["weights"].sum()),
    )


def _lane_states() -> list[Tree]:
    gc.collect()
    return [
        x
        for x in gc.get_objects()
        if isinstance(x, Tree)
        and "segments" in x
        and "layers" in x
        and isinstance(x["segments"], Tensor)
    ]


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes autograd keeps for the backward pass, each storage once, parameters and buffers not at all."""

    def __init__(self, model: torch.nn.Module) -> None:
        # Storages, not tensors: the same activation is saved by several operations, often as a view.
        self.known = {
            p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())
        }
        self.kept: dict[int, Tensor] = {}
        super().__init__(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.kept[storage.data_ptr()] = x  # held, so that no address is used twice
        return x

    @property
    def bytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in self.kept.values())


def _by_kind(engine, before: set[int]) -> dict[str, int]:
    ds, seen = engine.deepspeed, set()
    optimizer = ds.optimizer
    lanes = _bytes((t for s in engine.states for t in s.named().values()), seen)
    moments = _bytes(
        (
            v
            for s in getattr(optimizer, "optimizer", optimizer).state.values()
            for v in s.values()
            if isinstance(v, Tensor)
        ),
        seen,
    )
    masters = _bytes(
        getattr(optimizer, "single_partition_of_fp32_groups", [])
        or getattr(optimizer, "fp32_partitioned_groups_flat", []),
        seen,
    )
    parameters = list(engine.model.parameters())
    weights = _bytes(
        (t for p in parameters for t in (p.data, getattr(p, "ds_tensor", None)) if t is not None),
        seen,
    )
    bucket = {
        t.untyped_storage().data_ptr()
        for b in getattr(optimizer, "ipg_buckets", {}).values()
        for t in _tensors(b)
    }
    gradients = _bytes(
        (
            t
            for t in _alive()
            if t.numel() > 1000
            and t.is_floating_point()
            and t.untyped_storage().data_ptr() not in bucket | before
        ),
        seen,
    )
    return {
        "weights": weights,
        "masters": masters,
        "moments": moments,
        "gradients": gradients,
        "lanes": lanes,
    }


def _tensors(bucket: object) -> list[Tensor]:
    found = []
    for value in vars(bucket).values():
        for x in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(x, Tensor):
                found.append(x)
    return found


def _alive() -> list[Tensor]:
    gc.collect()
    return [
        x
        for x in gc.get_objects()
        if isinstance(x, Tensor) and type(x) in (Tensor, torch.nn.Parameter)
    ]


def _bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the storages of these tensors that are not in `seen` yet."""
    total = 0
    for t in tensors:
        storage = t.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
