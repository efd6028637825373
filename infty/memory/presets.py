"""Memories with a name: those of the paper (Martins, Marinho & Martins, ACL 2022; arXiv 2109.00301)."""

from __future__ import annotations

from typing import Any

from infty.errors import UserError
from infty.memory.config import MemoryConfig

# What both experiments of the paper share.
_PAPER: dict[str, Any] = {
    "basis": 512,
    "samples": 512,
    "signal": "hidden",
    "content": "residual",
    "sticky": "off",
    "bins": 128,
    "explore": 0.0,
    "precision": "float64",
    "density": "gaussian",
    "maps": "shared",
    "map_bias": False,
    "sigma_clamp": True,
    "gate": True,
    "backprop": False,
    "kl_weight": 1e-6,
    "kl_sigma": 0.05,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The sorting task: segments of 1024 tokens that leave a short-term memory of 1024.
    "paper-sorting": _PAPER
    | {"widths": (0.01, 0.05), "ridge": 1.0, "contraction": 0.75, "sigma_floor": 1e-6},
    # GPT-2 fine-tuning: segments of 512, no short-term memory; the variant with sticky memories is below.
    "paper-gpt2": _PAPER
    | {"widths": (0.005, 0.01), "ridge": 0.5, "contraction": 0.5, "sigma_floor": 1e-4},
}
PRESETS["paper-gpt2-sticky"] = PRESETS["paper-gpt2"] | {"sticky": "multinomial"}


def fields(name: str) -> dict[str, Any]:
    """What the named memory sets. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(
            f"model.memory.preset: there is no '{name}'; there are {', '.join(sorted(PRESETS))}"
        )
    return PRESETS[name]


def preset(name: str, **changes: Any) -> MemoryConfig:
    """The named memory, with fields changed at will. Raises UserError for an unknown name."""
    return MemoryConfig(**(fields(name) | changes))
