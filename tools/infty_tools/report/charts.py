"""Charts as SVG that stands in a page: drawn by matplotlib, without scripts, with text that stays text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from infty_tools import plots

# Of Okabe and Ito: they can be told apart by those who are colour-blind, and in grey.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
WIDTH, HEIGHT = 4.8, 3.2
"""Inches, at 72 points: a phone shows a chart a little smaller than that, a desktop a little larger."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "infty",
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 12,
    "legend.fontsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}
LONGEST_LABEL = 34


@dataclass(frozen=True)
class Line:
    """A curve. `low` and `high`: a band around it, where there is one."""

    label: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False
    marked: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Axes:
    """What the axes of a chart say and how they are divided."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    perplexity: bool = False
    """The right axis shows e to what the left one shows."""


@dataclass(frozen=True)
class Panel:
    """A heat-map: values [rows, columns], and where the first and the last of them begin and end."""

    title: str
    values: Sequence[Sequence[float]]
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Chart:
    title: str
    svg: str
    caption: str = ""


def color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def shade(index: int, count: int) -> str:
    """One of `count` colours that go from dark to light in an order that the eye sees: for layers."""
    import matplotlib
    from matplotlib.colors import to_hex

    return to_hex(matplotlib.colormaps["viridis"](0.9 * index / max(1, count - 1)))


def lines(title: str, curves: Sequence[Line], axes: Axes, caption: str = "") -> Chart:
    """Curves over one pair of axes."""
    with _figure(WIDTH, HEIGHT + 0.26 * math.ceil(_legend_rows(curves))) as figure:
        plot = figure.subplots()
        for line in curves:
            _draw(plot, line)
        _axes(plot, axes)
        if len(curves) > 1:
            columns = 1 if max(len(line.label) for line in curves) > 18 else 2
            figure.legend(loc="outside lower left", ncols=columns, frameon=False)
        return Chart(title, _svg(figure, title), caption)


def _legend_rows(curves: Sequence[Line]) -> float:
    if len(curves) < 2:
        return 0
    return len(curves) if max(len(line.label) for line in curves) > 18 else len(curves) / 2


def _draw(plot: Any, line: Line) -> None:
    label = line.label
    if len(label) > LONGEST_LABEL:
        label = f"...{label[3 - LONGEST_LABEL :]}"
    x = [x for x, _ in line.points]
    y = [y for _, y in line.points]
    plot.plot(
        x,
        y,
        label=label.replace("$", r"\$"),
        color=line.color,
        linestyle="--" if line.dashed else "-",
        linewidth=1.6,
        marker="o" if line.marked or len(x) == 1 else None,
        markersize=3.5,
    )
    if line.low:
        plot.fill_between(x, line.low, line.high, color=line.color, alpha=0.15, linewidth=0)


def _axes(plot: Any, axes: Axes) -> None:
    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    if axes.log_x:
        plot.set_xscale("log", base=2)
    plot.xaxis.set_major_formatter(_short)
    if axes.log_y:
        plot.set_yscale("log")
        plots.plain_numbers(plot.yaxis)
    if axes.perplexity:
        right = plot.secondary_yaxis("right", functions=(_exponential, _logarithm))
        right.set_ylabel("perplexity")
        right.set_yscale("log")
        plots.plain_numbers(right.yaxis)
        right.spines["right"].set_visible(True)


def _short(x: float, _: int) -> str:
    """1,500 as it is; 20k and 3M where it is longer."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(x) >= size:
            return f"{x / (1e6 if unit == 'M' else 1e3):g}{unit}"
    return f"{x:,g}"


def _exponential(x: Any) -> Any:
    import numpy as np

    return np.exp(np.clip(x, -700, 700))


def _logarithm(x: Any) -> Any:
    import numpy as np

    return np.log(np.clip(x, 1e-300, None))


def heat(title: str, panels: Sequence[Panel], x: str, y: str, label: str, caption: str) -> Chart:
    """Heat-maps one above the other, all on one scale of colours."""
    high = max((v for p in panels for row in p.values for v in row), default=1.0)
    with _figure(WIDTH, 0.8 + 1.5 * len(panels)) as figure:
        plotted = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for plot, panel in zip(plotted, panels):
            extent = (*panel.x, panel.y[1], panel.y[0])
            image = plot.imshow(
                panel.values, vmin=0, vmax=high or 1.0, extent=extent, aspect="auto"
            )
            plot.set_title(panel.title, loc="left")
            plot.grid(False)
            plot.yaxis.set_major_formatter(_short)
        figure.supxlabel(x, fontsize=12)
        figure.supylabel(y, fontsize=12)
        figure.colorbar(image, ax=list(plotted), label=label)
        return Chart(title, _svg(figure, title), caption)


def table_of_shares(
    title: str, rows: list[str], columns: list[str], values: list[list[float | None]], caption: str
) -> Chart:
    """A heat-map of shares from 0 to 1 with its figures written in it; None: no figure."""
    table = [[math.nan if v is None else v for v in row] for row in values]
    with _figure(WIDTH, 1.6 + 0.32 * len(rows)) as figure:
        plot = figure.subplots()
        plot.imshow(table, vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                if not math.isnan(value):
                    ink = "black" if value > 0.6 else "white"
                    plot.text(j, i, f"{value:.0%}", ha="center", va="center", color=ink, size=11)
        plot.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        plot.set_yticks(range(len(rows)), rows)
        plot.set_xlabel("length of the document, tokens")
        plot.set_ylabel("depth")
        plot.grid(False)
        return Chart(title, _svg(figure, title), caption)


@contextmanager
def _figure(width: float, height: float) -> Any:
    plt = plots.pyplot()
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        try:
            yield figure
        finally:
            plt.close(figure)


def _svg(figure: Any, title: str) -> str:
    """The <svg> element alone, which takes the width that it is given."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns(:\w+)?)="[^"]*"', "", head)
    name = re.sub(r"[^\w ,.:/÷-]", "", title)
    return f'{head} role="img" aria-label="{name}">{rest}'
