"""Files that are whole or absent: written aside, forced to disk, renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Ends the name of what is still being written."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to become `path`; renamed when the block ends, removed when it fails.

    Processes may make the same file at once: the last one wins, and a reader finds one of theirs, whole.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}{os.getpid()}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file's whole content, UTF-8 if it is text."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that a person can read."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Force one file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force a folder and all that is in it to disk."""
    for path in (folder, *folder.rglob("*")):
        sync(path)
