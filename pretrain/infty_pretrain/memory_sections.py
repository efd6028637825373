"""The sections of a config that describe memories: which type each is read as (infty.memory_kinds), and presets."""

from __future__ import annotations

import typing
from typing import Any

from infty.errors import UserError
from infty.memory import presets
from infty.memory_kinds import kind_of
from infty_pretrain import typed


def with_memories(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values with every memory's section made what its kind says (infty.memory_kinds)."""
    model = values.get("model")
    if not isinstance(model, dict):
        return values
    made = {}
    if model.get("memory") is not None:
        made["memory"] = _memory(model["memory"], source, "model.memory")
    if model.get("memories") is not None:
        if not isinstance(model["memories"], dict):
            raise UserError(
                f"{source}: model.memories must hold a section a name, not {model['memories']!r}"
            )
        made["memories"] = {
            str(name): _memory(section, source, f"model.memories.{name}")
            for name, section in model["memories"].items()
        }
    return values | {"model": model | made}


def _memory(section: Any, source: str, key: str) -> Any:
    if not isinstance(section, dict):
        raise UserError(
            f"{source}: {key} must be a section, such as {{kind: continuous}}, not {section!r}"
        )
    if "preset" in section:
        changes = {name: value for name, value in section.items() if name != "preset"}
        section = presets.fields(section["preset"]) | changes
    kind = kind_of(section).section
    if isinstance(section.get("overrides"), dict):
        section = section | {
            "overrides": _overrides(kind, section["overrides"], source, f"{key}.overrides")
        }
    return typed.validated(kind, section, source, f"{key}.")


def _overrides(kind: type, layers: dict[Any, Any], source: str, key: str) -> dict[Any, Any]:
    """What is different in some layers, each value read by the type of its key."""
    hints = typing.get_type_hints(kind)
    made = {}
    for layer, changes in layers.items():
        if isinstance(changes, dict):
            changes = {
                name: typed.value_of(hints[name], value, source, f"{key}.{layer}.{name}")
                if name in hints
                else value
                for name, value in changes.items()
            }
        made[layer] = changes
    return made
