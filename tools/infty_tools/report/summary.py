"""A run's story in plain values: what the page, the Markdown and the JSON all say."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Sequence
from typing import Any

from infty import __version__
from infty_pretrain import records
from infty_tools.report.reading import Row, Run, curve, number, plain

POINTS = 400
"""Most points of a curve: the means of as many stretches of a longer one."""
RECENT = 50
"""Steps over which the last loss is a mean."""
LARGEST_EXPONENT = 700.0

CURVES = {
    "loss": "training loss, nats a token",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient before clipping",
    "tokens_per_second": "tokens a second",
}
"""Keys of `metrics.jsonl` that are drawn over the steps."""
MODES = ("on", "off")


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that is told of the runs; JSON can hold it."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "version": __version__,
        "written": now,
        "runs": [_run(run) for run in runs],
        "config_differences": differences(runs),
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": state(run),
        "facts": _facts(run),
        "config": {key: plain(value) for key, value in run.config.items()},
        "curves": _curves(run),
        "validation": _validation(run),
        "evaluations": run.evaluations,
        "figures": _figures(run.figures),
        "pictures": run.pictures,
        "events": _events(run),
        "checkpoints": run.checkpoints,
        "notes": run.notes,
    }


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Config keys in which the runs differ, with each run's value (None: it has no such key)."""
    found = {}
    for key in sorted(set().union(*(run.config for run in runs))):
        values = [plain(run.config[key]) if key in run.config else None for run in runs]
        if len(set(values)) > 1 and key != "run.folder":
            found[key] = values
    return found


def state(run: Run) -> str:
    """Where a run is, in a sentence."""
    last = run.metrics[-1] if run.metrics else None
    steps = last and number(last.get("steps"))
    so_far = f"{last['step']:,} of {int(steps):,} steps" if last and steps else "no step yet"
    if run.holder:
        return f"in progress: {so_far} ({run.holder})"
    if last is None:
        return "nothing was trained yet"
    if steps and last["step"] >= steps:
        return f"finished: {so_far}"
    said = [e for e in run.events if e.get("event") in (records.STOPPED, records.GAVE_UP)]
    if said and said[-1]["step"] == last["step"]:
        why = said[-1].get("reason") or f"the last {said[-1].get('why')}"
        return f"{said[-1]['event']}: {so_far} ({why})"
    return f"ended early: {so_far}; start the same command again to go on"


def _facts(run: Run) -> dict[str, Any]:
    """Figures for the table that sets runs side by side; None where nothing is known."""
    losses = [y for _, y in curve(run.metrics, lambda row: row.get("loss"))]
    speeds = [y for _, y in curve(run.metrics, lambda row: row.get("tokens_per_second"))]
    uses = [y for _, y in curve(run.metrics, lambda row: row.get("mfu"))]
    tokens = [y for _, y in curve(run.metrics, lambda row: row.get("tokens"))]
    kinds = [event.get("event") for event in run.events]
    begun = next((e for e in run.events if e.get("event") in (records.BEGAN, records.RESUMED)), {})
    facts: dict[str, Any] = {
        "steps": run.metrics[-1]["step"] if run.metrics else 0,
        "tokens": int(tokens[-1]) if tokens else 0,
        "loss": statistics.fmean(losses[-RECENT:]) if losses else None,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "mfu": statistics.median(uses) if uses else None,
        "parameters": number(begun.get("parameters")),
        "documents": number(begun.get("documents")),
        "data_tokens": number(begun.get("tokens")),
        "layout": begun.get("layout"),
        "processes": number(begun.get("processes")),
        "device": begun.get("device"),
        "restarts": kinds.count(records.RESUMED) if run.events else None,
        "skipped": sum("skipped" in row for row in run.metrics),
        "quarantined": sum("quarantined" in row for row in run.metrics),
        "checkpoints": len(run.checkpoints),
        "checkpoint_bytes": max((c["bytes"] for c in run.checkpoints), default=None),
    }
    for mode in MODES:
        points = curve(run.validations, lambda row, mode=mode: _of(row, mode).get("perplexity"))
        facts[f"perplexity_{mode}"] = points[-1][1] if points else None
    return facts


