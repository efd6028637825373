"""Finding and reading the texts a dataset is made of: plain files, JSON lines, Hugging Face datasets on disk."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from infty import files
from infty.data.archives import BYTES_AFTER, CUT_SHORT, DAMAGED, open_bytes, problem_of, read_bytes
from infty.data.as_read import as_read
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
    """When the file was last written or given other contents or another name, nanoseconds: a shard made of an older
    one is made again."""
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
    """Why not: empty, not UTF-8, binary, damaged, no text field, ... Also what is missing after a text that is kept."""

    @cached_property
    def digest(self) -> str:
        """sha256 of the text, to find duplicates."""
        return hashlib.sha256((self.text or "").encode()).hexdigest()

    @property
    def found(self) -> str:
        """What `digest` needs of it."""
        return f"{self.digest} {self.problem or ''}"


def digest(found: Iterable[str]) -> str:
    """sha256 of what was found in a source, usable or not."""
    return hashlib.sha256("\n".join(found).encode("utf-8", "backslashreplace")).hexdigest()


def find(
    folder: str | Path, option: str = "--input", avoid: frozenset[Path] = frozenset()
) -> list[Source]:
    """The files below a folder that can be read (or a single file), in the order of their names, with links followed.
    Folders in `avoid` are passed over. Raises UserError, which names `option`."""
    try:
        return _find(Path(folder), option, avoid)
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be read: {error}") from error


def _find(folder: Path, option: str, avoid: frozenset[Path]) -> list[Source]:
    if not folder.exists():
        raise UserError(f"{option} {folder} does not exist")
    if (folder / "dataset_dict.json").is_file():
        parts = _splits(folder / "dataset_dict.json")
        raise UserError(
            f"{option} {folder} holds several datasets: give one of them, {folder}/"
            f"{'|'.join(parts) or 'PART'}"
        )
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        return _dataset_sources(folder)
    names = TEXT + LINES
    if folder.is_file():
        paths = [folder] if _is_text(folder) else []
    else:
        paths = [path for path, problem in _walk(folder, avoid) if problem is None]
    if not paths:
        raise UserError(
            f"{option} {folder} holds no {', '.join(names)} file and is not a Hugging Face dataset"
        )
    return sorted((_file_source(path, folder) for path in paths), key=lambda s: s.name)


def _file_source(path: Path, folder: Path) -> Source:
    facts = path.stat()
    name = path.name if path == folder else str(path.relative_to(folder))
    return Source(path, name, facts.st_size, max(facts.st_mtime_ns, facts.st_ctime_ns))


def _splits(path: Path) -> list[str]:
    """Names of the datasets in a folder of several."""
    try:
        return [str(name) for name in files.read_json(path)["splits"]]
    except (ValueError, KeyError, TypeError):
        return []


def ignored(folder: Path, avoid: frozenset[Path] = frozenset()) -> list[dict[str, str]]:
    """What is below a folder and is not read by `find`: names and reasons, in the order of the names."""
    if not folder.is_dir():
        return []
    if (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file():
        mine = _dataset_files(folder)
        found = [
            (path, "not part of the dataset")
            for path, _ in _walk(folder, avoid)
            if path.name not in mine
        ]
    else:
        found = [(path, problem) for path, problem in _walk(folder, avoid) if problem is not None]
    return sorted(
        ({"name": str(path.relative_to(folder)), "problem": problem} for path, problem in found),
        key=lambda entry: entry["name"],
    )


def _dataset_files(folder: Path) -> set[str]:
    """Names of the files that make a Hugging Face dataset."""
    names = {"dataset_info.json", "state.json"}
    try:
        state = files.read_json(folder / "state.json")
        return names | {entry["filename"] for entry in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return names


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith(TEXT + LINES)


def _walk(folder: Path, avoid: frozenset[Path]) -> Iterator[tuple[Path, str | None]]:
    """Everything below a folder but folders, each with why it is not read (None: it is). Links to folders are followed
    after all else, so that a folder is read under its own name where it has one."""
    seen: set[str] = {os.path.realpath(path) for path in avoid}
    waiting = [folder]
    links: list[Path] = []
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(here)
        if real in seen:
            if here.is_symlink():
                yield here, "a link to a folder that is already read"
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except PermissionError:
            yield here, "not readable"
            continue
        for entry in entries:
            path = here / entry.name
            try:
                if path.is_dir():
                    (links if path.is_symlink() else waiting).append(path)
                else:
                    yield path, _why_not_read(path)
            except PermissionError:
                yield path, "not readable"


def _why_not_read(path: Path) -> str | None:
    if not path.is_file():
        return "a link to nothing" if path.is_symlink() else "no regular file"
    return None if _is_text(path) else "of a kind that is not read"


def read(source: Source, field: str = "text") -> Iterator[Text]:
    """The documents of a source, usable or not, in order. `field` names the text in JSON lines and datasets."""
    try:
        if source.rows is not None:
            yield from _rows(source, field)
        elif source.one_document:
            yield from _document(source)
        else:
            yield from _json_lines(source, field)
    except PermissionError:
        yield Text(source.name, None, "not readable")
    except OSError as error:
        raise UserError(
            f"{source.path} cannot be read ({error}): fix that and run the same command again"
        ) from error


def _document(source: Source) -> Iterator[Text]:
    """The file's text. What an archive holds before it is cut short, or before other bytes follow it, is kept."""
    raw, problem = read_bytes(source.path)
    whole = problem in (None, BYTES_AFTER)
    if whole or (raw and problem == CUT_SHORT):
        try:
            # Cut anywhere, the last character may be there in part.
            text = codecs.getincrementaldecoder("utf-8")().decode(raw, final=whole)
            yield _checked(source.name, text)
        except UnicodeDecodeError:
            yield Text(source.name, None, "binary" if b"\0" in raw else "not UTF-8")
        if problem == CUT_SHORT:
            problem = "cut short, kept up to there"
    if problem is not None:
        yield Text(source.name, None, problem)


