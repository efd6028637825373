"""The memory of docs/extending.md: a kind that the product does not know trains, resumes, is planned and is watched."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infty import hardware
from infty.memory_kinds import KINDS
from infty.models.outline import outline
from infty_tools import processes
from infty_tools.plan import activations as plan_activations
from infty_tools.plan import cost as plan_cost
from infty_tools.plan import memory as plan_memory
from infty_tools.plan.memory import Layout
from support import small_run, small_training

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"

CHANGES = {
    "parallel__tensor": 2,
    "parallel__zero_stage": 3,
    "model__memory": {"kind": "average"},
    "model__memories": {"gist": {"kind": "continuous", "basis": 16, "bins": 16}},
    "logging__tensorboard": True,
    "run__steps": 6,
}


@pytest.fixture(autouse=True)
def forgotten():
    """When a test has ended, its kind is none of the product's any more."""
    yield
    KINDS.pop("average", None)
    sys.modules.pop("average_memory", None)


def register() -> None:
    """Import the page's one block of Python: what a user's own module would be."""
    if "average_memory" in sys.modules:
        return
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("average_memory", None)
    )
    sys.modules["average_memory"] = module
    exec(compile(source, str(PAGE), "exec"), module.__dict__)


def runs(root: Path) -> list[int]:
    """In each of two processes: a whole run, and one that is stopped after step 3 and goes on."""
    register()
    return [
        small_training.train(root / "whole", root / "data", **CHANGES),
        small_training.train(root / "stopped", root / "data", 3, **CHANGES),
        small_training.train(root / "stopped", root / "data", **CHANGES),
    ]


def test_it_trains_split_in_two_and_resumes_to_the_bit(tmp_path):
    small_run.write_dataset(tmp_path / "data")
    assert processes.run(2, runs, tmp_path) == [[0, 85, 0]] * 2
    assert small_run.curve(tmp_path / "stopped") == small_run.curve(tmp_path / "whole")
    got, expected = (small_training.checkpoint(tmp_path / name, 6) for name in ("stopped", "whole"))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert any("memories.memory.mean" in key for key in got)
    events = EventAccumulator(str(tmp_path / "whole" / "tensorboard"))
    events.Reload()
    assert {"memory_rate/layer_00", "gist_entropy/layer_01"} <= set(events.Tags()["scalars"])


def test_the_planner_counts_it(monkeypatch, tmp_path):
    register()
    config = small_run.config(tmp_path, tmp_path, model__vocab_size=40, **CHANGES).model
    without = small_run.config(
        tmp_path, tmp_path, model__vocab_size=40, **CHANGES | {"model__memory": None}
    ).model
    layout = Layout(2, 1, 3, False, False, 2, 1, 3, "fp32")
    more = plan_memory.total(config) - plan_memory.total(without)
    assert more == config.layers * (config.hidden_size**2 + config.kv_heads)
    state = plan_memory.lane_bytes(config, 4) - plan_memory.lane_bytes(without, 4)
    assert state == config.layers * 4 * config.kv_heads * config.head_size
    assert "layers.1.memories.memory.mean" in outline(config).fields.named()
    kept = plan_activations.activations(config, layout) - plan_activations.activations(
        without, layout
    )
    assert kept == config.layers * 4 * 2 * 3 * config.segment_length * config.hidden_size / 2
    costs = [plan_cost.cost(c, layout, hardware.find("h100-80"), 8) for c in (config, without)]
    assert costs[0].flops_per_token["memory"] - costs[1].flops_per_token["memory"] == (
        config.layers * 2 * config.hidden_size**2
    )