def _of(row: Row, mode: str) -> Row:
    value = row.get(mode)
    return value if isinstance(value, dict) else {}


def _curves(run: Run) -> dict[str, list[tuple[float, float]]]:
    found = {key: thinned(curve(run.metrics, lambda row, key=key: row.get(key))) for key in CURVES}
    return {key: points for key, points in found.items() if points}


def thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: the means of stretches of equal length."""
    if len(points) <= POINTS:
        return [(float(x), y) for x, y in points]
    size = math.ceil(len(points) / POINTS)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part))
        for part in stretches
    ]


def _validation(run: Run) -> dict[str, Any]:
    """By mode of the memory: the perplexity over the steps, and the last curve by position."""
    found = {}
    for mode in MODES:
        points = curve(run.validations, lambda row, mode=mode: _of(row, mode).get("perplexity"))
        if points:
            last = next(row for row in reversed(run.validations) if _of(row, mode))
            found[mode] = {
                "perplexity": thinned(points),
                "step": last["step"],
                "by_position": positions(last[mode].get("by_position")),
            }
    return found


def positions(rows: Any) -> list[dict[str, float]]:
    """The bins of a curve by position: `from`, `to`, `perplexity`, and `low`, `high` where there is an interval."""
    found = []
    for row in rows if isinstance(rows, list) else []:
        values = [number(row.get(key)) for key in ("from", "to", "nll")]
        if None in values:
            continue
        start, end, nll = values
        found.append({"from": start, "to": end, "perplexity": perplexity(nll)})
        interval = row.get("interval")
        if isinstance(interval, list) and len(interval) == 2 and None not in map(number, interval):
            found[-1] |= {"low": perplexity(interval[0]), "high": perplexity(interval[1])}
    return found


def perplexity(nll: float) -> float:
    """Of nats a token; one that no float can hold is cut off."""
    return math.exp(min(nll, LARGEST_EXPONENT))


def _figures(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """The curves of `figures.jsonl` by their names, which are TensorBoard's."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        values = row.get("figures")
        for name, value in values.items() if isinstance(values, dict) else ():
            if (y := number(value)) is not None:
                found.setdefault(name, []).append((row["step"], y))
    return {name: thinned(points) for name, points in found.items()}


def _events(run: Run) -> list[dict[str, Any]]:
    """What happened, in order: `time` (None where it was not noted), `event`, `step`, `text`."""
    noted = [
        {
            "time": event.get("time"),
            "event": str(event.get("event")),
            "step": event["step"],
            "text": _told(event),
        }
        for event in run.events
    ]
    if noted:
        return noted
    return _faults_of(run.metrics)  # a run of a version that noted no events


def _faults_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        for event, key in ((records.SKIPPED, "why"), (records.QUARANTINED, "lanes")):
            if event in row:
                told = _told({"event": event, key: row[event]})
                found.append({"time": None, "event": event, "step": row["step"], "text": told})
    return found


WHY = {"loss": "its loss is not finite", "gradient": "its gradient is not finite"}


def _told(event: Row) -> str:
    """What else is known of an event, in words."""
    kind = event.get("event")
    if kind == records.RESUMED:
        again = max(0, int(number(event.get("reached")) or 0) - event["step"])
        lost = f", {again:,} step(s) done again" if again else ""
        return f"{event.get('processes')} process(es), {event.get('layout')}{lost}"
    if kind == records.BEGAN:
        return f"{event.get('processes')} process(es), {event.get('layout')}"
    if kind == records.SAVED:
        stall, written = (number(event.get(key)) or 0.0 for key in ("stall", "written"))
        return f"training paused for {stall:.2f} s, writing took {written:.2f} s"
    if kind == records.QUARANTINED:
        return f"lane {', '.join(map(str, event.get('lanes') or ()))}"
    if kind in (records.SKIPPED, records.GAVE_UP):
        why = str(event.get("why"))
        return WHY.get(why, "its loss is far above recent ones" if why == "spike" else why)
    if kind == records.STOPPED:
        return f"by {event.get('reason')}"
    tokens = number(event.get("tokens"))
    return f"{int(tokens):,} tokens" if tokens else ""
