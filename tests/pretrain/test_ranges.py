"""Every number of a config has a range, which a message names: a key added without one fails here."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infty.config import ModelConfig
from infty.errors import UserError
from infty.memory.config import PER_LAYER, MemoryConfig
from infty.memory_kinds import KINDS, section_of
from infty_pretrain import config as configs
from infty_pretrain.config import Config
from support import small_run

RANGE = r"(a whole number|a number) (from|above|not below) |layers 0 to 1"


def numeric(kind: type) -> list[str]:
    """The keys of a dataclass that hold whole numbers, numbers, or several of them."""
    hints = typing.get_type_hints(kind)
    return [f.name for f in dataclasses.fields(kind) if {int, float} & leaves(hints[f.name])]


def leaves(hint: Any) -> set[Any]:
    """The plain types in a type hint."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, list):
        return set().union(*(leaves(inner) for inner in typing.get_args(hint)))
    return {hint}


def listed(kind: type, name: str, value: Any) -> Any:
    """The value as the key wants it: several where it holds several."""
    hint = str(typing.get_type_hints(kind)[name])
    return [value, value] if "tuple[" in hint else value


def keys() -> Iterator[tuple[str, Callable[[Any], dict[str, Any]]]]:
    """Every number of a config: its name, and what makes changes to a config from a value for it."""
    for section, hint in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint) and hint is not ModelConfig:
            for name in numeric(hint):
                yield (
                    f"{section}.{name}",
                    lambda v, s=section, h=hint, n=name: {s: {n: listed(h, n, v)}},
                )
    for name in numeric(ModelConfig):
        yield f"model.{name}", lambda v, n=name: {"model": {n: listed(ModelConfig, n, v)}}
    for kind, made in KINDS.items():
        for name in numeric(made.section):
            yield (
                f"model.memory[{kind}].{name}",
                lambda v, k=kind, h=made.section, n=name: {
                    "model": {"memory": {"kind": k, n: listed(h, n, v)}}
                },
            )
    for name in set(numeric(MemoryConfig)) & set(PER_LAYER):
        yield (
            f"model.memory.overrides.0.{name}",
            lambda v, n=name: {
                "model": {
                    "memory": {"basis": 16, "overrides": {0: {n: listed(MemoryConfig, n, v)}}}
                }
            },
        )


KEYS = dict(keys())
WRONG = ["nan", "inf", "-inf", float("nan"), float("inf"), "1e300", -(10**15), 10**17, "-1"]


def make(changes: dict[str, Any]) -> Config:
    """A small run's config with one section changed."""
    values = small_run.values(Path("run"), Path("data"))
    for section, inner in changes.items():
        values[section] = {**values.get(section, {}), **inner}
    if "tokens" in changes.get("run", {}):
        values["run"].pop("steps", None)
    return configs.from_dict(values)


def test_the_walk_finds_the_numbers():
    assert {"run.seed", "optimizer.betas", "model.kv_heads", "model.norm_eps"} <= KEYS.keys()
    assert {"model.memory[continuation].key_size", "model.memory.overrides.0.ridge"} <= KEYS.keys()
    assert len(KEYS) >= 70


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_number_of_a_config_has_a_range(key):
    name = key.rpartition(".")[2]
    for value in WRONG:
        with pytest.raises(UserError) as error:
            make(KEYS[key](value))
        message = str(error.value)
        assert name in message and "\n" not in message
        if type(value) is int:
            assert re.search(RANGE, message), message


def test_text_where_a_number_belongs_is_told_in_the_same_words():
    for key, change in KEYS.items():
        with pytest.raises(UserError) as error:
            make(change("fast"))
        message = str(error.value)
        assert re.search(r"(\w+)(\.\d)?: fast must be (a|a whole) number", message), (key, message)
        assert key.rpartition(".")[2] in message and "Input should" not in message


def test_a_length_in_tokens_is_named_as_such():
    with pytest.raises(UserError, match=r"^run\.tokens: 0 must be a whole number from 1 to "):
        make({"run": {"tokens": 0}})


def test_a_further_memory_is_called_by_its_name():
    with pytest.raises(UserError, match=r"^model\.memories\.more\.basis: 0 must be a whole"):
        make({"model": {"memories": {"more": {"basis": 0}}}})


@pytest.mark.parametrize("value", ["8", True, 8.0, -1])
def test_numbers_of_an_edited_export_are_checked_too(value):
    """JSON's values reach a section without a config's reader."""
    with pytest.raises(UserError, match=r"model\.memory\.basis: .* must be a whole number from 1"):
        section_of({"basis": value})
