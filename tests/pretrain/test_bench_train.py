"""`infty bench train`: steps of real training, compared in one process; every part of a step is told apart."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from infty.parts import ATTENTION, FEED_FORWARD, HISTOGRAM, LOSS, OPTIMIZER, READ, WRITE, part
from infty_tools.bench import step_profile, step_systems
from infty_tools.bench import train as bench_train
from infty_tools.bench.step_systems import OFF, PLAIN, SIZES
from infty_tools.cli import app


@pytest.mark.usefixtures("single_process")
def test_memories_are_compared(tmp_path):
    path = tmp_path / "train.json"
    words = "--sizes tiny --systems gaussian,transformers --rounds 1 --device cpu"
    threads = torch.get_num_threads()
    result = CliRunner().invoke(app, ["bench", "train", *words.split(), "--output", str(path)])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    rows = found["sizes"]["tiny"]["systems"]
    assert list(rows) == [OFF, "gaussian", PLAIN] and rows[OFF]["speed"] == 1
    assert rows[PLAIN]["parameters"] == rows[OFF]["parameters"]
    for row in rows.values():
        assert 0 < row["seconds"]["least"] <= row["seconds"]["median"] <= row["seconds"]["most"]
    parts = {name: row["parts"] for name, row in rows.items()}
    for name in (ATTENTION, FEED_FORWARD, LOSS, OPTIMIZER):
        assert parts["gaussian"][name] > 0 and parts[OFF][name] > 0
    for name in (READ, WRITE, HISTOGRAM):
        assert parts["gaussian"][name] > 0 and parts[OFF].get(name, 0) < parts["gaussian"][name]
    assert "where the time of a step goes" in result.output


def test_gradients_belong_to_the_part_of_their_operation():
    x = torch.randn(200, 200, requires_grad=True)
    with torch.profiler.profile(acc_events=True) as made:
        with part("outer"):
            y = x @ x
            with part("inner"):
                z = y @ y
        z.sum().backward()
    events = list(made.events())
    found = step_profile.by_part(events, gpu=False)
    products = [e.self_cpu_time_total for e in events if e.name == "aten::mm"]
    assert len(products) == 6  # two, and two for the gradients of each
    assert found["outer"] >= sum(products[:1]) / 1e6 and found["inner"] >= products[1] / 1e6
    assert found["outer"] + found["inner"] >= sum(products) / 1e6 * 0.999


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_every_memory(size, tmp_path):
    for system in step_systems.models(SIZES[size]):
        made = step_systems.config(SIZES[size], system, tmp_path / "data").model
        assert made.remembers == (system not in (OFF, "transformer-xl"))


def test_what_does_not_fit_together_is_measured_in_groups(monkeypatch):
    import psutil

    systems = list(step_systems.SYSTEMS)
    size = SIZES["125m"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 30 * 2**30}))
    groups = list(bench_train.groups_of(size, systems, "cpu"))
    assert len(groups) > 1 and all(group[0] == OFF for group in groups)
    assert [s for group in groups for s in group[1:]] == [s for s in systems if s != OFF]
