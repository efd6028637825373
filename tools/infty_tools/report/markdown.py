"""The story as Markdown: tables, for a pull request or a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from infty_tools.report.facts import facts
from infty_tools.report.page import when

MOST_EVENTS = 30


def markdown(found: dict[str, Any]) -> str:
    """Markdown of what `summary` found."""
    runs = found["runs"]
    names = [run["name"] for run in runs]
    lines = [f"# {_cell(' beside '.join(names) if len(runs) > 1 else f'Run {names[0]}')}", ""]
    lines += [f"- **{_cell(run['name'])}**: {_cell(run['state'])}" for run in runs]
    lines += [f"- {_cell(run['name'])}: {_cell(note)}" for run in runs for note in run["notes"]]
    lines += ["", *_table(["", *names], ([label, *values] for label, values in facts(runs)))]
    for run in runs:
        for mode, reading in run["validation"].items():
            rows = (
                [f"{row['from']:,} to {row['to']:,}", f"{row['perplexity']:,.2f}"]
                for row in reading["by_position"]
            )
            title = f"{run['name']}, memory {mode}: validation at step {reading['step']:,}"
            lines += ["", f"## {_cell(title)}", "", *_table(["position", "perplexity"], rows)]
    if found["config_differences"]:
        rows = (
            [key, *("" if v is None else v for v in values)]
            for key, values in found["config_differences"].items()
        )
        lines += ["", "## Config: what differs", "", *_table(["key", *names], rows)]
    for run in runs:
        events = run["events"][-MOST_EVENTS:]
        if events:
            rows = ([when(e["time"]), f"{e['step']:,}", e["event"], e["text"]] for e in events)
            lines += ["", f"## {_cell(run['name'])}: events", ""]
            lines += _table(["when (UTC)", "step", "what", ""], rows)
    return "\n".join(lines) + "\n"


def _table(heading: list[str], rows: Iterable[list[str]]) -> list[str]:
    table = [heading, ["---"] * len(heading), *rows]
    return [f"| {' | '.join(map(_cell, row))} |" for row in table]


def _cell(text: str) -> str:
    """Text that neither ends a cell nor a line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
