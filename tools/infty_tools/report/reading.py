"""What a run's folder holds, read as it is: nothing else is looked at, and nothing is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infty import files
from infty.access import unreadable
from infty.errors import UserError
from infty_pretrain import lock, typed
from infty_pretrain.records import (
    CONFIG,
    EVENTS,
    FIGURES,
    MANIFEST,
    METRICS,
    PICTURES,
    RUN,
    VALIDATION,
)
from infty_tools.options import printable

Row = dict[str, Any]


@dataclass
class Run:
    """One run's folder."""

    folder: Path
    name: str
    """What tables and charts call it: no two are called alike."""
    config: dict[str, Any]
    """Its config as plain values, by `section.key`."""
    holder: str | None
    """The process that works in it now."""
    metrics: list[Row] = field(default_factory=list)
    """One a step, in order."""
    validations: list[Row] = field(default_factory=list)
    figures: list[Row] = field(default_factory=list)
    pictures: Row | None = None
    """The last row of them."""
    events: list[Row] = field(default_factory=list)
    checkpoints: list[Row] = field(default_factory=list)
    """`step`, `bytes`, `name`; `damaged` and `unfinished` where they are."""
    evaluations: dict[str, Row] = field(default_factory=dict)
    """What `infty evaluate --output` wrote into the folder, by the file's name."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, in words."""


def read(folder: Path, name: str) -> Run:
    """Raises UserError, in one sentence, for a folder that is no run's."""
    _check(folder)
    run = Run(folder, name, _config(folder), lock.holder(folder))
    run.metrics = _rows(run, METRICS)
    run.validations = _rows(run, VALIDATION)
    run.figures = _rows(run, FIGURES)
    run.pictures = _last(run, PICTURES)
    run.events = _rows(run, EVENTS)
    run.checkpoints = _checkpoints(folder)
    run.evaluations = _evaluations(run)
    return run


def names(folders: Sequence[Path]) -> list[str]:
    """A short name for each run: the last part of its path, or all of it where two end alike."""
    short = [folder.absolute().name for folder in folders]
    return [
        printable(name if short.count(name) == 1 else folder)
        for name, folder in zip(short, folders)
    ]


def _check(folder: Path) -> None:
    shown = printable(folder)
    if (folder / MANIFEST).exists():
        raise UserError(
            f"{shown} is one checkpoint: name the run's folder, which holds checkpoints/"
        )
    if not folder.is_dir():
        raise UserError(f"{shown} is no folder: name the folder of a run (its run.folder)")
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{shown} is no run: it holds no {CONFIG}, which `infty pretrain` writes first; name "
            "the folder of a run (its run.folder)"
        )


def _config(folder: Path) -> dict[str, Any]:
    values = typed.read_yaml_file(folder / CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{printable(folder / CONFIG)} holds no sections: it is no run's config")
    return typed.flat(values)


def _rows(run: Run, name: str) -> list[Row]:
    """The rows of a file of lines, of which damaged ones are left out and told."""
    lines = _lines(run.folder / name)
    rows = [_row(line) for line in lines]
    damaged = [at for at, row in enumerate(rows, 1) if row is None]
    if damaged and damaged[-1] == len(lines) and not lines[-1].endswith(b"\n") and run.holder:
        damaged.pop()  # it is being written
    if damaged:
        which = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        run.notes.append(f"{name}: {len(damaged)} damaged line(s) left out (line {which})")
    return [row for row in rows if row is not None]


def _last(run: Run, name: str) -> Row | None:
    """The last row of a file of lines that is whole; the others, which may be long, are not looked at."""
    rows = map(_row, reversed(_lines(run.folder / name)))
    return next((row for row in rows if row is not None), None)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error


def _row(line: bytes) -> Row | None:
    """A line's object, if it has a step."""
    try:
        row = files.parse_json(line)
    except ValueError:
        return None
    sound = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if sound and not isinstance(row["step"], bool) else None


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return value if usable and math.isfinite(value) else None


def curve(rows: Sequence[Row], value: Callable[[Row], Any]) -> list[tuple[int, float]]:
    """(step, value) of the rows that have one."""
    found = ((row["step"], number(value(row))) for row in rows)
    return [(step, y) for step, y in found if y is not None]


def _checkpoints(folder: Path) -> list[Row]:
    """Those on disk, oldest first, by their names and sizes: whether each is whole is not checked."""
    found = []
    for path in sorted(folder.glob("checkpoints/step-*")):
        digits = path.name.removeprefix("step-").partition(".")[0]
        if not path.is_dir() or not digits.isdigit():
            continue
        row: Row = {"step": int(digits), "name": path.name, "bytes": _size(path)}
        if path.suffix:
            row["damaged" if path.name.endswith(".damaged") else "unfinished"] = True
        found.append(row)
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _evaluations(run: Run) -> dict[str, Row]:
    """JSON files in the folder, or in its `evaluations/`, that hold what `infty evaluate` finds."""
    found = {}
    for path in sorted((*run.folder.glob("*.json"), *run.folder.glob("evaluations/*.json"))):
        if path.name in (RUN, MANIFEST):
            continue
        try:
            value = files.read_json(path)
        except (ValueError, OSError) as error:
            run.notes.append(f"{printable(path.name)}: no JSON that can be read ({error})")
            continue
        if _is_evaluation(value):
            found[printable(path.name)] = value
    return found


def _is_evaluation(value: Any) -> bool:
    try:
        return all(
            isinstance(rows["by_position"], list) and model["name"]
            for model in value["models"]
            for rows in model["memory"].values()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def plain(value: Any) -> str:
    """A value of a config for a table."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
