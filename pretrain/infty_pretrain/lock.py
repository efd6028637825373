"""One run at a time in a run's folder: two that write the same checkpoints lose both."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from infty.access import refused
from infty.errors import UserError

NAME = "lock"
PATIENCE = 60.0
"""Seconds to wait for the other one: a requeued job may start before the last process of the old one has gone."""


def holder(folder: Path) -> str | None:
    """Who works in a run's folder now, as it named itself; None: nobody, or nobody can know."""
    try:
        with open(folder / NAME) as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return file.read().strip() or "another process"
    except OSError:  # no such file, or no locks here
        pass
    return None


def take(
    folder: Path, tell: Callable[[str], None] = print, patience: float = PATIENCE
) -> IO | None:
    """Lock the folder for as long as this process lives (or the returned file is open).

    None where the file system knows no locks. Raises UserError when another process keeps it longer than `patience`.
    """
    try:
        file = open(folder / NAME, "a+")  # noqa: SIM115 - held open
    except PermissionError as error:
        raise UserError(
            f"run.folder: {refused(error)}. To continue somebody else's run, have its owner make the "
            "folder writable for the group (chmod -R g+rwX), or copy it"
        ) from error
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{folder} is in use by {owner}: wait until it ends, or give this run another "
                    "run.folder"
                ) from None
            if not told:
                tell(f"waiting for {owner}, which works in {folder}")
                told = True
            time.sleep(min(0.5, patience))
        except OSError:  # no locks here
            file.close()
            return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file
