"""Which parameters learn, by their names: without torch, for the planner too."""

from __future__ import annotations

MEMORIES = ".memories."
"""In the name of every parameter of a memory, and of no other."""
LORA = (".lora_a", ".lora_b")
"""Ends the name of every parameter of a low-rank update (`model.lora`), and of no other."""


def learns(name: str, train: str) -> bool:
    """Whether a parameter learns; `train` is that of the config."""
    if train == "everything" or MEMORIES in name:
        return True
    return train == "memory+lora" and name.endswith(LORA)


def is_gate(name: str) -> bool:
    """Whether a parameter is the gate of a memory: what it adds is multiplied by it, and it begins at zero."""
    return MEMORIES in name and name.rpartition(".")[2].split("_")[-1] == "gate"
