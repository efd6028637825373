"""What the rows of a league say: means over seeds, as a table, JSON and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from infty_tools import plots
from infty_tools.bench import figures
from infty_tools.bench.league import SEGMENT, SYSTEMS

Row = dict[str, Any]
OLD = 2 * SEGMENT
"""Tokens after which what was told is beyond every short-term memory."""


def share_of_old(answers: dict[str, Any]) -> float | None:
    """The share of right answers about what was told OLD tokens ago or earlier; of all where no age is known."""
    rows = [row for row in answers["by_age"] if row["age"][0] >= OLD]
    count = sum(row["answers"] for row in rows)
    if not count:
        return answers.get("accuracy")
    return sum(row["accuracy"] * row["answers"] for row in rows) / count


def summary(rows: Sequence[Row]) -> list[Row]:
    """For every task and system, over its seeds: mean, least and most of each figure."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["system"]), []).append(row)
    return [_summary(task, system, group) for (task, system), group in groups.items()]


def _summary(task: str, system: str, rows: list[Row]) -> Row:
    lengths = rows[0]["answers"]
    shares = {n: [share_of_old(row["answers"][n]) for row in rows] for n in lengths}
    return {
        "task": task,
        "system": system,
        "seeds": [row["seed"] for row in rows],
        "parameters": rows[0]["parameters"],
        "state_floats": rows[0]["state_floats"],
        "loss": _spread([row["loss"] for row in rows]),
        "seconds_per_step": _spread([row["seconds_per_step"] for row in rows]),
        "right": {n: _spread([x for x in each if x is not None]) for n, each in shares.items()},
    }


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": fmean(values), "least": min(values), "most": max(values)}


def show(rows: Sequence[Row]) -> None:
    """A table for every task."""
    from rich.console import Console
    from rich.table import Table

    found = summary(rows)
    for task in dict.fromkeys(row["task"] for row in found):
        mine = [row for row in found if row["task"] == task]
        lengths = list(mine[0]["right"])
        heads = [f"right, {n} x length" for n in lengths]
        table = Table("system", "state floats", *heads, "loss", "s/step", title=_title(task, mine))
        for row in mine:
            shares = [_percent(row["right"][n]) for n in lengths]
            seconds = f"{row['seconds_per_step']['mean']:.3f}"
            loss = f"{row['loss']['mean']:.3f}"
            table.add_row(row["system"], f"{row['state_floats']:,}", *shares, loss, seconds)
        Console().print(table)


def _title(task: str, rows: list[Row]) -> str:
    sizes = sorted({row["parameters"] for row in rows})
    size = f"{sizes[-1]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return (
        f"{task}: answers about what was told {OLD} tokens ago or earlier; {size} parameters; "
        f"mean (least to most) of {len(rows[0]['seeds'])} seed(s)"
    )


def _percent(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    mean, least, most = (100 * spread[key] for key in ("mean", "least", "most"))
    return f"{mean:.1f} % ({least:.1f} to {most:.1f})"


def write(rows: Sequence[Row], out: Path) -> None:
    """recall.json and recall.png."""
    found = summary(rows)
    figures.write(out / "recall.json", found)
    _plot(found, out / "recall.png")
    print(f"wrote {out / 'recall.json'} and {out / 'recall.png'}")


def _plot(found: list[Row], path: Path) -> None:
    """Right answers by length, a panel a task, a line a system with the spread of its seeds."""
    plt = plots.pyplot()
    tasks = list(dict.fromkeys(row["task"] for row in found))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], tasks):
        for row in (r for r in found if r["task"] == task):
            points = [(int(n), s) for n, s in row["right"].items() if s is not None]
            color = f"C{list(SYSTEMS).index(row['system'])}"
            x = [n for n, _ in points]
            axis.plot(x, [s["mean"] for _, s in points], "o-", color=color, label=row["system"])
            least, most = ([s[key] for _, s in points] for key in ("least", "most"))
            axis.fill_between(x, least, most, color=color, alpha=0.2)
        axis.set(title=task, xlabel="length of a document / of those trained on", ylim=(0, 1.02))
        axis.set_xscale("log", base=2)
    axes[0][0].set_ylabel("right answers")
    axes[0][-1].legend(fontsize="small")
    figure.tight_layout()
    plots.save(figure, path)
