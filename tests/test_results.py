"""Figures in the docs are those of the data beside them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from statistics import fmean

import pytest

DOCS = Path(__file__).parents[1] / "docs"
DEMO = json.loads((DOCS / "results" / "demo.json").read_text())


@pytest.mark.parametrize("system", DEMO["systems"])
def test_the_demo(system):
    row = next(
        line
        for line in (DOCS / "memory.md").read_text().splitlines()
        if line.startswith(f"| {DEMO['systems'][system]['what']} |")
    )
    figures = [float(x) for x in re.findall(r"(?<![\w.])\d+\.\d+", row.split("|", 2)[2])]
    perplexities = [run["perplexity"] for run in DEMO["systems"][system]["runs"]]
    baseline = {run["seed"]: run["perplexity"] for run in DEMO["systems"]["none"]["runs"]}
    ratios = [run["perplexity"] / baseline[run["seed"]] for run in DEMO["systems"][system]["runs"]]
    assert figures[: len(perplexities)] == [round(x, 1) for x in perplexities]
    assert figures[len(perplexities)] == round(fmean(ratios), 2)


def table(data: str) -> list[list[str]]:
    """The rows, cell by cell, of the table of docs/memory.md whose figures are those of docs/results/`data`."""
    page = (DOCS / "memory.md").read_text()
    lines = page.split(f"<!-- figures of docs/results/{data};")[1].splitlines()[3:]
    rows = lines[: lines.index("")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_novels():
    systems = json.loads((DOCS / "results" / "novels.json").read_text())["systems"]
    plain, memory = systems["none"], systems["continuation"]
    curves = {
        f"{a['from']:,} to {a['to']:,}": (math.exp(a["nll"]), math.exp(b["nll"]))
        for a, b in zip(plain["by_position"], memory["by_position"])
    }
    curves["all"] = plain["perplexity"], memory["perplexity"]
    for place, without, with_memory, ratio in table("novels.json"):
        a, b = curves[place]
        assert (without, with_memory, ratio) == (f"{a:.2f}", f"{b:.2f}", f"{b / a:.3f}")


def test_recall():
    systems = json.loads((DOCS / "results" / "recall.json").read_text())["systems"]
    found = {row["system"]: row for row in systems}
    rows = table("recall.json")
    assert {row[0] for row in rows} == found.keys()
    for name, state, *shares, seeds in rows:
        row = found[name]
        assert state == f"{row['state_floats']:,}" and seeds == str(len(row["seeds"]))
        assert shares == [f"{100 * row['right'][n]['mean']:.1f} %" for n in ("1", "2", "4")]


def test_the_demo_by_position():
    found = json.loads((DOCS / "results" / "demo-positions.json").read_text())["models"]
    curves = [next(iter(model["memory"].values()))["by_position"] for model in found]
    figures = {
        f"{a['from']:,} to {a['to']:,}": [f"{a['nll']:.3f}", f"{b['nll']:.3f}"]
        for a, b in zip(*curves)
    }
    for place, *nats in table("demo-positions.json"):
        assert figures[place] == nats


def test_steps_of_training():
    found = json.loads((DOCS / "results" / "train.json").read_text())
    systems = found["sizes"]["demo"]["systems"]
    page = (DOCS / "performance.md").read_text()
    lines = page.split("<!-- figures of docs/results/train.json -->")[1].splitlines()[3:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in lines]
    rows = rows[: rows.index([""])]
    assert [row[0] for row in rows] == list(systems)
    for name, parameters, *milliseconds, tokens, speed in rows:
        row = systems[name]
        assert parameters == f"{row['parameters']:,}"
        seconds = [row["seconds"][key] for key in ("least", "median", "most")]
        assert milliseconds == [f"{1000 * x:,.0f}" for x in seconds]
        assert (tokens, speed) == (f"{row['tokens_per_second']:,.0f}", f"{row['speed']:.2f}")
