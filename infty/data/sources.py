"""Finding and reading the texts a dataset is made of: plain files, JSON lines, Hugging Face datasets on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infty.errors import UserError

TEXT, LINES = (".txt", ".txt.gz"), (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Source:
    """One file to read: the unit of work. A text file is one document, a file of JSON lines is many."""

    path: Path
    name: str
    """Path below the input folder."""
    size: int


@dataclass(frozen=True)
class Text:
    """One document as it was found."""

    name: str
    text: str | None
    """None when it cannot be used."""
    problem: str | None
    """Why not: empty, not UTF-8, binary, damaged, no text field."""

    @property
    def digest(self) -> str:
        """sha256 of the text, to find duplicates."""
        return hashlib.sha256((self.text or "").encode()).hexdigest()


def find(folder: str | Path) -> list[Source]:
    """The readable files below a folder (or a single file), in the order of their names. Raises UserError."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"--input {folder} does not exist")
    if (folder / "dataset_info.json").exists() and (folder / "state.json").exists():
        paths = [folder]  # a Hugging Face dataset saved with save_to_disk
    elif folder.is_file():
        paths = [folder]
    else:
        paths = [p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(TEXT + LINES)]
    if not paths:
        raise UserError(f"--input {folder} holds no {', '.join(TEXT + LINES)} files and is no Hugging Face dataset")
    base = folder if folder.is_dir() else folder.parent
    sources = [Source(p, str(p.relative_to(base)) if p != folder else p.name, _size(p)) for p in paths]
    return sorted(sources, key=lambda s: s.name)


def read(source: Source, field: str = "text") -> Iterator[Text]:
    """The documents of a source, usable or not, in order. `field` names the text in JSON lines and datasets."""
    if source.path.is_dir():
        yield from _hugging_face(source, field)
    elif source.path.name.lower().endswith(TEXT):
        yield _document(source.name, source.path)
    else:
        yield from _json_lines(source, field)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _document(name: str, path: Path) -> Text:
    try:
        with _open(path) as f:
            raw = f.read()
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        if isinstance(error, PermissionError):
            return Text(name, None, "not readable")
        return Text(name, None, "damaged")
    return _decode(name, raw)


def _decode(name: str, raw: bytes) -> Text:
    if b"\0" in raw[:1 << 16]:
        return Text(name, None, "binary")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Text(name, None, "not UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Text(name, text, None) if text.strip() else Text(name, None, "empty")


def _json_lines(source: Source, field: str) -> Iterator[Text]:
    try:
        with _open(source.path) as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield _json_line(f"{source.name}:{number}", line, field)
    except (OSError, EOFError) as error:
        if getattr(error, "errno", None):
            raise
        yield Text(source.name, None, "damaged")


def _json_line(name: str, line: bytes, field: str) -> Text:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Text(name, None, "not UTF-8")
    except json.JSONDecodeError:
        return Text(name, None, "not JSON")
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        return Text(name, None, f"no field '{field}'")
    return Text(name, value[field], None) if value[field].strip() else Text(name, None, "empty")


def _hugging_face(source: Source, field: str) -> Iterator[Text]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source.path} is a Hugging Face dataset; reading it needs: pip install datasets") from error
    for number, row in enumerate(datasets.load_from_disk(str(source.path))):
        if not isinstance(row.get(field), str):
            raise UserError(f"{source.path} has no text column '{field}' (it has {', '.join(row)}): give --field")
        yield Text(f"{source.name}:{number}", *((row[field], None) if row[field].strip() else (None, "empty")))


def _open(path: Path) -> io.BufferedIOBase:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    if name.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(open(path, "rb"), closefd=True))
    return open(path, "rb")