def _checked(name: str, text: str) -> Text:
    """A document of a text, with one kind of line break; or what is wrong with it."""
    if "\0" in text:
        return Text(name, None, "binary")
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character, which JSON can spell
        return Text(name, None, "not UTF-8")
    text = as_read(text)
    return Text(name, text, None) if text.strip() else Text(name, None, "empty")


def _json_lines(source: Source, field: str) -> Iterator[Text]:
    number = 0
    try:
        with open_bytes(source.path) as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield _json_line(f"{source.name}:{number}", line, field)
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            raise
        problem = problem if problem not in (CUT_SHORT, DAMAGED) else "damaged from here on"
        yield Text(f"{source.name}:{number + 1}", None, problem)


def _json_line(name: str, line: bytes, field: str) -> Text:
    try:
        # Numbers are not needed, and Python refuses to read very long ones.
        value = files.parse_json(line.decode("utf-8-sig"), parse_int=float)
    except UnicodeDecodeError:
        return Text(name, None, "not UTF-8")
    except files.RepeatedKeyError as error:
        return Text(name, None, f"key {error.key!r} twice")
    except ValueError as error:
        nested = isinstance(error.__cause__, RecursionError)
        return Text(name, None, "nested too deeply" if nested else "not JSON")
    if not isinstance(value, dict):
        return Text(name, None, f"{_kind(value)} instead of an object")
    if field not in value:
        return Text(name, None, f"no field '{field}'")
    return _of_value(name, value[field], f"field '{field}'")


def _of_value(name: str, value: Any, where: str) -> Text:
    return (
        _checked(name, value)
        if isinstance(value, str)
        else Text(name, None, f"{where} is {_kind(value)}")
    )


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "a list"


def _load_dataset(folder: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{folder} is a Hugging Face dataset; reading it needs: pip install datasets"
        ) from error
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever arrow says of a damaged file
        raise UserError(
            f"{folder} is a Hugging Face dataset that cannot be read: {error}"
        ) from error


def _dataset_sources(folder: Path) -> list[Source]:
    """Rows in equal parts, so that one dataset keeps many workers busy."""
    for name in ("dataset_info.json", "state.json"):  # of a key given twice the library takes one
        try:
            files.read_json(folder / name)
        except ValueError as error:
            raise UserError(
                f"{folder / name} is damaged ({error}): mend it, or save the dataset again"
            ) from error
    count = len(_load_dataset(folder))
    if count == 0:
        raise UserError(f"{folder} is a Hugging Face dataset without rows")
    facts = [p.stat() for p in folder.rglob("*") if p.is_file()]
    size = sum(s.st_size for s in facts)
    modified = max(max(s.st_mtime_ns, s.st_ctime_ns) for s in facts)
    ranges = [(a, min(count, a + ROWS)) for a in range(0, count, ROWS)]
    return [
        Source(folder, f"{folder.name}:{a}-{b - 1}", size * (b - a) // count, modified, (a, b))
        for a, b in ranges
    ]


def _rows(source: Source, field: str) -> Iterator[Text]:
    rows = _load_dataset(source.path)
    if field not in rows.column_names:
        raise UserError(
            f"{source.path} has no column '{field}' (it has {', '.join(rows.column_names)}): give --field"
        )
    for number in range(*source.rows):
        yield _of_value(f"{source.path.name}:{number}", rows[number][field], f"column '{field}'")
