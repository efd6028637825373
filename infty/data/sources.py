"""Finding and reading the texts a dataset is made of: plain files, JSON lines, Hugging Face datasets on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infty.errors import UserError

TEXT, LINES = (".txt", ".txt.gz"), (".jsonl", ".jsonl.gz", ".jsonl.zst")
ROWS = 256
"""Rows of a Hugging Face dataset that make one source: the unit of parallel work."""


@dataclass(frozen=True)
class Source:
    """One piece of work: a text file (one document), a file of JSON lines, or some rows of a dataset (many)."""

    path: Path
    name: str
    """Path below the input folder."""
    size: int
    modified: int = 0
    """When the file was last written, nanoseconds: a shard made of an older one is made again."""
    rows: tuple[int, int] | None = None
    """First row and end, for a Hugging Face dataset."""

    @property
    def one_document(self) -> bool:
        return self.path.name.lower().endswith(TEXT)


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


def find(folder: str | Path, option: str = "--input") -> list[Source]:
    """The readable files below a folder (or a single file), in the order of their names. Raises UserError, which
    names `option`."""
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{option} {folder} does not exist")
    if (folder / "dataset_dict.json").is_file():
        parts = json.loads((folder / "dataset_dict.json").read_text()).get("splits", [])
        raise UserError(f"{option} {folder} holds several datasets: give one of them, {folder}/"
                        f"{'|'.join(parts) or 'PART'}")
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return _dataset_sources(folder)
    names = TEXT + LINES
    paths = [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file()]
    paths = [p for p in paths if p.name.lower().endswith(names)]
    if not paths:
        raise UserError(f"{option} {folder} holds no {', '.join(names)} file and is no Hugging Face dataset")
    sources = [Source(p, p.name if p == folder else str(p.relative_to(folder)), s.st_size, s.st_mtime_ns)
               for p in paths for s in (p.stat(),)]
    return sorted(sources, key=lambda s: s.name)


def ignored(folder: Path) -> list[str]:
    """Names of the files below a folder that are of no kind `find` reads."""
    if not folder.is_dir() or (folder / "dataset_info.json").is_file():
        return []
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")
                  if not p.is_dir() and not (p.is_file() and p.name.lower().endswith(TEXT + LINES)))


def read(source: Source, field: str = "text") -> Iterator[Text]:
    """The documents of a source, usable or not, in order. `field` names the text in JSON lines and datasets."""
    try:
        if source.rows is not None:
            yield from _rows(source, field)
        elif source.one_document:
            yield _document(source)
        else:
            yield from _json_lines(source, field)
    except PermissionError:
        yield Text(source.name, None, "not readable")
    except OSError as error:
        raise UserError(f"{source.path} cannot be read ({error}): mend that and run the same command again") from error


def _document(source: Source) -> Text:
    try:
        with _open(source.path) as f:
            raw = f.read()
    except Exception as error:
        if not _is_damage(error):
            raise
        return Text(source.name, None, "damaged")
    try:
        return _checked(source.name, raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Text(source.name, None, "binary" if b"\0" in raw else "not UTF-8")


def _checked(name: str, text: str) -> Text:
    """A document of a text, with one kind of line break; or what is wrong with it."""
    if "\0" in text:
        return Text(name, None, "binary")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell
        return Text(name, None, "not UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Text(name, text, None) if text.strip() else Text(name, None, "empty")


def _json_lines(source: Source, field: str) -> Iterator[Text]:
    number = 0
    try:
        with _open(source.path) as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield _json_line(f"{source.name}:{number}", line, field)
    except Exception as error:
        if not _is_damage(error):
            raise
        yield Text(f"{source.name}:{number + 1}", None, "damaged from here on")


def _json_line(name: str, line: bytes, field: str) -> Text:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return Text(name, None, "not UTF-8")
    except (ValueError, RecursionError):
        return Text(name, None, "not JSON")
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        return Text(name, None, f"no field '{field}'")
    return _checked(name, value[field])


def _load_dataset(folder: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{folder} is a Hugging Face dataset; reading it needs: pip install datasets") from error
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever arrow says of a damaged file
        raise UserError(f"{folder} is a Hugging Face dataset that cannot be read: {error}") from error


def _dataset_sources(folder: Path) -> list[Source]:
    """Rows in equal parts, so that one dataset keeps many workers busy."""
    count, files = len(_load_dataset(folder)), [p.stat() for p in folder.rglob("*") if p.is_file()]
    if count == 0:
        raise UserError(f"{folder} is a Hugging Face dataset without rows")
    size, modified = sum(s.st_size for s in files), max(s.st_mtime_ns for s in files)
    ranges = [(a, min(count, a + ROWS)) for a in range(0, count, ROWS)]
    return [Source(folder, f"{folder.name}:{a}-{b - 1}", size * (b - a) // count, modified, (a, b)) for a, b in ranges]


def _rows(source: Source, field: str) -> Iterator[Text]:
    rows = _load_dataset(source.path)
    if field not in rows.column_names:
        raise UserError(f"{source.path} has no column '{field}' (it has {', '.join(rows.column_names)}): give --field")
    for number in range(*source.rows):
        name, text = f"{source.path.name}:{number}", rows[number][field]
        yield _checked(name, text) if isinstance(text, str) else Text(name, None, "empty")


def _is_damage(error: Exception) -> bool:
    """Whether reading failed because of what the file holds, not because of the machine."""
    if isinstance(error, EOFError | zlib.error):
        return True
    return isinstance(error, OSError) and error.errno is None  # gzip's own


def _open(path: Path) -> io.BufferedIOBase:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")
    return io.BufferedReader(_Zstandard(path)) if name.endswith(".zst") else open(path, "rb")


class _Zstandard(io.RawIOBase):
    """A .zst file of any number of frames. A file cut short raises EOFError (the library's reader just ends)."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")  # noqa: SIM115  (closed in close())
        self._frame, self._left, self._out = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._out:
            data = self._left or self._file.read(1 << 20)
            self._left = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut short")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                self._out = self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._out))
        buffer[:count], self._out = self._out[:count], self._out[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
