"""Which of a run's checkpoints are chosen, kept, set aside and deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from infty.access import unreadable
from infty.errors import UserError
from infty.files import PARTIAL
from infty_pretrain.checkpoint.format import EPHEMERAL, problem_with
from infty_pretrain.records import RUN

DAMAGED = ".damaged"
"""Ends the name of a folder that was set aside."""


def candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first, whether whole or not. Raises UserError when `folder` cannot be read: that
    is not the same as an empty one."""
    try:
        with os.scandir(folder) as entries:
            found = [
                folder / e.name
                for e in entries
                if re.fullmatch(r"step-\d{8,}", e.name) and e.is_dir()
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(found, key=_step_of, reverse=True)


def newest_valid(folder: Path, tell: Callable[[str], None] = print) -> Path | None:
    """The newest whole checkpoint in a run's checkpoint folder; says what it skips and why. Raises UserError when a
    newer one cannot be read."""
    for path in candidates(folder):
        problem = problem_with(path)
        if problem is None:
            return path
        tell(f"skipping checkpoint {path.name}: {problem}")
    return None


def set_aside(folder: Path, chosen: Path | None, tell: Callable[[str], None] = print) -> None:
    """Rename the damaged checkpoints that are newer than the one a run goes on from, so that they do not count as its
    newest. Raises UserError when none is whole: starting again from nothing is for a person to decide."""
    newer = [p for p in candidates(folder) if chosen is None or _step_of(p) > _step_of(chosen)]
    if chosen is None and newer:
        raise UserError(
            f"{folder} holds {len(newer)} checkpoint(s), but none is whole (see above). To start from the "
            f"beginning, move {folder} away or give another run.folder"
        )
    for path in newer:
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        tell(f"renamed {path.name} to {aside.name}")


def prune(
    folder: Path, keep_last: int, keep_every: int | None, tell: Callable[[str], None] = print
) -> None:
    """Delete all but the newest checkpoint, the newest `keep_last` of those that are not ephemeral, and those at
    multiples of `keep_every` steps. Says which may not be deleted."""
    found = candidates(folder)
    lasting = [p for p in found if not _ephemeral(p)]
    kept = {
        *found[:1],
        *lasting[:keep_last],
        *(p for p in lasting if keep_every and _step_of(p) % keep_every == 0),
    }
    for path in (p for p in found if p not in kept):
        doomed = path.with_name(path.name + PARTIAL)  # first it stops looking like a checkpoint
        try:
            path.rename(doomed)
        except OSError as error:
            tell(f"{path.name} stays, though it is no longer needed: {error.strerror or error}")
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _ephemeral(path: Path) -> bool:
    try:
        return bool(json.loads((path / RUN).read_text()).get(EPHEMERAL))
    except (OSError, ValueError, AttributeError):  # damaged: it counts like any other
        return False
