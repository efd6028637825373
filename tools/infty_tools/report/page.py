"""The page: one HTML file with its style and its charts, which asks a browser for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infty_tools.report import charts
from infty_tools.report.facts import facts, size
from infty_tools.report.sections import sections

MOST_EVENTS = 200


def page(found: dict[str, Any]) -> str:
    """HTML of what `summary` found."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    names = [run["name"] for run in found["runs"]]
    return environment.get_template("page.html.j2").render(
        title=" beside ".join(names) if len(names) > 1 else f"Run {names[0]}",
        version=found["version"],
        written=found["written"].replace("T", " ").removesuffix("+00:00") + " UTC",
        runs=[_run(run, charts.color(i)) for i, run in enumerate(found["runs"])],
        facts=facts(found["runs"]),
        sections=sections(found["runs"]),
        differences=found["config_differences"],
    )


def _run(run: dict[str, Any], color: str) -> dict[str, Any]:
    events = run["events"][-MOST_EVENTS:]
    return run | {
        "color": color,
        "left_out": len(run["events"]) - len(events),
        "events": [event | {"when": when(event["time"])} for event in events],
        "checkpoints": [c | {"size": size(c["bytes"])} for c in run["checkpoints"]],
    }


def when(time: Any) -> str:
    """A moment of the journal, to the second."""
    return str(time).replace("T", " ").removesuffix("+00:00") if time else ""
