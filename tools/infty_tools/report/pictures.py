"""The memory's pictures, as a run recorded them last; every picture says itself what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infty_tools.report import charts
from infty_tools.report.charts import Axes, Chart, Line, Panel
from infty_tools.report.reading import number

MOST_LAYERS = 8
"""Heat-maps of a memory: of more layers, as many evenly chosen."""

Layers = dict[str, dict[str, Any]]
"""A picture of each layer, by the layer's name."""


def pictures(runs: list[dict[str, Any]]) -> Iterator[Chart]:
    """Charts of every run's last pictures."""
    for run in runs:
        row = run["pictures"]
        if row is None:
            continue
        where = (
            f"step {row['step']:,}" if len(runs) == 1 else f"{run['name']}, step {row['step']:,}"
        )
        for name, layers in _by_name(row.get("pictures")).items():
            yield _chart(f"{name}, {where}", layers)


def _by_name(found: Any) -> dict[str, Layers]:
    """The sound pictures, by `memory_picture` and layer."""
    groups: dict[str, Layers] = {}
    for name, picture in sorted(found.items()) if isinstance(found, dict) else ():
        group, _, layer = name.partition("/")
        if _sound(picture):
            groups.setdefault(group.replace("_", " "), {})[layer.replace("_", " ")] = picture
    return groups


def _sound(picture: Any) -> bool:
    try:
        values = picture["values"]
        rows = values if isinstance(values[0], list) else [values]
        pairs = (*picture["ends"], *picture["sides"])
        texts = (picture["across"], picture["down"], picture["told"])
        return (
            len({len(row) for row in rows}) == 1
            and all(x is None or number(x) is not None for row in rows for x in row)
            and len(pairs) == 4
            and None not in map(number, pairs)
            and all(isinstance(text, str) for text in texts)
        )
    except (KeyError, TypeError, IndexError):
        return False


def _chart(title: str, layers: Layers) -> Chart:
    one = next(iter(layers.values()))
    if isinstance(one["values"][0], list):
        return _heat(title, _chosen(layers), one)
    curves = [
        Line(name, _points(picture), charts.shade(i, len(layers)))
        for i, (name, picture) in enumerate(layers.items())
    ]
    return charts.lines(title, curves, Axes(one["across"], one["down"]), one["told"])


def _chosen(layers: Layers) -> Layers:
    names = list(layers)
    count = min(len(names), MOST_LAYERS)
    places = [round(i * (len(names) - 1) / max(1, count - 1)) for i in range(count)]
    return {names[place]: layers[names[place]] for place in places}


def _heat(title: str, layers: Layers, one: dict[str, Any]) -> Chart:
    panels = [
        Panel(
            name,
            [[float("nan") if x is None else x for x in row] for row in picture["values"]],
            tuple(picture["ends"]),
            tuple(picture["sides"]),
        )
        for name, picture in layers.items()
    ]
    return charts.heat(title, panels, one["across"], one["down"], "share", one["told"])


def _points(picture: dict[str, Any]) -> list[tuple[float, float]]:
    """Values stand in the middle of even steps between the ends."""
    start, end = picture["ends"]
    values = picture["values"]
    step = (end - start) / len(values)
    return [(start + (i + 0.5) * step, y) for i, y in enumerate(values) if y is not None]
