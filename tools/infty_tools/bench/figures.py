"""Figures of a bench, written where its --output or --out says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infty import files


def write(path: Path, figures: Any) -> None:
    """Write a JSON file, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, figures)
