"""The kinds of memory that a transformers model may have. A new one is a class of `memory_infty`
and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infty.errors import UserError
from infty.hf.associative_infty import InftyAssociativeMemory
from infty.hf.continuation_infty import InftyContinuationMemory
from infty.hf.continuous_infty import InftyContinuousMemory
from infty.hf.memory_infty import InftyMemory
from infty.memory.config import MemoryConfig
from infty.memory.sections import AssociativeConfig, ContinuationConfig, held_in

if TYPE_CHECKING:
    from infty.hf.configuration_infty import InftyConfig

TWINS: dict[str, tuple[type, type[InftyMemory]]] = {
    "continuous": (MemoryConfig, InftyContinuousMemory),
    "associative": (AssociativeConfig, InftyAssociativeMemory),
    "continuation": (ContinuationConfig, InftyContinuationMemory),
}
"""The dataclass of a kind's section in a config, and its memory."""


def section_of(name: str, values: dict[str, Any]) -> Any:
    """The section of the memory that a config calls `name`, checked. Raises UserError for a kind
    without a twin."""
    kind = values.get("kind", "continuous")
    if kind not in TWINS:
        raise UserError(
            f"the memory '{name}' is {kind}, which has no transformers twin: it cannot be "
            f"exported; only {' and '.join(TWINS)} memories can be (`infty evaluate` reads "
            "every checkpoint)"
        )
    section, _ = TWINS[kind]
    return section(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def memory_of(section: Any) -> type[InftyMemory]:
    """The class of the memory that a section describes."""
    _, memory = TWINS[section.kind]
    return memory.variant(section)


def sections_of(config: InftyConfig, layer: int) -> dict[str, Any]:
    """The memories of one layer, by name, each with what is different in this layer. Raises
    UserError."""
    sections = {name: section_of(name, values) for name, values in (config.memories or {}).items()}
    return {
        name: section.of(layer)
        for name, section in sections.items()
        if layer in held_in(section, config.num_hidden_layers)
    }


__all__ = ["TWINS", "memory_of", "section_of", "sections_of"]
