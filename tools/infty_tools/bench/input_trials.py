"""One trial of `infty bench inputs`: a command in a forked process, and how it ended."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 300.0
"""Seconds after which a command counts as hanging: on a busy machine a right one may take a minute."""
ROOM = 24 * 2**30
"""Bytes of address space that a command may take: a size from a damaged file must not take the machine's."""

GOOD = ("right", "refused")
"""How a trial may end."""


@dataclass(frozen=True)
class Trial:
    """A command, what it may not change, and what it may make only when it ends right."""

    arguments: list[str]
    folder: Path
    """Where it is run."""
    made: tuple[Path, ...] = ()
    mutation: str = ""
    """What was done to its inputs, in words."""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    outcome: str
    """One of GOOD, or what was bad."""
    seconds: float
    said: str
    """What it wrote to its two outputs; empty where it ended well."""


def carry_out(trial: Trial, inputs: Path) -> Ending:
    """Run a trial in a fork of this process, which has done the imports, and judge how it ended.

    Nothing below `inputs` may change.
    """
    before = digests(inputs)
    began = time.monotonic()
    status = _run(trial)
    seconds = time.monotonic() - began
    error = (trial.folder / "stderr").read_text(encoding="utf-8", errors="replace")
    outcome = outcome_of(status, error)
    if digests(inputs) != before:
        outcome = "an input was changed"
    elif outcome != "right" and any(os.path.lexists(path) for path in trial.made):
        outcome = "a result of a command that failed"
    output = (trial.folder / "stdout").read_text(encoding="utf-8", errors="replace")
    return Ending(
        outcome, seconds, "" if outcome in GOOD else f"{output[-500:]}\n{error[-4000:]}".strip()
    )


def _run(trial: Trial) -> int:
    """The exit status as subprocess gives it: negative for a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(trial)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _become(trial: Trial) -> None:
    """Be the command, in a process group of its own; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, name in ((0, os.devnull), (1, "stdout"), (2, "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(trial.folder / name, flags, 0o644), number)
        os.chdir(trial.folder)
        sys.argv = ["infty", *trial.arguments]
        from infty_tools import cli

        cli.main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome_of(status: int, error: str) -> str:
    """How a command with this exit status and this standard error ended: one of GOOD, or what was bad."""
    if "Traceback (most recent call last)" in error:
        return "traceback"
    if status == -signal.SIGKILL:
        return "hung"
    if status < 0:
        return f"signal {-status}"
    if status == 0:
        return "right"
    if status != 2:
        return f"status {status}"
    lines = [line for line in error.split("\n") if line.strip()]
    sentences = [line for line in lines if line.startswith("error: ")]
    if len(sentences) != 1:
        return f"{len(sentences)} sentences"
    return "refused" if lines[-1] == sentences[0] else "more than one line"


def digests(folder: Path) -> dict[str, str]:
    """Every file, link and folder below a folder, with what is in it."""
    found = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = "folder"
    return found
