"""What a run goes on from, what it refuses to go on from, and what it says. One process, real training."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import infty_pretrain
from infty.errors import UserError
from infty_pretrain import checkpoint, evaluation, lock
from infty_pretrain.checkpoint import writing
from infty_pretrain.engine import parameter_groups
from infty_pretrain.faults import watchdog
from infty_pretrain.launch import Launch
from infty_pretrain.trainer import Trainer
from support import small_run, small_training

STEPS = 4
pytestmark = pytest.mark.usefixtures("single_process", "surroundings")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_dataset(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, single_process, surroundings):
    """A run of four steps that kept a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert (
        small_training.train(
            folder, data, run__steps=STEPS, checkpoint__every=1, checkpoint__keep_last=9
        )
        == 0
    )
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(run: Path, data: Path, **changes) -> int:
    return small_training.train(
        run, data, **{"run__steps": STEPS, "checkpoint__keep_last": 9, **changes}
    )


def names(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_goes_on_from_the_newest_whole_checkpoint(run, finished, data, capsys):
    flip(run / "checkpoints" / "step-00000004" / "weights-00000.safetensors")
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    assert again(run, data, checkpoint__keep_last=1) == 0
    said = capsys.readouterr().out
    assert "skipping checkpoint step-00000004" in said and "step-00000002 at step 2" in said
    assert small_run.curve(run) == small_run.curve(finished)
    # The damaged one neither counts as the newest nor pushes out a whole one.
    assert names(run) == ["step-00000004", "step-00000004.damaged"]
    assert checkpoint.problem_with(run / "checkpoints" / "step-00000004") is None


def test_nothing_whole_is_not_a_beginning(run, data):
    for path in checkpoint.candidates(run / "checkpoints"):
        (path / "run.json").unlink()
    rows = (run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="none is whole"):
        again(run, data)
    assert (run / "metrics.jsonl").read_text() == rows


def test_leftovers_of_a_killed_save_are_removed(run, data):
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000005.partial")
    shutil.copytree(
        checkpoints / "step-00000004", checkpoints / "step-00000004-mine"
    )  # no name of ours: left alone
    assert again(run, data, run__steps=5, checkpoint__keep_last=1) == 0
    assert names(run) == ["step-00000004-mine", "step-00000005"]


@pytest.mark.parametrize("name", ["weights", "run.json", "manifest.json"])
def test_a_full_disk_leaves_the_last_checkpoint(run, data, name, monkeypatch):
    def write(path, action, plain=writing.write_file):
        if path.name.startswith(name):
            path.write_bytes(b"half")

            def action(_):
                raise SafetensorError(
                    "Error while serializing: I/O error: No space left on device (os error 28)"
                )

        plain(path, action)

    monkeypatch.setattr(writing, "write_file", write)
    with pytest.raises(UserError, match=r"is full.*earlier ones are unharmed"):
        again(run, data, run__steps=5)
    assert names(run) == [f"step-{n:08d}" for n in range(1, STEPS + 1)]
    monkeypatch.undo()
    assert again(run, data, run__steps=5) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model__hidden_size": 48}, "different model: .* has shape"),
        ({"model__layers": 3}, "different model: .* has shape None"),
        (
            {"model__memory__contraction": 0.5},
            r"different model: model\.memory\.contraction: uniform -> 0\.5",
        ),
        ({"model__rope_theta": 500.0}, r"different model: model\.rope_theta"),
        ({"model__segment_length": 4, "model__stm_length": 4}, "segment_length"),
    ],
)
def test_another_model_is_refused(run, data, changes, message):
    with pytest.raises(UserError, match=message):
        again(run, data, run__steps=5, **changes)


def test_what_may_change_is_told(run, data, capsys):
    assert again(run, data, run__steps=5, optimizer__lr=1e-3, model__dropout=0.2) == 0
    said = capsys.readouterr().out
    assert "optimizer.lr: 0.003 -> 0.001" in said and "model.dropout: 0.1 -> 0.2" in said


def test_other_data_is_refused(run, data, tmp_path):
    with pytest.raises(UserError, match="another dataset"):
        again(run, small_run.write_dataset(tmp_path / "other", seed=5))
    other = small_run.write_dataset(tmp_path / "words")
    info = json.loads((other / "dataset.json").read_text()) | {"tokenizer_fingerprint": "another"}
    (other / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="another tokenizer"):
        again(run, other)


def test_a_validation_set_of_another_tokenizer_is_refused(tmp_path, data):
    other = small_run.write_dataset(tmp_path / "words", vocabulary=30)
    with pytest.raises(UserError, match=r"data\.validation.*different tokenizer"):
        again(tmp_path / "run", data, data__validation=str(other))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, data):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("It was")
    with pytest.raises(UserError, match="holds other files"):
        again(tmp_path / "thesis", data)
    with pytest.raises(UserError, match="is a file"):
        again(tmp_path / "thesis" / "chapter1.tex", data)


@pytest.mark.parametrize("lanes", [2, 6])
def test_other_lanes_are_kept_added_and_retired(run, data, lanes):
    assert again(run, data, run__steps=5, batch__lanes=lanes) == 0
    before, after = (
        json.loads((run / "checkpoints" / f"step-{n:08d}" / "run.json").read_text())["lanes"]
        for n in (STEPS, 5)
    )
    for lane in map(str, range(min(4, lanes))):
        then, now = before["lanes"][lane], after["lanes"][lane]
        assert now["document"] != then["document"] or now["position"] > then["position"]
    assert len(after["lanes"]) == lanes


