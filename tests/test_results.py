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


def test_room():
    found = json.loads((DOCS / "results" / "room.json").read_text())["facts_in_every"]
    every = {"every segment": found["1"], "every eighth": found["8"]}
    rows = table("room.json")
    assert len(rows) == sum(map(len, every.values()))
    for where, weight, share, tokens, right, worst, rest in rows:
        row = next(r for r in every[where] if r["weight"] == float(weight))
        assert (share, right) == (f"{100 * row['share']:.1f} %", f"{100 * row['found']:.1f} %")
        assert worst == f"{100 * min(row['by_age']):.0f} %"
        assert (tokens, rest) == (f"{row['tokens']:.3f}", f"{row['rest']:.3f}")


def test_the_demo_by_position():
    found = json.loads((DOCS / "results" / "demo-positions.json").read_text())["models"]
    curves = [next(iter(model["memory"].values()))["by_position"] for model in found]
    figures = {
        f"{a['from']:,} to {a['to']:,}": [f"{a['nll']:.3f}", f"{b['nll']:.3f}"]
        for a, b in zip(*curves)
    }
    for place, *nats in table("demo-positions.json"):
        assert figures[place] == nats
