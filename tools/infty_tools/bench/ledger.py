"""Rows of a bench that takes several sittings, one a line, with the commit that each was made by."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infty import files
from infty.errors import UserError

Row = dict[str, Any]


def commit() -> str:
    """The commit of this program, with a `+` where files were changed since; its version where there is none."""
    from infty import __version__

    here = ["git", "-C", str(Path(__file__).parent)]
    named = subprocess.run(
        [*here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    if named.returncode:
        return __version__
    changed = subprocess.run([*here, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    return named.stdout.strip() + "+" * bool(changed.returncode)


def rows(path: Path | None) -> Iterator[Row]:
    """The rows of a ledger; a line cut short by a kill is left out. Raises UserError for a file that is none."""
    if path is None or not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the program was killed while it wrote it
            continue
        if not isinstance(row, dict):
            raise UserError(f"{path} is no ledger of this bench: name another file")
        yield row


def write_row(path: Path | None, row: Row) -> None:
    """Add a row to a ledger; a line that was cut short stays one of its own."""
    if path is not None:
        files.append_line(path, json.dumps(row))
