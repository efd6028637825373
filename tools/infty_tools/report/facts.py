"""The table that sets runs side by side, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FACTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("steps", "steps", lambda v: f"{v:,}"),
    ("tokens", "tokens learned from", lambda v: f"{v:,}"),
    ("loss", "loss, mean of the last steps", lambda v: f"{v:.4f}"),
    ("perplexity_on", "validation perplexity, memory on", lambda v: f"{v:,.2f}"),
    ("perplexity_off", "validation perplexity, memory off", lambda v: f"{v:,.2f}"),
    ("tokens_per_second", "tokens a second, median", lambda v: f"{v:,.0f}"),
    ("mfu", "MFU, median", lambda v: f"{v:.0%}"),
    ("parameters", "parameters", lambda v: f"{v:,}"),
    ("documents", "documents", lambda v: f"{v:,}"),
    ("data_tokens", "tokens of the dataset", lambda v: f"{v:,}"),
    ("processes", "processes", lambda v: f"{v:,}"),
    ("layout", "layout", str),
    ("device", "device", str),
    ("restarts", "times resumed", lambda v: f"{v:,}"),
    ("skipped", "skipped steps", lambda v: f"{v:,}"),
    ("quarantined", "steps with a quarantine", lambda v: f"{v:,}"),
    ("checkpoints", "checkpoints on disk", lambda v: f"{v:,}"),
    ("checkpoint_bytes", "size of a checkpoint", lambda v: size(v)),
)


def facts(runs: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(label, a cell for each run) of everything that is known of one of them; unknown cells are empty."""
    rows = []
    for key, label, shown in FACTS:
        values = [run["facts"][key] for run in runs]
        if any(value is not None for value in values):
            rows.append((label, ["" if value is None else shown(value) for value in values]))
    keys = ("data.train", "data.validation")
    for key in keys:
        values = [run["config"].get(key, "null") for run in runs]
        rows.append((key, ["" if value == "null" else value for value in values]))
    return rows


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
