"""Where a preparation works: a folder beside its output, which becomes the output in one rename."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from infty import files
from infty.data import build, record
from infty.data.sources import Source
from infty.errors import UserError

REPORT = "report.json"


def already_done(
    output: Path, options: dict[str, Any], parts: dict[str, list[Source]]
) -> dict[str, Any] | None:
    """The report of an identical preparation of the same texts; None when there is no output yet. Raises UserError for
    any other, which says what differs."""
    try:
        return _already_done(output, options, parts)
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error}") from error


def _already_done(
    output: Path, options: dict[str, Any], parts: dict[str, list[Source]]
) -> dict[str, Any] | None:
    if not output.exists() and not output.is_symlink():
        return None
    report = output / REPORT
    if not report.is_file():
        if output.is_dir() and not any(output.iterdir()):
            return None
        raise UserError(
            f"--output {output} exists and was not made by infty prepare; leaving it alone: give another"
        )
    try:
        values = files.read_json(report)
        _ = values["fingerprint"]
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"--output {output} exists, and {REPORT} in it is not infty's; leaving it alone: give "
            "another"
        ) from None
    differs = record.difference(output, options, parts)
    if differs is not None:
        raise UserError(
            f"--output {output} was prepared from other input or with other options ({differs}); give "
            "another output, or delete it first"
        )
    return values


def partial_folder(output: Path) -> Path:
    """Where an output is made. Raises UserError when the output has no name."""
    if output.name in ("", ".."):
        raise UserError(f"--output {output} is not a name for a new folder: give one")
    return output.with_name(output.name + ".partial")


class Workplace:
    """`output.partial`: `shards/`, `tokenizer/`, the `plan.json` that it belongs to, and `result/`.

    One process works here at a time; a second one is told so. `maker` is the command that does.
    """

    def __init__(self, output: Path, maker: str = "infty prepare") -> None:
        self.output, self.folder, self._maker = output, partial_folder(output), maker
        self.shards, self.result = self.folder / build.SHARDS, self.folder / "result"
        self._plan = self.folder / "plan.json"
        self._lock: IO | None = None

    def begin(self, fingerprint: str, tell: Callable[[str], None]) -> None:
        """Make the folder, or take up the one of an interrupted preparation with the same arguments."""
        try:
            self._begin(fingerprint, tell)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"--output {self.output} cannot be made: {error}") from error

    def _begin(self, fingerprint: str, tell: Callable[[str], None]) -> None:
        if (
            self.folder.is_dir()
            and not self._plan.is_file()
            and not all(
                p.name == "lock" or p.name.startswith("plan.json") for p in self.folder.iterdir()
            )
        ):
            raise UserError(
                f"{self.folder} exists and was not made by {self._maker}; move it away, or give another "
                "--output"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        left = (
            build.read_record(self._plan).get("fingerprint", "") if self._plan.is_file() else None
        )
        if left not in (None, fingerprint) and not any(self.shards.glob("*.json")):
            # It ended before any work was done, perhaps since its arguments could not be: nothing to go on with.
            shutil.rmtree(self.folder / "tokenizer", ignore_errors=True)
            left = None
        if left is not None:
            if left != fingerprint:
                raise UserError(
                    f"{self.folder} is left from a preparation with other arguments: run that one again "
                    "to finish it, or delete the folder"
                )
            tell(f"going on with {self.folder}")
            shutil.rmtree(self.result, ignore_errors=True)
        else:
            files.write_json(self._plan, {"fingerprint": fingerprint})
        self.shards.mkdir(exist_ok=True)
        for left in self.shards.glob("*.partial*"):
            left.unlink()

    def _take_lock(self) -> None:
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115  (held until close())
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another {self._maker} is working in {self.folder}: wait for it (or, if this is one of "
                "several processes of a job, start them with mpirun or srun --mpi=pmi2)"
            ) from None
        except OSError:
            pass  # a file system without locks

    def publish(self) -> None:
        """Give the result its name; from here on the output is there, and whole."""
        files.sync_tree(self.result)
        self.result.rename(self.output)
        files.sync(self.output.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Let another process work here."""
        if self._lock is not None:
            self._lock.close()
