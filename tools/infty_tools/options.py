"""Values of the command line that are checked as they are read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

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


def check_new_file(path: Path, option: str) -> None:
    """Refuse a file to write that no file can be, before the work whose result it is to hold. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{option} {printable(path)} is a folder: name a file in it")
    above = next(
        folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink()
    )
    if not above.is_dir():
        raise UserError(f"{option} {printable(path)}: {printable(above)} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{option} {printable(path)}: you may not write in {printable(above)}")


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


def file_size(text: str) -> str:
    """The size of a file as transformers reads it: a number above 0 with KB, MB, GB or TB."""
    plain = text.strip().upper()
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})? ?[KMGT]B", plain, re.ASCII) or float(plain[:-2]) == 0:
        raise typer.BadParameter(
            f"{printable(text)} is not a size: write a number and its unit, such as 500MB or 5GB"
        )
    return text


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


DatasetsOutput = Annotated[
    Path,
    typer.Option(
        parser=new_folder,
        metavar="PATH",
        help="Folder to create: output/train and output/validation",
    ),
]
"""`--output` of the verbs that make a training and a validation set."""
