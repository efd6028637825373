"""The plots of an evaluation: perplexity by position, and right answers by length and depth."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from infty_tools import plots


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plots of an evaluation's plain values into `folder`; returns their paths."""
    paths = [_curves(found, folder / "position.png")]
    if found["comparisons"]:
        paths.append(_ratios(found, folder / "ratio.png"))
    for number, model in enumerate(found["models"], 1):
        for mode, figures in model["memory"].items():
            rows = figures.get("answers", {}).get("by_length_and_depth")
            if rows:
                name = re.sub(r"\W+", "-", model["name"], flags=re.ASCII)
                path = folder / f"answers-{number}-{name}-{mode}.png"
                paths.append(_answers(rows, label(model, mode), path))
    return paths


def label(model: dict[str, Any], mode: str) -> str:
    """A model in a mode, in words."""
    how = "no memory" if mode == "none" else f"memory {mode}"
    return f"{model['name']}, {how}"


def _curves(found: dict[str, Any], path: Path) -> Path:
    """Perplexity of each model in each mode by position in the document."""
    figure, axes = _by_position("perplexity")
    for model in found["models"]:
        for mode, figures in model["memory"].items():
            rows = figures["by_position"]
            middle = [math.exp(min(row["nll"], 700)) for row in rows]
            ends = [row.get("interval", [row["nll"]] * 2) for row in rows]
            band = [[math.exp(min(pair[i], 700)) for pair in ends] for i in (0, 1)]
            _line(axes, rows, middle, band, label(model, mode))
    axes.set_yscale("log")
    plots.plain_numbers(axes.yaxis)
    axes.legend()
    plots.save(figure, path)
    return path


def _ratios(found: dict[str, Any], path: Path) -> Path:
    """Perplexity of each further model ÷ that of the first."""
    figure, axes = _by_position(f"perplexity ÷ that of {found['models'][0]['name']}")
    for comparison in found["comparisons"]:
        rows = [row for row in comparison["by_position"] if "ratio" in row]
        middle = [row["ratio"] for row in rows]
        ends = [row.get("interval", [row["ratio"]] * 2) for row in rows]
        _line(axes, rows, middle, list(zip(*ends)), comparison["model"])
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.legend()
    plots.save(figure, path)
    return path


def _by_position(what: str) -> tuple[Any, Any]:
    figure, axes = plots.pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("position in the document (tokens)")
    axes.set_ylabel(what)
    axes.grid(alpha=0.3)
    return figure, axes


def _line(axes: Any, rows: list[dict[str, Any]], middle: list, band: Any, name: str) -> None:
    # A bin begins at 0 or half of its end: its middle on a logarithmic axis, or half of the first.
    at = [math.sqrt(max(row["from"], row["to"] / 4) * row["to"]) for row in rows]
    [line] = axes.plot(at, middle, marker="o", markersize=3, label=name)
    if rows:
        axes.fill_between(at, *band, color=line.get_color(), alpha=0.15, linewidth=0)


def _answers(rows: list[dict[str, Any]], title: str, path: Path) -> Path:
    """A heat-map: the share of right answers, by the document's length and by depth."""
    lengths = sorted({tuple(row["length"]) for row in rows})
    depths = sorted({tuple(row["depth"]) for row in rows})
    table = [[math.nan] * len(lengths) for _ in depths]
    for row in rows:
        table[depths.index(tuple(row["depth"]))][lengths.index(tuple(row["length"]))] = row[
            "accuracy"
        ]
    size = (2.5 + 0.9 * len(lengths), 2 + 0.4 * len(depths))
    figure, axes = plots.pyplot().subplots(figsize=size, layout="constrained")
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for y, values in enumerate(table):
        for x, value in enumerate(values):
            if not math.isnan(value):
                color = "black" if value > 0.6 else "white"
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(lengths)), [f"{start:,} to {end:,}" for start, end in lengths])
    axes.set_yticks(range(len(depths)), [f"{start:.0%} to {end:.0%}" for start, end in depths])
    axes.set_xlabel("document (tokens)")
    axes.set_ylabel("depth")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="right answers")
    plots.save(figure, path)
    return path
