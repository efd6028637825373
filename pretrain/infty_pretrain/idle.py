"""Keys of a config that were written and have no effect beside the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infty.memory.config import MemoryConfig
from infty.memory.sections import held_in
from infty_pretrain import config as configs
from infty_pretrain.config import Config

Condition = tuple[str, Callable[[Config], bool], str]
"""A key, whether it has an effect, and why it has none."""


def _evaluates(config: Config) -> bool:
    every = config.evaluation.every
    return every is not None and every <= config.total_steps


def _decays(config: Config) -> bool:
    return config.schedule.warmup_steps < config.total_steps


def _carries_state(config: Config) -> bool:
    """Whether a lane takes anything from one window to the next."""
    return config.model.remembers or any(map(config.model.stm_of, range(config.model.layers)))


def _judges_losses(config: Config) -> bool:
    return config.faults.spike_window // 2 < config.total_steps


def _keeps_some_for_good(config: Config) -> bool:
    kept = config.checkpoint
    return math.lcm(kept.every, kept.keep_every or 1) <= config.total_steps


NOT_EVALUATED = "evaluation.every is not set, or above the number of steps"
ENDS_IN_WARMUP = "the run ends before the warm-up does"
# A key may have several: the first that fails is told.
CONDITIONS: tuple[Condition, ...] = (
    ("data.validation", _evaluates, f"nothing is evaluated while training ({NOT_EVALUATED})"),
    ("evaluation.every", _evaluates, "the run ends before the first evaluation"),
    ("evaluation.windows", _evaluates, NOT_EVALUATED),
    (
        "schedule.warmup_steps",
        _decays,
        f"{ENDS_IN_WARMUP}: the learning rate never reaches optimizer.lr",
    ),
    (
        "batch.window_segments",
        lambda c: sum((c.batch.window_stages or {}).values()) < c.total_steps,
        "the run ends in an earlier stage (batch.window_stages)",
    ),
    (
        "batch.part_segments",
        lambda c: c.batch.part_segments < c.batch.window_segments,
        "a window has no more segments than that (batch.window_segments)",
    ),
    ("schedule.kind", _decays, ENDS_IN_WARMUP),
    ("schedule.min_ratio", lambda c: c.schedule.kind != "constant", "schedule.kind is constant"),
    ("schedule.min_ratio", _decays, ENDS_IN_WARMUP),
    (
        "faults.spike_window",
        lambda c: c.faults.spike_sigma is not None,
        "faults.spike_sigma is null",
    ),
    ("faults.spike_window", _judges_losses, "the run ends before half of it is filled"),
    ("faults.spike_sigma", _judges_losses, "the run ends before half of faults.spike_window"),
    ("optimizer.memory_lr", lambda c: c.model.remembers, "the model has no memory"),
    ("optimizer.gate_lr", lambda c: c.model.remembers, "the model has no memory"),
    ("logging.pictures", lambda c: c.model.remembers, "the model has no memory"),
    (
        "checkpoint.every",
        lambda c: c.checkpoint.every <= c.total_steps,
        "the run ends before, with a checkpoint of its own",
    ),
    (
        "checkpoint.keep_every",
        _keeps_some_for_good,
        "no regular checkpoint (checkpoint.every) comes at a multiple of it",
    ),
    (
        "checkpoint.memory",
        _carries_state,
        "the model has neither a memory nor a short-term memory",
    ),
    (
        "model.stm_length",
        lambda c: c.model.stm_layers != (),
        "model.stm_layers names no layer",
    ),
    ("model.stm_layers", lambda c: c.model.stm_length > 0, "model.stm_length is 0"),
    (
        "model.sinks",
        lambda c: any(map(c.model.stm_of, range(c.model.layers))),
        "no layer has a short-term memory (model.stm_length, model.stm_layers)",
    ),
    ("model.window_layers", lambda c: c.model.window is not None, "model.window is not set"),
    (
        "model.rope_scaling",
        lambda c: c.model.positions == "rotary",
        "model.positions is not rotary",
    ),
    (
        "model.rope_theta",
        lambda c: c.model.positions == "rotary",
        "model.positions is not rotary",
    ),
)

MemoryCondition = tuple[str, Callable[[MemoryConfig, Config], bool], str]


def _warps(memory: MemoryConfig, _: Config) -> bool:
    return memory.sticky != "off"


def _is_placed(memory: MemoryConfig, _: Config) -> bool:
    return memory.family.pools


NO_WARP = "sticky is off"
NO_PLACE = "a density of this family has neither mean nor variance"
# Of a continuous memory, in one layer.
CONTINUOUS: tuple[MemoryCondition, ...] = (
    ("content", lambda m, _: not m.signal_kind.of_attention, "signal is not hidden"),
    ("sticky_heads", _warps, NO_WARP),
    ("sticky_seed", lambda m, _: m.sticky == "multinomial", "sticky is not multinomial"),
    ("bins", lambda m, _: not m.family.attends, "local attention reads the signal (density)"),
    ("explore", _warps, NO_WARP),
    ("attention_span", _warps, NO_WARP),
    ("attention_span", lambda m, _: not m.policy.constant, "contraction is a constant"),
    ("maps", _is_placed, NO_PLACE),
    ("map_bias", _is_placed, NO_PLACE),
    ("sigma_floor", _is_placed, NO_PLACE),
    ("sigma_clamp", _is_placed, NO_PLACE),
    ("kl_sigma", lambda m, _: m.kl_weight > 0, "kl_weight is 0"),
)


def idle_keys(written: dict[str, Any], config: Config) -> list[str]:
    """A sentence for every key in `written`, a config's values as they were written, that changes nothing in the
    `config` that they make."""
    said: dict[str, str] = {}
    for key, matters, why in CONDITIONS:
        section, name = key.split(".")
        if _given(written.get(section), name) and not matters(config):
            said.setdefault(key, why)
    if _decided(written, config):
        said["model.family"] = f"{', '.join(DECIDED)} are given"
    for name, section in config.model.sections().items():
        key = "model.memory" if name == "memory" else f"model.memories.{name}"
        for inner, why in _idle_in_memory(_section(written, name), section, config):
            said.setdefault(f"{key}.{inner}" if inner else key, why)
    return [f"{key} has no effect: {why}" for key, why in said.items()]


def load(path: Path, overrides: list[str] | None) -> Config:
    """As `config.load`, and a line for every key that has no effect. Raises UserError."""
    given = configs.written(path, overrides)
    config = configs.from_dict(given, str(path))
    for sentence in idle_keys(given, config):
        print(f"note: {sentence}", flush=True)
    return config


DECIDED = ("norm", "activation", "positions", "bias", "tie_embeddings")
"""What model.family decides where it is left out."""


def _decided(written: dict[str, Any], config: Config) -> bool:
    model = written.get("model")
    return _given(model, "family") and all(_given(model, name) for name in DECIDED)


def _section(written: dict[str, Any], name: str) -> dict[str, Any]:
    """What was written of a memory's section."""
    model = written.get("model") or {}
    found = model.get("memory") if name == "memory" else (model.get("memories") or {}).get(name)
    return found if isinstance(found, dict) else {}


