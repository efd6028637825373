"""Which layouts of a run fit on a cluster, and which of them is fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from infty.errors import UserError
from infty.hardware import GPU
from infty_pretrain.config import Config
from infty_tools.plan import activations as plan_activations
from infty_tools.plan import cost as plan_cost
from infty_tools.plan import memory as plan_memory
from infty_tools.plan.memory import Layout


@dataclass(frozen=True)
class Option:
    """A layout with what it needs and how fast it would be."""

    layout: Layout
    bytes: dict[str, float]
    """On a rank, by kind."""
    cost: plan_cost.Cost

    @property
    def total(self) -> float:
        return sum(self.bytes.values())

    def overrides(self) -> list[str]:
        """What to put on the command line to train like this."""
        parts = {
            "parallel.tensor": self.layout.tensor,
            "parallel.zero_stage": self.layout.zero_stage,
            "parallel.sequence": str(self.layout.sequence).lower(),
            "parallel.recompute": str(self.layout.recompute).lower(),
            "batch.micro_batch": self.layout.micro_lanes,
        }
        return [f"{k}={v}" for k, v in parts.items()]


def of_config(config: Config, world: int) -> Layout:
    """The layout that a config asks for on `world` GPUs. Raises UserError when it cannot be spread over them."""
    config.check_layout(world)
    p = config.parallel
    data = world // p.tensor
    count = config.micro_batches(data)
    return Layout(
        p.tensor,
        data,
        p.zero_stage,
        p.sequence,
        p.recompute,
        config.batch.lanes // data // count,
        count,
        config.batch.window_segments,
        config.precision,
        config.train,
        config.batch.part_segments,
    )


def evaluate(config: Config, layout: Layout, gpu: GPU, gpus_per_node: int) -> Option:
    """Everything the planner knows of one layout."""
    model = config.model
    kinds = plan_memory.model_states(model, layout)
    kinds["activations"] = plan_activations.activations(model, layout)
    kinds["lanes"] = plan_memory.lane_states(model, layout)
    kinds["operators"] = plan_memory.operators(model, layout)
    work = plan_memory.working(model, layout)
    # Logits and gathered parameters are gone when the optimizer updates; buckets stay.
    kinds["working"] = work["buckets"] + max(
        work.get("gathered", 0.0) + work["logits"], work["update"]
    )
    return Option(layout, kinds, plan_cost.cost(model, layout, gpu, gpus_per_node))


def search(config: Config, nodes: int, gpus_per_node: int, gpu: GPU) -> list[Option]:
    """Every layout that fits, the fastest first."""
    options = (
        evaluate(config, layout, gpu, gpus_per_node)
        for layout in _layouts(config, nodes * gpus_per_node, gpus_per_node)
    )
    fitting = [o for o in options if o.total <= gpu.memory]
    return sorted(fitting, key=lambda o: (-o.cost.tokens_per_second, o.total))


def _layouts(config: Config, world: int, gpus_per_node: int) -> Iterator[Layout]:
    stages = (1, 2, 3) if config.precision == "bf16" else (0, 1, 2, 3)
    for tensor in (t for t in (1, 2, 4, 8, 16) if t <= gpus_per_node and world % t == 0):
        data = world // tensor
        if config.batch.lanes % data:
            continue
        lanes = config.batch.lanes // data
        for stage in stages:
            for sequence in (False, True):
                for recompute in (False, True):
                    parallel = dataclasses.replace(
                        config.parallel,
                        tensor=tensor,
                        zero_stage=stage,
                        sequence=sequence,
                        recompute=recompute,
                    )
                    if _valid(config, parallel):
                        for micro in (m for m in range(1, lanes + 1) if lanes % m == 0):
                            yield Layout(
                                tensor,
                                data,
                                stage,
                                sequence,
                                recompute,
                                micro,
                                lanes // micro,
                                config.batch.window_segments,
                                config.precision,
                                config.train,
                                config.batch.part_segments,
                            )


def _valid(config: Config, parallel) -> bool:
    try:
        dataclasses.replace(config, parallel=parallel)
    except UserError:
        return False
    return True


def advice(
    config: Config,
    fitting: list[Option],
    gpu: GPU,
    nodes: int,
    gpus_per_node: int,
) -> str:
    """What to change when a config does not fit."""
    if fitting:
        best = fitting[0]
        return (
            f"It fits, and would be fastest, with {' '.join(best.overrides())} "
            f"({best.total / 2**30:.1f} of {gpu.memory / 2**30:.1f} GiB)."
        )
    data = config.batch.lanes
    for more in (2, 4, 8, 16, 32, 64, 128):
        if nodes * more * gpus_per_node > 16 * data:
            break
        found = search(config, nodes * more, gpus_per_node, gpu)
        if found:
            return f"It fits on {nodes * more} nodes, with {' '.join(found[0].overrides())}."
    return (
        "No layout of it fits, on more nodes either: use a GPU with more memory, a smaller model, fewer "
        "batch.window_segments, a shorter model.stm_length or a smaller model.memory.basis."
    )
