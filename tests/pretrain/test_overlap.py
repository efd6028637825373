"""Training goes on while a checkpoint is written, and the checkpoint is that of the step at which it was begun."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from typer.testing import CliRunner

from infty_pretrain import checkpoint
from infty_pretrain.checkpoint import writing
from infty_pretrain.launch import Launch
from infty_pretrain.trainer import Trainer
from infty_tools.cli import app
from support import small_run, small_training

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_dataset(tmp_path_factory.mktemp("data") / "train")


def run(folder, data, **changes) -> Trainer:
    trainer = Trainer(small_run.config(folder, data, **changes), Launch(0, 1, 0, "env"))
    assert trainer.run() == 0
    trainer.engine.deepspeed.destroy()
    return trainer


def test_steps_are_taken_while_the_disk_is_slow(tmp_path, data, monkeypatch):
    """The disk does not take the checkpoint of step 2 before step 5 is done: without overlap that is for ever."""
    reference = run(tmp_path / "plain", data, checkpoint__every=2, checkpoint__overlap=False)
    assert reference.step == 6
    go_on, plain, seen = threading.Event(), writing.write_file, []
    trainer = Trainer(
        small_run.config(tmp_path / "slow", data, checkpoint__every=2), Launch(0, 1, 0, "env")
    )
    step = trainer.engine.step

    def slow(path, write):
        if "step-00000002" in str(path):
            assert go_on.wait(60)
        plain(path, write)

    def counted(*arguments):
        if trainer.step == 3:  # step 4 is computed with the checkpoint of step 2 unwritten
            seen.append(
                (
                    trainer.saver.writing(),
                    [p.name for p in (tmp_path / "slow" / "checkpoints").glob("*0002*")],
                )
            )
        result = step(*arguments)
        if trainer.step == 3:
            go_on.set()  # before that of step 4 falls due, which has to wait for it
        return result

    monkeypatch.setattr(writing, "write_file", slow)
    trainer.engine.step = counted
    assert trainer.run() == 0
    trainer.engine.deepspeed.destroy()
    assert seen == [(True, ["step-00000002.partial"])]
    assert small_run.curve(tmp_path / "slow") == small_run.curve(tmp_path / "plain")
    assert [p.name for p in checkpoint.candidates(tmp_path / "slow" / "checkpoints")] == [
        p.name for p in checkpoint.candidates(tmp_path / "plain" / "checkpoints")
    ]
    for at in (4, 6):
        got, want = (small_training.checkpoint(tmp_path / n, at) for n in ("slow", "plain"))
        assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)


def test_what_is_written_is_the_moment_at_which_it_was_begun(tmp_path, data, monkeypatch):
    run(
        tmp_path / "plain",
        data,
        checkpoint__every=2,
        checkpoint__overlap=False,
        checkpoint__keep_last=9,
    )
    late, plain = threading.Event(), writing.write_file
    trainer = Trainer(
        small_run.config(tmp_path / "late", data, checkpoint__every=2, checkpoint__keep_last=9),
        Launch(0, 1, 0, "env"),
    )
    step = trainer.engine.step

    def held(path, write):
        assert "step-00000002" not in str(path) or late.wait(60)
        plain(path, write)

    def stepping(*arguments):
        result = step(*arguments)
        if (
            trainer.step >= 3
        ):  # weights, moments and memories of step 4 are there when step 2 is written
            late.set()
        return result

    monkeypatch.setattr(writing, "write_file", held)
    trainer.engine.step = stepping
    assert trainer.run() == 0
    trainer.engine.deepspeed.destroy()
    got, want = (small_training.checkpoint(tmp_path / n, 2) for n in ("late", "plain"))
    assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    manifests = [
        json.loads((tmp_path / n / "checkpoints" / "step-00000002" / "manifest.json").read_text())
        for n in ("late", "plain")
    ]
    files = [
        {k: v["sha256"] for k, v in m["files"].items() if k.endswith(".safetensors")}
        for m in manifests
    ]
    assert files[0] == files[1]


def test_the_bench_measures_stalls(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    path = tmp_path / "figures.json"
    result = CliRunner().invoke(
        app,
        [
            "bench",
            "checkpoint",
            "--hidden",
            "64",
            "--layers",
            "1",
            "--rounds",
            "1",
            "--output",
            str(path),
        ],
    )
    assert result.exit_code == 0, result.exception
    rows = json.loads(path.read_text())
    assert [row["overlap"] for row in rows] == [True, False]
    assert all(len(row["stalls"]) == len(row["writing"]) == 2 and row["mib"] > 0.1 for row in rows)
    assert "before training goes on" in result.output
