"""The kinds of memory that a config can name. A new one is a class of `infty.layers.memories.base` and a line here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from infty.errors import UserError
from infty.memory.config import MemoryConfig
from infty.memory.sections import AssociativeConfig, CompressiveConfig, ContinuationConfig

if TYPE_CHECKING:
    from infty.config import ModelConfig
    from infty.layers.memories.base import Memory


class MemorySection(Protocol):
    """What every memory's section of the config has: a frozen dataclass that checks itself when it is made."""

    layers: tuple[int, ...] | None
    """Layers (from 0) that have this memory; None: all, or the last, as `everywhere` says."""

    @property
    def everywhere(self) -> bool:
        """Whether all layers have this memory where `layers` is left out; otherwise the last one has."""
        ...

    @property
    def learns_to_write(self) -> bool:
        """Whether parameters of the memory are trained only where a window reads what it has written."""
        ...

    @property
    def silent(self) -> bool:
        """Whether a fresh memory changes nothing: a model that has one is the model without."""
        ...

    def of(self, layer: int) -> Any:
        """The section as it is for one layer."""
        ...

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that cannot have this memory. Raises UserError."""
        ...


@dataclass(frozen=True)
class Kind:
    """One kind of memory."""

    section: type
    """The dataclass of its section in a config."""
    layer: str
    """`module:class` of its `Memory`; imported only where a model is built or counted."""

    def memory(self) -> type[Memory]:
        """The class named by `layer`."""
        module, _, name = self.layer.partition(":")
        return getattr(importlib.import_module(module), name)


def memory_of(section: Any) -> type[Memory]:
    """The class of the memory that a section describes."""
    return kind_of(section).memory().variant(section)


KINDS: dict[str, Kind] = {
    "continuous": Kind(MemoryConfig, "infty.layers.memories.continuous:Continuous"),
    "compressive": Kind(CompressiveConfig, "infty.layers.memories.compressive:Compressive"),
    "associative": Kind(AssociativeConfig, "infty.layers.memories.associative:Associative"),
    "continuation": Kind(ContinuationConfig, "infty.layers.memories.continuation:Continuation"),
}


def kind_of(section: Any) -> Kind:
    """The kind of a memory's section, given as its dataclass or as plain values (left out: continuous).

    Raises UserError for a kind that there is not.
    """
    name = section.get("kind", "continuous") if isinstance(section, dict) else section.kind
    if name not in KINDS:
        raise UserError(f"model.memory.kind: there is no '{name}'; there are {', '.join(KINDS)}")
    return KINDS[name]


def section_of(values: dict[str, Any]) -> Any:
    """A memory's section from plain values, as JSON holds them. Raises UserError."""
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return kind_of(values).section(**tuples)
