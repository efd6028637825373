"""Saying who may read what this process may not."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

from infty.errors import UserError


class Unreadable(UserError):
    """Something is there and cannot be read: nobody knows whether it is whole."""


def unreadable(path: Path, error: OSError) -> Unreadable:
    """The refusal to go on without `path`; it says who may read that, or the folder above that is closed."""
    if not isinstance(error, PermissionError):
        return Unreadable(
            f"{path} cannot be read ({error.strerror or error}): it may be intact, so nothing was "
            "changed; check the disk and rerun the same command"
        )
    closed = _closed(path)
    folder = closed if closed.is_dir() else closed.parent
    return Unreadable(
        f"{path} cannot be read: {_belonging(closed, path)}. Run as a user who may, or have its owner "
        f"run chmod -R g+rX {folder}; nothing was changed"
    )


def refused(error: PermissionError) -> str:
    """A sentence for a permission that nothing else speaks of."""
    if error.filename is None:
        return f"permission denied ({error})"
    path = Path(os.fsdecode(error.filename))
    if _closed(path) == path and not path.exists():
        return f"{path} may not be made by {_me()}: {_belonging(path.absolute().parent, path)}"
    return f"{path} may not be read or written by {_me()}: {_belonging(_closed(path), path)}"


def _closed(path: Path) -> Path:
    """The first part of a path, from the root, that keeps this process out; the path itself where none seems to."""
    for part in (*reversed(path.absolute().parents), path):
        if part != path and not os.access(part, os.X_OK):
            return part
    return path


def _belonging(part: Path, path: Path) -> str:
    """Whose a part of a path is."""
    name = "it" if part == path else str(part)
    try:
        found = part.stat()
    except OSError:
        return f"{name} does not reveal its owner"
    return (
        f"{name} belongs to {_user(found.st_uid)}, group {_group(found.st_gid)} ({stat.filemode(found.st_mode)}), "
        f"and this is {_me()}"
    )


def _me() -> str:
    return _user(os.geteuid())


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