def _idle_in_memory(
    written: dict[str, Any], section: Any, config: Config
) -> Iterator[tuple[str, str]]:
    """(key inside the section, why it has no effect); an empty key is the section itself."""
    layers = held_in(section, config.model.layers)
    if not layers:
        yield "", "layers names no layer"
        return
    if _given(written, "backprop") and not any(_reads_its_own(section, config, i) for i in layers):
        yield "backprop", "no window reads what it has written: batch.window_segments is too small"
    if not isinstance(section, MemoryConfig):
        return
    each = {layer: section.of(layer) for layer in layers}
    overrides = written.get("overrides") if isinstance(written.get("overrides"), dict) else {}
    for key, matters, why in CONTINUOUS:
        if _given(written, key) and not any(matters(m, config) for m in each.values()):
            yield key, why
        for layer, changes in overrides.items():
            if _given(changes, key) and not matters(each[int(layer)], config):
                yield f"overrides.{layer}.{key}", why


def _reads_its_own(section: Any, config: Config, layer: int) -> bool:
    """Whether a window is long enough for a segment to read what an earlier one of it has written."""
    model = config.model
    # A compressive memory is written with tokens of earlier windows, too: what compresses them is trained.
    delay = 0 if section.kind == "compressive" else model.stm_of(layer) // model.segment_length
    return config.batch.window_segments >= delay + 2


def _given(section: Any, name: str) -> bool:
    return isinstance(section, dict) and section.get(name) is not None
