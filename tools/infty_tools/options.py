"""Values of the command line that are checked as they are read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import typer

from infty import ranges
from infty.errors import UserError
from infty.ranges import Range

if TYPE_CHECKING:
    import torch

T = TypeVar("T", int, float)


def any_path(text: str) -> Path:
    """A file or folder to read, whatever bytes its name is made of.

    Empty, as an unset variable leaves it, it would be the folder where the command was started.
    """
    if not text:
        raise typer.BadParameter("it is empty: name a file or a folder ('.' is the one you are in)")
    return Path(text)


def new_folder(text: str | Path) -> Path:
    """A folder to make: its name is text, since it is written into what is made. (A default is a path already.)"""
    path = any_path(utf8(str(text)))
    if path.name in ("", ".."):
        raise typer.BadParameter(f"{path} is not a name for a new folder: give one")
    return path


def check_new_file(path: Path, option: str) -> None:
    """Refuse a file to write that no file can be, before the work whose result it is to hold. Raises UserError."""
    if path.is_dir():
        raise UserError(f"{option} {printable(path)} is a folder: name a file in it")
    _check_above(path, option)


def check_folder(path: Path, option: str) -> None:
    """Refuse a folder to write in, made where there is none, before the work whose result it is to hold.

    Raises UserError.
    """
    if path.is_dir():
        _check_above(path / "file", option)
    elif path.exists():
        raise UserError(f"{option} {printable(path)} is a file: name a folder")
    else:
        _check_above(path, option)


def _check_above(path: Path, option: str) -> None:
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


class Number(Generic[T]):
    """Reads a number, and refuses one outside its range, which the message names."""

    def __init__(self, accepted: Range, convert: Callable[[str], T]) -> None:
        self.accepted = accepted
        self.convert = convert
        self.__name__ = "number"  # some versions of typer ask a parser for its name

    def __call__(self, text: object) -> T:
        """Raises typer.BadParameter. `text` may be a number already: a default."""
        try:
            value = self.convert(str(text))
        except ValueError:
            value = None
        if value is None or value not in self.accepted:
            raise typer.BadParameter(f"{ranges.shown(printable(text))} is not {self.accepted}")
        return value


def whole(least: int, most: int) -> Number[int]:
    """A whole number from `least` to `most`."""
    return Number(ranges.whole(least, most), int)


def real(least: float, most: float, above: bool = False, below: bool = False) -> Number[float]:
    """A finite number from `least` to `most`; `above` and `below`: without these themselves."""
    return Number(Range(least, most, above=above, below=below), float)


def several(each: Callable[[str], Any]) -> Callable[[str], str]:
    """Values with commas between them, every one of which `each` can read; `listed` takes them apart."""

    def parse(text: str) -> str:
        for part in listed(utf8(text)):
            each(part)
        return text

    return parse


def listed(text: str) -> list[str]:
    """What stands between the commas of a value."""
    return [part.strip() for part in text.split(",")]


def one_of(*words: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{printable(text)} is not one of {', '.join(words)}")
        return text

    return parse


SEED = whole(0, 2**31 - 1)
"""Where numbers are drawn from."""


def device_here(name: str | None) -> torch.device:
    """The device that --device names; a GPU if there is one for `auto` or None. Raises UserError."""
    import torch

    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # every backend has errors of its own for a device that is not here
        found = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise UserError(
            f"--device {name} cannot be used here: choose auto, {', '.join(found)}, or another device that "
            "this installation of torch has"
        ) from error
    return device


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


ConfigChanges = Annotated[
    list[str] | None,
    typer.Argument(parser=utf8, help="Changes to the config: section.key=value"),
]
"""What the verbs that read a run's config change in it."""
CONFIG_OPTION = typer.Option(
    "--config", "-c", parser=any_path, metavar="PATH", help="The run's YAML file"
)
ConfigFile = Annotated[Path, CONFIG_OPTION]
"""`--config` of the verbs that read a run's config."""
FiguresOutput = Annotated[
    Path | None,
    typer.Option(parser=any_path, metavar="PATH", help="Also write every figure to this JSON file"),
]
"""`--output` of the benches that print a table."""
DatasetsOutput = Annotated[
    Path,
    typer.Option(
        parser=new_folder,
        metavar="PATH",
        help="Folder to create: output/train and output/validation",
    ),
]
"""`--output` of the verbs that make a training and a validation set."""