def first_losses(run, data, lanes: int) -> torch.Tensor:
    """The losses of all tokens in the first step after a start, [lanes, S, L]; NaN from where a document begins."""
    seen = []

    def record(_model, inputs, outputs):
        _, reset, _ = inputs
        new = reset.cumsum(1) > 0
        seen.append(outputs[1].token_nll.masked_fill(new[..., None], math.nan))

    changes = {"run__steps": 5, "checkpoint__keep_last": 9}
    config = small_run.config(run, data, batch__lanes=lanes, model__dropout=0.0, **changes)
    trainer = Trainer(config, Launch(0, 1, 0, "env"))
    trainer.engine.model.register_forward_hook(record)
    assert trainer.run() == 0
    trainer.engine.deepspeed.destroy()
    return seen[0]


def test_lanes_that_are_kept_read_on_with_their_memories(finished, data, tmp_path):
    """Whatever other lanes are added or retired: their tokens have the losses that they would have had."""
    losses = {
        lanes: first_losses(Path(shutil.copytree(finished, tmp_path / str(lanes))), data, lanes)
        for lanes in (4, 6, 2)
    }
    assert losses[4][:2].isfinite().any()  # in the middle of a document
    for got, expected in ((losses[6][:4], losses[4]), (losses[2], losses[4][:2])):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("memory", ["save", "reset"])
def test_memory_is_saved_or_reset(run, data, memory):
    trainer = Trainer(
        small_run.config(run, data, checkpoint__memory=memory), Launch(0, 1, 0, "env")
    )
    trainer.monitor.close()
    trainer.engine.deepspeed.destroy()
    signals = [v for k, v in trainer.engine.lane_state().named().items() if "coefficients" in k]
    assert signals and all(bool(torch.any(s)) == (memory == "save") for s in signals)


def test_a_stop_file_and_a_time_budget_stop_with_a_checkpoint(run, data):
    # No step fits into the budget, yet one is made: else a run would be requeued for ever.
    assert again(run, data, run__steps=9, run__minutes=1e-9) == 85
    assert small_run.curve(run)[-1][0] == STEPS + 1 and "step-00000005" in names(run)
    (run / "stop").touch()  # of a run that has ended since: it does not stop the next one
    assert again(run, data, run__steps=6) == 0
    assert not (run / "stop").exists()


def test_a_signal_during_an_evaluation_stops_after_it(run, data, monkeypatch):
    plain = evaluation.evaluate

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return plain(*arguments, **options)

    monkeypatch.setattr(evaluation, "evaluate", signalled)
    assert again(run, data, run__steps=20, data__validation=str(data), evaluation__every=6) == 85
    assert names(run)[-1] == "step-00000006"


def test_a_folder_in_which_only_a_stall_was_told_is_new(run, data, tmp_path):
    """The watchdog may end a start before there is anything else in the folder, and asks for another."""
    folder = tmp_path / "stalled"
    folder.mkdir()
    (folder / watchdog.REPORT).write_text("2026-01-01 00:00:00: no progress for 1,800 s")
    assert small_training.train(folder, data, run__steps=1) == 0


def test_a_finished_run_says_so_and_changes_nothing(run, data, capsys):
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")}
    assert again(run, data) == 0
    assert "done: 4 steps" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")} == before


def test_memory_parameters_have_their_own_rate_and_vectors_do_not_decay(tmp_path, data):
    trainer = Trainer(
        small_run.config(tmp_path / "run", data, optimizer__memory_lr=0.0), Launch(0, 1, 0, "env")
    )
    engine = trainer.engine
    before = {n: p.detach().clone() for n, p in engine.model.named_parameters()}
    trainer.train_step()
    moved = {n for n, p in engine.model.named_parameters() if not torch.equal(p, before[n])}
    memory = {n for n in before if ".memory." in n}
    assert memory and moved == set(before) - memory
    for group in parameter_groups(engine.model, trainer.config):
        assert {p.dim() >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    trainer.monitor.close()
    engine.deepspeed.destroy()


def test_nothing_is_unpickled():
    for path in Path(infty_pretrain.__file__).parent.rglob("*.py"):
        source = path.read_text()
        assert "torch.load" not in source and "import pickle" not in source, path


def test_no_process_group_is_needed_to_refuse(tmp_path):
    """A config that is wrong is refused before anything is connected."""
    with pytest.raises(UserError, match="does not exist"):
        Trainer(small_run.config(tmp_path / "run", tmp_path / "none"), Launch(0, 1, 0, "env"))
    assert not os.path.exists(tmp_path / "run")


HOLDER = """
import sys, time
from pathlib import Path
from infty_pretrain import lock
held = lock.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_in_one_folder_do_not_meet(run, data, monkeypatch, capsys):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        monkeypatch.setattr(lock.take, "__defaults__", (print, 0.3))
        config = (run / "config.yaml").read_text()
        with pytest.raises(UserError, match=f"in use by process {other.pid} on"):
            again(run, data, run__steps=5)
        assert "waiting for" in capsys.readouterr().out
        assert (run / "config.yaml").read_text() == config
    finally:
        other.kill()
        other.wait()
    assert again(run, data, run__steps=5) == 0  # the lock died with its owner


def test_checkpoints_by_the_clock(run, data, capsys):
    """They are kept until the next, and push none of the others out."""
    before = names(run)
    assert (
        again(
            run, data, run__steps=8, checkpoint__minutes=1e-9, checkpoint__keep_last=len(before) + 1
        )
        == 0
    )
    said = capsys.readouterr().out
    assert all(f"saved step-0000000{step}" in said for step in (6, 7, 8))
    assert names(run) == [*before, "step-00000008"]
