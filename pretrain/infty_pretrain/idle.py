"""Keys of a config that were written and have no effect beside the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infty_pretrain.config import Config

# key -> (whether it has an effect, why it has none)
CONDITIONS: dict[str, tuple[Callable[[Config], bool], str]] = {
    "data.validation": (
        lambda c: c.evaluation.every is not None,
        "evaluation.every is not set, so nothing is evaluated while training",
    ),
    "evaluation.windows": (
        lambda c: c.evaluation.every is not None,
        "evaluation.every is not set",
    ),
    "schedule.min_ratio": (
        lambda c: c.schedule.kind != "constant",
        "schedule.kind is constant",
    ),
    "schedule.warmup_steps": (
        lambda c: c.schedule.warmup_steps < c.total_steps,
        "the run ends before the warm-up does: the learning rate never reaches optimizer.lr",
    ),
    "faults.spike_window": (
        lambda c: c.faults.spike_sigma is not None,
        "faults.spike_sigma is null",
    ),
    "optimizer.memory_lr": (lambda c: c.model.remembers, "the model has no memory"),
    "optimizer.gate_lr": (lambda c: c.model.remembers, "the model has no memory"),
    "model.stm_layers": (lambda c: c.model.stm_length > 0, "model.stm_length is 0"),
    "model.window_layers": (lambda c: c.model.window is not None, "model.window is not set"),
    "model.rope_scaling": (
        lambda c: c.model.positions == "rotary",
        "model.positions is not rotary",
    ),
    "model.rope_theta": (
        lambda c: c.model.positions == "rotary",
        "model.positions is not rotary",
    ),
}


def idle_keys(written: dict[str, Any], config: Config) -> list[str]:
    """A sentence for every key in `written`, a config's values as they were written, that changes nothing in the
    `config` that they make."""
    said = []
    for key, (matters, why) in CONDITIONS.items():
        section, name = key.split(".")
        inner = written.get(section)
        given = isinstance(inner, dict) and inner.get(name) is not None
        if given and not matters(config):
            said.append(f"{key} has no effect: {why}")
    return said
