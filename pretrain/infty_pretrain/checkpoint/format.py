"""What a checkpoint's folder holds, and how one that is not whole is recognised."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import Any

from infty import files as whole_files
from infty.access import unreadable
from infty.errors import UserError
from infty_pretrain.records import MANIFEST, RUN

FORMAT = 2
EPHEMERAL = "ephemeral"
"""In RUN: whether the checkpoint is kept only until the next one."""


def digest(path: Path) -> dict[str, Any]:
    """What the manifest says of a file: `size` in bytes and `sha256`."""
    with open(path, "rb") as f:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(f, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(f.read()).hexdigest(),
        }


def problem_with(folder: Path, rank: int = 0, world: int = 1) -> str | None:
    """Why a checkpoint folder is damaged: a file is missing, short or not as the manifest says; None when it is whole.

    Of `world` ranks that ask, each reads its share of the files. Raises UserError where that cannot be known: a file
    cannot be read, or another version of infty wrote it.
    """
    if (folder / MANIFEST).is_fifo():
        return f"its {MANIFEST} is no file"
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        raise unreadable(folder / MANIFEST, error) from error
    return _contradiction(folder, manifest, rank, world)


def _contradiction(folder: Path, text: bytes, rank: int, world: int) -> str | None:
    """What in a folder is not as the `text` of its manifest says."""
    try:
        manifest = whole_files.parse_json(text)
        version = manifest["format"]
        files = {
            str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    if version != FORMAT:
        raise UserError(
            f"{folder} has the format {version}, this version of infty reads {FORMAT}: continue with the "
            "version that wrote it, or give another run.folder; nothing was changed"
        )
    if RUN not in files:
        return f"its {MANIFEST} is damaged"
    for name, (size, _) in files.items():
        if odd := odd_size(folder / name, size):
            return odd
    for name in sorted(files)[rank::world]:
        try:
            found = digest(folder / name)["sha256"]
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            raise unreadable(folder / name, error) from error
        if found != files[name][1]:
            return f"{name} is damaged: its sha256 is not the one in the manifest"
    return None


def odd_size(path: Path, size: int) -> str | None:
    """What is wrong with a file that is not there or not of this `size`, bytes; None where nothing is.

    Raises UserError where that cannot be known.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):  # a pipe, for one, would be waited for without end
        return f"{path.name} is no file"
    found = status.st_size
    return None if found == size else f"{path.name} has {found} bytes instead of {size}"
