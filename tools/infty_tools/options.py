"""Values of the command line that are checked as they are read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import typer

from infty.errors import UserError


def any_path(text: str) -> Path:
    """A file or folder to read, whatever bytes its name is made of.

    Empty, as an unset variable leaves it, it would be the folder where the command was started.
    """
    if not text:
        raise typer.BadParameter("it is empty: name a file or a folder ('.' is the one you are in)")
    return Path(text)


def new_folder(text: str) -> Path:
    """A folder to make: its name is text, since it is written into what is made."""
    path = any_path(utf8(text))
    if path.name in ("", ".."):
        raise typer.BadParameter(f"{path} is not a name for a new folder: give one")
    return path


def utf8(text: str) -> str:
    """A value that is UTF-8 and not empty."""
    if not text:
        raise typer.BadParameter("it is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise typer.BadParameter(f"{printable(text)} is not UTF-8") from None
    return text


def whole(least: int, most: int) -> Callable[[str], int]:
    """A whole number in a range, which is named when the value is outside."""

    def parse(text: str) -> int:
        try:
            value = int(str(text))
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise typer.BadParameter(
                f"{printable(text)} is not a whole number from {least:,} to {most:,}"
            )
        return value

    return parse


def check_output_file(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold. Raises UserError."""
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: its folder cannot be made ({error.strerror})") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: its folder may not be written to")


def file_size(text: str) -> str:
    """A size as transformers reads it: 500MB, 5GB, 2GiB."""
    if not re.fullmatch(r"[1-9]\d{0,6}([KMGT]i?B)", text.strip()):
        raise typer.BadParameter(f"{printable(text)} is no size: write one such as 500MB, 5GB or 2GiB")
    return text.strip()


def printable(value: object) -> str:
    """A value as text that can be written to this terminal, with escapes for what cannot."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(value).encode(encoding, "backslashreplace").decode(encoding)


def any_text_prints() -> None:
    """Write escapes for characters that the terminal's encoding does not have.

    Otherwise the command would end in a UnicodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
