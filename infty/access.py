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
    """The refusal to go on without `path`: what was asked for, or the folder that forbids it, and whose that is."""
    if not isinstance(error, PermissionError):
        return Unreadable(f"{path} cannot be read ({error.strerror or error}): it may be whole, so nothing was changed; "
                          "look at the disk and run the same command again")
    closed = _closed(path)
    return Unreadable(f"{path} cannot be read: {_belonging(closed)}. Run as somebody who may, or have its owner run "
                      f"chmod -R g+rX {closed if closed.is_dir() else closed.parent}; nothing was changed")


def refused(error: PermissionError) -> str:
    """A sentence for a permission that nothing else speaks of."""
    if error.filename is None:
        return f"permission denied ({error})"
    path = Path(os.fsdecode(error.filename))
    return f"{path} may not be read or written by {_me()}: {_belonging(_closed(path))}"


def _closed(path: Path) -> Path:
    """The first part of a path, from the root, that keeps this process out; the path itself where none seems to."""
    for part in (*reversed(path.absolute().parents), path):
        needed = os.R_OK | os.X_OK if part == path.parent else os.X_OK
        if part.is_dir() and part != path and not os.access(part, needed):
            return part
    return path


def _belonging(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return f"{path} says not even whose it is"
    return (f"{path} belongs to {_user(found.st_uid)}, group {_group(found.st_gid)} ({stat.filemode(found.st_mode)}), "
            f"and this is {_me()}")


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
