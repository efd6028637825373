"""What a dataset was made from, and whether that has changed since.

`sources.json` beside the datasets holds the options, and of every source its name, size, time and
a digest of its texts. The time only says which sources have to be read to know.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infty import files
from infty.data import sources
from infty.data.build import facts
from infty.data.sources import Source

RECORD = "sources.json"
PARTS = ("train", "validation")


def write(
    folder: Path, options: dict[str, Any], parts: dict[str, list[Source]], digests: Iterable[str]
) -> None:
    """Write the record: `digests` are those of all sources, in the order of `parts`."""
    following = iter(digests)
    values = {
        name: [{**facts(s), "digest": next(following)} for s in found]
        for name, found in parts.items()
    }
    files.write_json(folder / RECORD, {"options": options, **values})


def difference(folder: Path, options: dict[str, Any], parts: dict[str, list[Source]]) -> str | None:
    """In words, what differs between the record in a folder and what would be read now.

    None: nothing. Sources with another size or time than recorded are read.
    """
    before = _read(folder / RECORD)
    if before is None:
        return f"it has no {RECORD} that can be read (was it made by an earlier version of infty?)"
    changed = [
        f"{name} was {before['options'].get(name)!r} and is {value!r} now"
        for name, value in options.items()
        if before["options"].get(name) != value
    ]
    if changed:
        return "; ".join(changed)
    for part in PARTS:
        known = {entry["name"]: entry for entry in before[part]}
        names = [source.name for source in parts[part]]
        if new := [name for name in names if name not in known]:
            return f"{_listed(new)} {_is(new)} new in {part}"
        if gone := [name for name in known if name not in set(names)]:
            return f"{_listed(gone)} {_is(gone)} no longer in {part}"
    edited = [
        source.name
        for part in PARTS
        for source, entry in zip(parts[part], before[part])
        if not _same(source, entry, options["field"])
    ]
    return (
        f"{_listed(edited)} {'has' if len(edited) == 1 else 'have'} changed since"
        if edited
        else None
    )


def _same(source: Source, entry: dict[str, Any], field: str) -> bool:
    if facts(source).items() <= entry.items():
        return True
    return sources.digest(text.found for text in sources.read(source, field)) == entry["digest"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = files.read_json(path)
        complete = all(
            {"name", "size", "modified", "digest"} <= entry.keys()
            for p in PARTS
            for entry in values[p]
        )
        return values if complete and isinstance(values["options"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _listed(names: list[str]) -> str:
    """A few of the names."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
