"""Which charts tell a run's story, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from infty_tools.report import charts
from infty_tools.report.charts import Axes, Chart, Line
from infty_tools.report.pictures import pictures
from infty_tools.report.reading import number
from infty_tools.report.summary import CURVES, positions

Summary = dict[str, Any]
"""A run as `summary` tells it."""

POSITION = "position in the document, tokens"
CAPTIONS = {
    "loss": "Mean over the tokens of each step; of a long run, over stretches of steps.",
    "grad_norm": "",
    "lr": "Of the first group of parameters.",
    "tokens_per_second": "Of all processes together, between two log lines.",
}


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    charts: list[Chart]
    text: str = ""


def sections(runs: list[Summary]) -> list[Section]:
    """Those that have anything to show, and the training, which says so when it has not."""
    training = list(_training(runs))
    nothing = "" if training else "No step was recorded yet."
    found = [
        Section("training", "Training", training, nothing),
        Section("validation", "Held-out text while training", list(_validation(runs))),
        Section("evaluations", "Evaluations", list(_evaluations(runs))),
        Section("pictures", "The memory in pictures", list(pictures(runs))),
        Section("figures", "Figures", list(_figures(runs))),
    ]
    return [section for section in found if section.charts or section.text]


def _training(runs: list[Summary]) -> Iterator[Chart]:
    for key, title in CURVES.items():
        curves = [
            Line(run["name"], run["curves"][key], charts.color(i))
            for i, run in enumerate(runs)
            if key in run["curves"]
        ]
        if curves:
            axes = Axes("step", title.partition(",")[0], perplexity=key == "loss")
            if key == "grad_norm":
                axes = Axes("step", "norm", log_y=all(y > 0 for c in curves for _, y in c.points))
            yield charts.lines(title.capitalize(), curves, axes, CAPTIONS[key])


def _validation(runs: list[Summary]) -> Iterator[Chart]:
    readings = [
        (i, f"{run['name']}, memory {mode}", mode, reading)
        for i, run in enumerate(runs)
        for mode, reading in run["validation"].items()
    ]
    if not readings:
        return
    over_steps = [
        Line(label, reading["perplexity"], charts.color(i), mode == "off", marked=True)
        for i, label, mode, reading in readings
    ]
    yield charts.lines(
        "Validation perplexity",
        over_steps,
        Axes("step", "perplexity", log_y=True),
        "A model trained with its memory leans on it: off is not a model without one.",
    )
    curves = [
        by_position(label, reading["by_position"], charts.color(i), mode == "off")
        for i, label, mode, reading in readings
        if reading["by_position"]
    ]
    if curves:
        axes = Axes(POSITION, "perplexity", log_x=True, log_y=True)
        yield charts.lines(
            "Perplexity by position, last validation",
            curves,
            axes,
            "Bands: 95 % over documents, where two or more reach so far.",
        )


def by_position(label: str, rows: list[dict[str, float]], color: str, dashed: bool = False) -> Line:
    """A curve over bins whose ends double, and its band."""
    # A bin begins at 0 or half of its end: its middle on a logarithmic axis, or half of the first.
    at = [math.sqrt(max(row["from"], row["to"] / 4) * row["to"]) for row in rows]
    middle = [row["perplexity"] for row in rows]
    low = [row.get("low", row["perplexity"]) for row in rows]
    high = [row.get("high", row["perplexity"]) for row in rows]
    return Line(label, list(zip(at, middle)), color, dashed, True, low, high)


def _evaluations(runs: list[Summary]) -> Iterator[Chart]:
    for run in runs:
        for file, found in run["evaluations"].items():
            yield from _evaluation(f"{run['name']}, {file}", found)


def _evaluation(name: str, found: dict[str, Any]) -> Iterator[Chart]:
    curves = []
    for i, model in enumerate(found["models"]):
        for mode, figures in model["memory"].items():
            rows = positions(figures["by_position"])
            label = model["name"] if mode == "none" else f"{model['name']}, memory {mode}"
            if rows:
                curves.append(by_position(label, rows, charts.color(i), mode == "off"))
    if curves:
        axes = Axes(POSITION, "perplexity", log_x=True, log_y=True)
        yield charts.lines(f"Perplexity by position: {name}", curves, axes)
    for model in found["models"]:
        for mode, figures in model["memory"].items():
            answers = figures.get("answers")
            rows = answers.get("by_length_and_depth") if isinstance(answers, dict) else None
            if rows:
                yield _answers(f"{model['name']}, memory {mode}", rows, name)


def _answers(reader: str, rows: list[dict[str, Any]], name: str) -> Chart:
    lengths = sorted({tuple(row["length"]) for row in rows})
    depths = sorted({tuple(row["depth"]) for row in rows})
    shares = {
        (tuple(row["depth"]), tuple(row["length"])): number(row.get("accuracy")) for row in rows
    }
    return charts.table_of_shares(
        f"Right answers: {reader}",
        [f"{start:.0%} to {end:.0%}" for start, end in depths],
        [f"{start:,} to {end:,}" for start, end in lengths],
        [[shares.get((depth, length)) for length in lengths] for depth in depths],
        f"By the length of the document and how deep in it the answer's cause lies ({name}).",
    )


def _figures(runs: list[Summary]) -> Iterator[Chart]:
    """A chart for each group of figures; a figure's name is group/series."""
    groups = sorted({name.partition("/")[0] for run in runs for name in run["figures"]})
    for group in groups:
        of_runs = [
            {
                name.partition("/")[2]: points
                for name, points in run["figures"].items()
                if name.partition("/")[0] == group
            }
            for run in runs
        ]
        title = group.replace("_", " ")
        yield charts.lines(title, _series(runs, of_runs), Axes("step", title))


def _series(runs: list[Summary], of_runs: list[dict[str, Any]]) -> list[Line]:
    """Every series of one run, or the mean of each of several runs with the range of its series."""
    if len(runs) == 1:
        [series] = of_runs
        return [
            Line(name.replace("_", " "), points, charts.shade(i, len(series)))
            for i, (name, points) in enumerate(sorted(series.items()))
        ]
    return [
        _together(run["name"], series, charts.color(i))
        for i, (run, series) in enumerate(zip(runs, of_runs))
        if series
    ]


def _together(name: str, series: dict[str, Any], color: str) -> Line:
    values: dict[float, list[float]] = {}
    for points in series.values():
        for x, y in points:
            values.setdefault(x, []).append(y)
    steps = sorted(values)
    return Line(
        name,
        [(x, sum(values[x]) / len(values[x])) for x in steps],
        color,
        low=[min(values[x]) for x in steps],
        high=[max(values[x]) for x in steps],
    )
