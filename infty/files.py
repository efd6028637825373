"""Files that are whole or absent: written aside, forced to disk, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill that is to become `path`; renamed when the block ends, removed when it fails.

    A folder that is at `path` already stays until the new one is complete, and is then removed.
    """
    partial = path.with_name(path.name + PARTIAL)
    old = path.with_name(f"{path.name}.replaced")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_tree(partial)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        partial.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file's whole content, UTF-8 if it is text."""
    with whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that a person can read."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


class RepeatedKeyError(ValueError):
    """An object of a JSON text names a key twice: one of the values would be lost."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} is given twice")
        self.key = key


def parse_json(text: str | bytes, parse_int: Callable[[str], Any] | None = None) -> Any:
    """JSON in which no key is given twice. Raises ValueError, which says what is wrong in one line.

    `parse_int` reads whole numbers, where int, which refuses very long ones, is not wanted.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=parse_int)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; one that a killed program left half written stays a line of its own."""
    with open(path, "a+b") as file:
        whole = file.tell() == 0 or (file.seek(-1, os.SEEK_END) >= 0 and file.read(1) == b"\n")
        file.write(b"\n" * (not whole) + line.encode() + b"\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds, no key given twice. Raises ValueError as `parse_json`, or OSError."""
    return parse_json(path.read_bytes())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):  # compared, not looked for: a tokenizer has 200,000 keys
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(key)
            seen.add(key)
    return result


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
