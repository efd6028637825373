"""Faults inside a training step: one lane's NaN harms that lane alone, and a step that would do harm is not taken."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infty.errors import UserError
from infty_pretrain.config import FaultsConfig
from infty_pretrain.faults.spikes import FaultHistory
from infty_pretrain.launch import Launch
from infty_pretrain.trainer import Trainer
from infty_tools import processes
from support import fault_cases, small_run, small_training


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small_run.write_dataset(root / "data")
    return root


@pytest.fixture(scope="module")
def cases(root):
    return processes.run(2, fault_cases.all_layouts, root)


def check(steps: list[dict]) -> None:
    """What is wrong in any step; all that a step leaves behind is what it leaves where nothing went wrong."""
    for step in steps:
        fault, result, expected = step["fault"], step["harmed"], step["expected"]
        assert step["differ"] == [], fault
        if fault in fault_cases.SKIPS:
            assert (result.skipped, result.quarantined) == (fault, ())
            assert math.isfinite(result.loss) == (fault != "loss") and not math.isfinite(
                result.grad_norm
            )
            assert step["learned"] == []
            # The memories move on, unless nothing that was read was finite.
            assert bool(step["moved"]) == (fault != "loss")
            continue
        assert (result.skipped, expected.skipped, expected.quarantined) == (None, None, ())
        assert result.quarantined == ((fault_cases.LANES[fault],) if fault else ())
        assert result.grad_norm == expected.grad_norm > 0
        assert (step["lost"] > 0) == bool(fault) and step["moved"]
        assert result.loss * (result.tokens - step["lost"]) / result.tokens == pytest.approx(
            expected.loss, rel=1e-12
        )


@pytest.mark.parametrize("layout", fault_cases.LAYOUTS)
def test_a_fault_harms_nothing_else(cases, layout):
    for rank in cases:
        check(rank[layout])
        assert [step["fault"] for step in rank[layout]] == list(fault_cases.STEPS)


def test_in_one_process(root, alone):
    check(fault_cases.compared(root, batch__micro_batch=2))


def test_where_no_lane_is_left_the_step_is_skipped(root, alone):
    run = fault_cases.Run(root)
    run.engine.step(run.window())
    before = run.weights()
    for lane in range(4):
        fault_cases.spoil(run.engine, lane, "state")
    result = run.engine.step(run.window())
    assert (result.skipped, result.quarantined) == ("loss", (0, 1, 2, 3))
    assert fault_cases.differing(before, run.weights()) == []
    fresh = run.engine.model.initial_state(4).named()
    assert fault_cases.differing(fresh, run.states()) == []
    assert run.engine.step(run.window()).skipped is None
    run.engine.deepspeed.destroy()


def trainer(root, folder, **changes) -> Trainer:
    return Trainer(small_run.config(folder, root / "data", **changes), Launch(0, 1, 0, "env"))


def test_what_is_told(root, tmp_path, alone, capsys):
    run = trainer(
        root, tmp_path / "run", logging__tensorboard=True, logging__every=100, run__steps=4
    )
    plain = run.engine.step

    def step(*arguments):
        if run.step in (1, 3):
            fault_cases.spoil(run.engine, 2, "state")
        run.engine.faults.sigma = 1e-6 if run.step == 2 else None
        run.engine.faults.losses.extend([0.5] * 100 * (run.step == 2))
        return plain(*arguments)

    run.engine.step = step
    assert run.run() == 0
    run.engine.deepspeed.destroy()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r.get("skipped") for r in rows] == [None, None, "spike", None]
    assert [r.get("quarantined") for r in rows] == [None, [2], None, [2]]
    assert [r["grad_norm"] is None for r in rows] == [False, False, True, False]
    said = capsys.readouterr().out
    assert "step 2: lane 2 had non-finite numbers" in said
    assert (
        f"step 3: skipped, because the loss is far above recent ones ({rows[2]['loss']:.4f})"
        in said
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("faults/skipped")] == [
        (1, 0),
        (2, 0),
        (3, 1),
        (4, 1),
    ]
    assert [(e.step, e.value) for e in events.Scalars("faults/quarantined")] == [
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
    ]


def test_patience_with_spikes_ends_and_keeps_all(root, tmp_path, alone):
    changes = {"faults__patience": 3, "run__steps": 9}
    run = trainer(root, tmp_path / "run", **changes)
    run.engine.faults.limit = lambda: 0.0
    before = {n: p.detach().clone() for n, p in run.engine.model.named_parameters()}
    with pytest.raises(
        UserError, match=r"step 3: 3 steps in a row .* recent ones\. Nothing was lost.* step 3 is"
    ):
        run.run()
    assert all(torch.equal(p, before[n]) for n, p in run.engine.model.named_parameters())
    run.monitor.close()
    run.engine.deepspeed.destroy()
    run.lock.close()
    again = trainer(root, tmp_path / "run", **changes)
    assert (again.step, again.engine.faults.skipped, again.engine.faults.in_a_row) == (3, 3, 0)
    assert all(torch.equal(p, before[n]) for n, p in again.engine.model.named_parameters())
    again.lock.close()
    assert again.run() == 0
    again.engine.deepspeed.destroy()


def test_patience_with_a_lost_lane_ends_without_quarantine(root, tmp_path, alone):
    run = trainer(
        root, tmp_path / "run", faults__quarantine=False, faults__patience=2, checkpoint__every=1
    )
    run.train_step()
    run.save()
    fault_cases.spoil(run.engine, 1, "state")
    run.train_step()
    run.save()  # a checkpoint that is due now would keep weights that may be bad
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    with pytest.raises(
        UserError, match=r"step 3: 2 steps .* loss is not finite\. Nothing was saved after step 1"
    ):
        run.train_step()
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(r["loss"] is None, r.get("skipped")) for r in rows] == [
        (False, None),
        (True, "loss"),
        (True, "loss"),
    ]
    run.monitor.close()
    run.engine.deepspeed.destroy()
    run.lock.close()


def test_recent_losses_survive_a_resume(root, tmp_path, alone):
    def kept(folder):
        return json.loads((folder / "checkpoints" / "step-00000006" / "run.json").read_text())[
            "faults"
        ]

    data = root / "data"
    assert small_training.train(tmp_path / "whole", data, faults__spike_window=4) == 0
    assert small_training.train(tmp_path / "run", data, 5, faults__spike_window=4) == 85
    assert small_training.train(tmp_path / "run", data, faults__spike_window=4) == 0
    assert len(kept(tmp_path / "run")["losses"]) == 4
    assert kept(tmp_path / "run") == kept(tmp_path / "whole")


def history(**changes) -> FaultHistory:
    return FaultHistory(FaultsConfig(**changes))


def test_the_spike_rule():
    faults, losses = (
        history(spike_sigma=4.0, spike_window=20),
        3 + 0.3 * np.random.default_rng(0).standard_normal(60),
    )
    for i, loss in enumerate(losses.tolist()):
        recent = losses[max(0, i - 20) : i]
        limit = recent.mean() + 4 * recent.std() if i >= 10 else math.inf
        assert faults.limit() == pytest.approx(limit, rel=1e-12)
        assert loss < limit and faults.verdict(loss) is None
        assert (faults.verdict(limit + 1e-6) == "spike") == (i >= 10)
        faults.record(loss, None, 0)
    assert faults.verdict(math.nan) == faults.verdict(math.inf) == "loss"
    faults.record(math.nan, "loss", 2)
    assert all(math.isfinite(x) for x in faults.losses) and faults.in_a_row == faults.skipped == 1


def test_a_flat_curve_has_no_spikes_and_null_has_none():
    flat, off = history(spike_window=10), history(spike_sigma=None, spike_window=10)
    for _ in range(10):
        flat.record(2.0, None, 0)
        off.record(2.0, None, 0)
    assert flat.verdict(2.05) is None and flat.verdict(2.2) == "spike"
    assert off.verdict(1e9) is None


def test_a_second_spike_is_seen_and_a_new_level_is_learned():
    faults = history()
    for x in (3 + 0.1 * np.random.default_rng(1).standard_normal(100)).tolist():
        faults.record(x, None, 0)
    for _ in range(2):
        assert faults.verdict(50.0) == "spike"
        faults.record(50.0, "spike", 0)
    assert faults.limit() < 5
    for level in [4.5] * 19:
        faults.record(level, faults.verdict(level), 0)
    assert faults.in_a_row == 0


@pytest.mark.parametrize("key, value", [("spike_sigma", 0), ("spike_window", 1), ("patience", 0)])
def test_what_makes_no_sense_is_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=f"faults.{key}"):
        small_run.config(tmp_path / "run", tmp_path, **{f"faults__{key}": value})
