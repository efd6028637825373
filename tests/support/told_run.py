"""A run's folder as a run would have left it, written by hand: nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

CURVE = [
    {"from": 0, "to": 64, "tokens": 640, "documents": 9, "nll": 3.5, "interval": [3.4, 3.6]},
    {"from": 64, "to": 128, "tokens": 640, "documents": 9, "nll": 3.0, "interval": [2.9, 3.1]},
    {"from": 128, "to": 256, "tokens": 99, "documents": 1, "nll": 2.75},
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, steps: int = 60, total: int = 60, lr: float = 0.003) -> Path:
    """A run that was killed once after step 30 and went on from step 20; it skipped step 25."""
    folder.mkdir(parents=True)
    config = {
        "run": {"folder": str(folder), "steps": total},
        "data": {"train": "data/books/train", "validation": None},
        "model": {"layers": 2, "memory": {"kind": "continuous", "widths": [0.01, 0.05]}},
        "optimizer": {"lr": lr},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if not steps:
        return folder
    write_lines(folder / "metrics.jsonl", [_step(n, total, lr) for n in range(1, steps + 1)])
    write_lines(folder / "validation.jsonl", [_validated(20), _validated(40)])
    write_lines(folder / "events.jsonl", _events(steps))
    write_lines(folder / "figures.jsonl", [_figures(n) for n in range(10, steps + 1, 10)])
    write_lines(folder / "pictures.jsonl", [_pictures(n) for n in range(20, steps + 1, 20)])
    for step in (40, 60):
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_bytes(bytes(2048))
    return folder


def _step(n: int, total: int, lr: float) -> dict[str, Any]:
    row: dict[str, Any] = {"step": n, "steps": total, "loss": 4.0 - n / 100, "lr": lr}
    row |= {"grad_norm": 1.0 + 1 / n, "tokens": 100 * n}
    if n % 10 == 0:
        row |= {"tokens_per_second": 1000.0 + n, "seconds_per_step": 0.1, "mfu": 0.25}
    if n == 25:
        row |= {"loss": None, "grad_norm": None, "skipped": "loss"}
    return row


def _validated(step: int) -> dict[str, Any]:
    on = {"nll": 3.1, "perplexity": 22.2, "accuracy": 0.3, "tokens": 1379, "by_position": CURVE}
    return {"step": step, "on": on, "off": on | {"nll": 3.5, "perplexity": 33.1}}


def _figures(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "figures": {f"memory_sigma/layer_0{i}": 0.1 + i / step for i in range(2)},
    }


def _pictures(step: int) -> dict[str, Any]:
    place = {"across": "place", "ends": [0.0, 1.0], "sides": [0.0, 24.0], "told": "What it is."}
    density = [[1 / (1 + abs(i - 2 * j)) for j in range(8)] for i in range(16)]
    found = {}
    for layer in range(2):
        heat = {**place, "down": "token of the window", "values": density}
        origin = {**place, "down": "token", "values": [step * j for j in range(7)] + [None]}
        found[f"memory_density/layer_0{layer}"] = heat
        found[f"memory_origin/layer_0{layer}"] = origin
    return {"step": step, "pictures": found}


def _events(steps: int) -> list[dict[str, Any]]:
    where = {"processes": 2, "layout": "1 data x 2 tensor parallel, ZeRO-3, fp32", "device": "cpu"}
    where |= {"parameters": 123456, "documents": 7, "tokens": 4321}
    saved = {"event": "saved", "stall": 0.1, "written": 0.25}
    found = [
        {"event": "began", "step": 0, **where},
        {"step": 20, **saved},
        {"event": "resumed", "step": 20, "reached": 30, **where},
        {"event": "skipped", "step": 25, "why": "loss", "loss": None},
        {"event": "quarantined", "step": 27, "lanes": [3]},
        {"step": 40, **saved},
        {"event": "done", "step": steps, "tokens": 100 * steps},
    ]
    return [{"time": f"2026-01-01T00:0{i}:00+00:00", **e} for i, e in enumerate(found)]


def write_evaluation(path: Path) -> None:
    """What `infty evaluate --output` writes, as much as is read of it."""
    rows = [
        {"length": [64, 128], "depth": [0.0, 0.5], "answers": 9, "accuracy": 0.75},
        {"length": [128, 256], "depth": [0.5, 1.0], "answers": 9, "accuracy": 0.25},
    ]
    figures = {"nll": 3.0, "by_position": CURVE}
    answered = figures | {"answers": {"answers": 18, "by_length_and_depth": rows}}
    models = [
        {"name": "without", "memory": {"none": figures}},
        {"name": "with", "memory": {"on": answered, "off": figures}},
    ]
    path.write_text(json.dumps({"models": models, "comparisons": []}))
