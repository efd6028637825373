"""Programs that stand in for Slurm's."""

from __future__ import annotations

from pathlib import Path


def program(folder: Path, name: str, text: str) -> None:
    """A bash script of this name in a folder."""
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
