"""The memory benchmark runs, compares like with like, and the product stays ahead in memory."""

from __future__ import annotations

import json

import pytest
import torch

from infty.errors import UserError
from infty_tools.bench.memory import Sizes, measure, memory


def test_small_figures(tmp_path, capsys):
    threads = torch.get_num_threads()
    memory(1, 64, 32, 2, 64, repeats=1, threads=0, device="cpu", out=tmp_path / "bench.json")
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert len(figures["rows"]) == 6 and all(row["seconds"] > 0 for row in figures["rows"])
    assert "paper, plain" in capsys.readouterr().out and torch.get_num_threads() == threads


def test_the_weights_are_not_stored():
    """Peak memory does not depend on the machine's load, so it can be held to its target: a quarter."""
    rows = {r["name"]: r for r in measure(Sizes(1, 512, 768, 12, 512), 0, torch.device("cpu"))}
    assert rows["infty, signal hidden"]["peak_mib"] < 0.25 * rows["paper, plain"]["peak_mib"]


def test_sizes_must_fit():
    with pytest.raises(UserError, match="--hidden: 30"):
        memory(1, 64, 30, 4, 64)
