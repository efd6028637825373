"""The files that a run's folder holds, and how they are written: a row a line.

`metrics.jsonl`, `validation.jsonl`, `figures.jsonl` and `pictures.jsonl` are a story without breaks: what lies behind
the checkpoint that a run goes on from is cut off, since it is done again. `events.jsonl` is never cut: it tells what
happened, by the clock.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from infty import files

CONFIG = "config.yaml"
"""The resolved config: of a run's folder, and of each checkpoint."""
MANIFEST, RUN = "manifest.json", "run.json"
"""Of a checkpoint: its files with their hashes, and where the run stood."""
METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"
FIGURES, PICTURES = "figures.jsonl", "pictures.jsonl"
EVENTS = "events.jsonl"

BEGAN, RESUMED, SAVED, SKIPPED, QUARANTINED, STOPPED, GAVE_UP, DONE = KINDS = (
    "began",
    "resumed",
    "saved",
    "skipped",
    "quarantined",
    "stopped",
    "gave up",
    "done",
)


class Journal:
    """Appends to the events of a run, a whole line at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS

    def add(self, event: str, step: int, **details: Any) -> None:
        """One of `KINDS` after `step` steps, with what else is to be known of it (plain values)."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        row = {"time": now, "event": event, "step": step, **details}
        files.append_line(self.path, json.dumps(row))


def forget_after(path: Path, step: int) -> int:
    """Drop rows of steps after the checkpoint that the run goes on from: they are done again. Returns the last step
    that there was."""
    if not path.exists():
        return 0
    rows = []
    last = 0
    for line in path.read_text().splitlines():
        try:
            here = json.loads(line)["step"]
            last = max(last, here)
            if here <= step:
                rows.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run, or none of the run's
    files.write_whole(path, "".join(row + "\n" for row in rows))
    return last
