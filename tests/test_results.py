"""Figures in the docs are those of the data beside them."""

from __future__ import annotations

import json
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
