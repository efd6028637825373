"""A run that was stopped and started again is the run that was not: to the bit in the same layout, to float32 rounding
in any other (docs/exactness.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infty_tools import processes
from support import small_run, small_training

STEPS, STOP = 6, 3
SAME = {  # interrupted and resumed in this layout
    "tp2-zero3": {"parallel__tensor": 2, "parallel__zero_stage": 3},
    "dp2-zero1-bf16-accumulation": {
        "parallel__zero_stage": 1,
        "precision": "bf16",
        "batch__micro_batch": 1,
    },
    "tp2-zero0-hidden": {
        "parallel__tensor": 2,
        "parallel__zero_stage": 0,
        "model__memory__signal": "hidden",
    },
}
SAME["tp2-zero3-growing-windows-salience"] = SAME["tp2-zero3"] | {
    "batch__window_stages": {1: 2, 2: 2},  # interrupted inside the second stage
    "batch__part_segments": 1,
    "model__memory__room": "salience",
}
OTHER = {  # goes on, without dropout, from a checkpoint of TP 2 and ZeRO-3
    "dp2-zero3": {"parallel__zero_stage": 3},
    "dp2-zero2": {"parallel__zero_stage": 2},
    "tp2-zero1-sequence-recompute": {
        "parallel__tensor": 2,
        "parallel__zero_stage": 1,
        "parallel__sequence": True,
        "parallel__recompute": True,
    },
    "dp2-zero0-accumulation": {"parallel__zero_stage": 0, "batch__micro_batch": 1},
    "replay": {"parallel__tensor": 2, "parallel__zero_stage": 3, "checkpoint__memory": "replay"},
}
BASE = {"parallel__tensor": 2, "parallel__zero_stage": 3, "model__dropout": 0.0}


def all_runs(root: Path) -> dict[str, list[int]]:
    """In every process: all runs of this module one after another, in folders below `root`; returns exit codes."""
    data, held_out, codes = root / "data", root / "held-out", {}
    for name, layout in SAME.items():
        # The uninterrupted run also evaluates: that must leave no trace in the training.
        whole = layout | {
            "data__validation": str(held_out),
            "evaluation__every": 2,
            "evaluation__windows": 2,
        }
        codes[name] = [
            small_training.train(root / f"{name}-whole", data, run__steps=STEPS, **whole),
            small_training.train(root / name, data, STOP, run__steps=STEPS, **layout),
            small_training.train(root / name, data, run__steps=STEPS, **layout),
        ]
    codes["base"] = [small_training.train(root / "base", data, STOP, run__steps=STEPS, **BASE)]
    for name, layout in OTHER.items():
        small_training.copy(root / "base", root / name)
        codes[name] = [small_training.train(root / name, data, run__steps=STEPS, **BASE | layout)]
    codes["base"].append(small_training.train(root / "base", data, run__steps=STEPS, **BASE))
    return codes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small_run.write_dataset(root / "data")
    small_run.write_dataset(root / "held-out", [50, 9, 70], seed=3)
    return root, processes.run(2, all_runs, root)


@pytest.mark.parametrize("name", SAME)
def test_same_layout_to_the_bit(runs, name):
    root, codes = runs
    assert [c[name] for c in codes] == [[0, 85, 0]] * 2
    resumed = small_run.curve(root / name)
    assert [row[0] for row in resumed] == list(range(1, STEPS + 1))
    assert resumed == small_run.curve(root / f"{name}-whole")
    got, expected = (small_training.checkpoint(root / n, STEPS) for n in (name, f"{name}-whole"))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key
    cursors = [
        json.loads((root / n / "checkpoints" / f"step-{STEPS:08d}" / "run.json").read_text())[
            "lanes"
        ]
        for n in (name, f"{name}-whole")
    ]
    assert cursors[0] == cursors[1]


@pytest.mark.parametrize("name", OTHER)
def test_other_layouts_to_rounding(runs, name):
    root, codes = runs
    assert [c[name] for c in codes] == [[0]] * 2
    got, expected = (
        torch.tensor(small_run.curve(root / name)),
        torch.tensor(small_run.curve(root / "base")),
    )
    # Replay reads a document again with the weights of today: close to the memories of yesterday, not equal.
    torch.testing.assert_close(got, expected, rtol=3e-2 if name == "replay" else 2e-5, atol=1e-6)
    assert torch.equal(got[:STOP], expected[:STOP])


def test_the_stop_leaves_whole_checkpoints_only(runs):
    root, _ = runs
    for name in SAME:
        assert sorted(p.name for p in (root / name / "checkpoints").iterdir()) == [
            f"step-{STOP:08d}",
            f"step-{STEPS:08d}",
        ]
        assert not (root / name / "stop").exists()
