"""Weights and optimizer moments in a form that knows no layout: one whole float32 tensor a parameter.

Everything DeepSpeed splits (over data-parallel ranks, by ZeRO stage) and megatron-core splits (over tensor-parallel
ranks) is put together on the way out and taken apart on the way in, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor

from infty.parallel import groups

MOMENTS = ("exp_avg", "exp_avg_sq")
AVAILABLE = ZeroParamStatus.AVAILABLE


def export(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, {"weight", "exp_avg", "exp_avg_sq"}) of every parameter, whole, on this rank's device; of one that is
    frozen the weight alone.

    A collective: every rank must go through it to the end.
    """
    if not _optimizer(engine).state:  # no step was taken yet
        _make_moments(engine)
    _link_moments(engine)
    for name, p in engine.module.named_parameters():
        parts = {"weight": _weight(engine, p)} | {m: _moment(engine, p, m) for m in _moments_of(p)}
        yield name, {k: _join(v, p) for k, v in parts.items()}


def load(engine: deepspeed.DeepSpeedEngine, read: Callable[[str, str], Tensor], step: int) -> None:
    """Put every parameter's `read(name, part)` into the engine, and set the optimizer's step count."""
    _make_moments(engine)
    with torch.no_grad():
        for name, p in engine.module.named_parameters():
            for part in ("weight", *_moments_of(p)):
                _put(engine, p, part, slice_for_rank(read(name, part), p))
    _set_step(engine, step)


def load_weights(
    engine: deepspeed.DeepSpeedEngine, read: Callable[[str], Tensor | None]
) -> tuple[int, int]:
    """Put `read(name)` into every parameter for which it gives something, and leave the optimizer as it is.

    Returns how many parameters were filled, and how many were left.
    """
    filled = left = 0
    with torch.no_grad():
        for name, p in engine.module.named_parameters():
            weight = read(name)
            if weight is None:
                left += 1
            else:
                _put(engine, p, "weight", slice_for_rank(weight, p))
                filled += 1
    return filled, left


def _moments_of(p: torch.nn.Parameter) -> tuple[str, ...]:
    """A frozen parameter has none."""
    return MOMENTS if p.requires_grad else ()


def optimizer_step(engine: deepspeed.DeepSpeedEngine) -> int:
    """Steps the optimizer has taken, as it counts for its bias correction."""
    counts = {int(s["step"]) for s in _optimizer(engine).state.values() if "step" in s}
    return max(counts, default=0)


def _optimizer(engine: deepspeed.DeepSpeedEngine) -> torch.optim.Optimizer:
    """The torch optimizer inside whatever DeepSpeed wrapped around it."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _make_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Give the optimizer the state that it would make in its first step."""
    optimizer, wrapper = _optimizer(engine), engine.optimizer
    held = [p for p in engine.module.parameters() if p.requires_grad]
    for attribute in (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
    ):
        held = getattr(wrapper, attribute, held)  # ZeRO-3; ZeRO-1 and 2; bf16 with ZeRO-1
    for p in held:
        optimizer.state[p] = {"step": torch.tensor(0.0)} | {m: torch.zeros_like(p) for m in MOMENTS}
    if hasattr(wrapper, "_lazy_init_hp_params_optimizer_state"):
        wrapper._lazy_init_hp_params_optimizer_state()


def _link_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let parameters know their moments: ZeRO-1 and 2 do so after the first group's first step, when those of the other
    groups do not exist yet, and never again."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "_hp_optimizer_states_linked") and _optimizer(engine).state:
        wrapper._hp_optimizer_states_linked = False
        wrapper._lazy_init_hp_params_optimizer_state()


def _set_step(engine: deepspeed.DeepSpeedEngine, step: int) -> None:
    for state in _optimizer(engine).state.values():
        if "step" in state:
            state["step"] = torch.full_like(
                torch.as_tensor(state["step"], dtype=torch.float32), float(step)
            )


def _weight(engine: deepspeed.DeepSpeedEngine, p: torch.nn.Parameter) -> Tensor:
    if p.requires_grad and engine.zero_optimization_stage() > 0:
        return safe_get_full_fp32_param(p)
    if getattr(p, "ds_status", AVAILABLE) == AVAILABLE:
        return p.detach()
    with deepspeed.zero.GatheredParameters([p]):  # frozen, split by ZeRO-3: it has no master
        return p.detach().clone()


def _moment(engine: deepspeed.DeepSpeedEngine, p: torch.nn.Parameter, moment: str) -> Tensor:
    if engine.zero_optimization_stage() == 0:
        return (
            engine.optimizer.state[p][moment]
            if p in engine.optimizer.state
            else torch.zeros_like(p)
        )
    return safe_get_full_optimizer_state(p, moment)


def _join(part: Tensor, p: torch.nn.Parameter) -> Tensor:
    """Put the tensor-parallel parts of a parameter together."""
    part = part.detach().float().contiguous()
    if groups.tensor_size() == 1 or not getattr(p, "tensor_model_parallel", False):
        return part
    parts = [torch.empty_like(part) for _ in range(groups.tensor_size())]
    dist.all_gather(parts, part, group=groups.tensor_group())
    return torch.cat(parts, p.partition_dim)


def slice_for_rank(whole: Tensor, p: torch.nn.Parameter) -> Tensor:
    """This tensor-parallel rank's part of a whole parameter."""
    if groups.tensor_size() > 1 and getattr(p, "tensor_model_parallel", False):
        whole = whole.chunk(groups.tensor_size(), p.partition_dim)[groups.tensor_rank()]
    return whole.float().contiguous()


def _put(
    engine: deepspeed.DeepSpeedEngine, p: torch.nn.Parameter, part: str, value: Tensor
) -> None:
    stage, value = engine.zero_optimization_stage(), value.to(engine.device)
    if stage == 3:
        _put_partition(p, part, value)
    elif not p.requires_grad:
        p.data.copy_(value)
    elif stage == 0:
        (p.data if part == "weight" else engine.optimizer.state[p][part]).copy_(value)
    elif part == "weight":
        safe_set_full_fp32_param(p, value)
        p.data.copy_(value)
    else:
        safe_set_full_optimizer_state(p, value, part)


def _put_partition(p: torch.nn.Parameter, part: str, value: Tensor) -> None:
    """ZeRO-3: this rank's partition, padded as DeepSpeed pads; DeepSpeed's own setter does not pad."""
    size = (safe_get_local_fp32_param(p) if p.requires_grad else p.ds_tensor).numel()
    flat = torch.zeros(size * groups.data_size(), device=value.device)
    flat[: value.numel()] = value.flatten()
    mine = flat[size * groups.data_rank() : size * (groups.data_rank() + 1)]
    if part != "weight":
        safe_set_local_optimizer_state(p, mine, part)
        return
    if p.requires_grad:
        safe_set_local_fp32_param(p, mine)
    p.ds_tensor.data.copy_(mine[: p.ds_tensor.numel()])
    if p.numel() == value.numel():  # small parameters stay gathered
        p.data.copy_(value.view_as(p))
