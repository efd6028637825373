"""Where the time of a step goes, by the parts that infty.parts names.

What torch's profiler says an operation took is given to the innermost part that it ran in. An operation of the
backward pass belongs to the part of the operation whose gradient it is: both have the same sequence number.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from infty.parts import PREFIX
from infty_tools.bench.steps import Trained

REST = "rest"
COLLECTIVES = "collectives"
_COLLECTIVE = ("c10d::", "gloo:", "nccl:", "ncclDevKernel")
_BACKWARD = "autograd::engine::evaluate_function"


def profiled(model: Trained, device: str, steps: int = 3) -> dict[str, float]:
    """Seconds of each part in a step, on the GPU where the device is one: the least of several steps, as other programs
    may take their turns in between. The largest first."""
    every = [_step(model, device.startswith("cuda")) for _ in range(steps)]
    names = {name for found in every for name in found}
    least = {name: min(found.get(name, 0.0) for found in every) for name in names}
    return dict(sorted(least.items(), key=lambda item: -item[1]))


def _step(model: Trained, gpu: bool) -> dict[str, float]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, acc_events=True) as made:
        model.step()
        if gpu:
            torch.cuda.synchronize()
    return by_part(list(made.events()), gpu)


def by_part(events: list[Any], gpu: bool) -> dict[str, float]:
    """Seconds of each part in all events of a profile."""
    of_node = _of_nodes(events)
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        took = event.self_device_time_total if gpu else event.self_cpu_time_total
        if took > 0 and event.device_type == torch.autograd.DeviceType.CPU:
            seconds[_part(event, of_node)] += took / 1e6
    return dict(seconds)


def _of_nodes(events: list[Any]) -> dict[int, str]:
    """The part of each operation of the forward pass that has a gradient, by its sequence number.

    An operation is told the number that the next node will get: the last one that was told it made the node.
    """
    forward = [e for e in events if e.sequence_nr >= 0 and not _in_backward(e)]
    forward.sort(key=lambda event: event.time_range.start)
    return {event.sequence_nr: _part(event, {}) for event in forward}


def _in_backward(event: Any) -> bool:
    return any(e.name.startswith(_BACKWARD) for e in _with_those_around(event))


def _part(event: Any, of_node: dict[int, str]) -> str:
    for around in _with_those_around(event):
        if around.name.startswith(PREFIX):
            return around.name[len(PREFIX) :]
        if around.name.startswith(_COLLECTIVE):
            return COLLECTIVES
        if around.name.startswith(_BACKWARD):
            return of_node.get(around.sequence_nr, REST)
    return REST


def _with_those_around(event: Any) -> Any:
    while event is not None:
        yield event
        event = event.cpu_parent
