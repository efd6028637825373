"""Perplexity does not depend on how the documents are read, and figures reach those who watch. One process."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from infty.data.documents import Documents
from infty.data.lanes import Window
from infty.errors import UserError
from infty.models.lm import InftyLM
from infty_pretrain import evaluation, flops, memory_modes
from infty_pretrain.launch import Launch
from infty_pretrain.tally import Tally
from infty_pretrain.trainer import Trainer, crowding
from infty_tools.cli import app
from support import small_run, small_training

pytestmark = pytest.mark.usefixtures("single_process", "surroundings")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_run.write_dataset(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    config = small_run.config(data, data).with_vocab(40).model
    return InftyLM(replace(config, init_std=0.3)).eval()


def figures(
    model: InftyLM, data, lanes: int = 2, window_segments: int = 3, mode: str = "on", **options
) -> dict[str, Any]:
    documents = Documents.open(data)
    trained = evaluation.Trained(model, window_segments, "cpu")
    reading = memory_modes.reading(trained, mode, documents)
    tally = evaluation.evaluate(reading, documents, lanes=lanes, **options)
    return evaluation.figures(tally, documents)


@pytest.mark.parametrize("mode", memory_modes.MODES)
def test_lanes_and_windows_do_not_matter(model, data, mode):
    expected = figures(model, data, mode=mode)
    assert expected["tokens"] == sum(n - 1 for n in small_run.LENGTHS)
    for lanes, window in ((1, 5), (4, 1), (20, 7)):  # 20: more lanes than documents
        got = figures(model, data, lanes, window, mode)
        same_figures(got, expected)


def same_figures(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal but for float32 rounding."""
    assert got.keys() == expected.keys()
    for key in got.keys() - {"by_position"}:
        assert got[key] == pytest.approx(expected[key], rel=1e-5), key
    for row, wanted in zip(got["by_position"], expected["by_position"], strict=True):
        assert row.keys() == wanted.keys()
        for key, value in row.items():
            assert value == pytest.approx(wanted[key], rel=1e-5), key


def test_figures_belong_together(model, data):
    f = figures(model, data)
    assert f["perplexity"] == pytest.approx(math.exp(f["nll"]))
    assert f["word_perplexity"] == pytest.approx(math.exp(f["nll"] * f["tokens"] / f["words"]))
    assert f["words"] == sum(n // 2 for n in small_run.LENGTHS)
    some = figures(model, data, windows=1)
    assert some["tokens"] < f["tokens"] and "word_perplexity" not in some


def test_the_memory_matters_and_can_be_switched_off(model, data):
    on, off, emptied, other = (
        figures(model, data, mode=mode)["nll"] for mode in memory_modes.MODES
    )
    found = sorted((on, off, emptied, other))
    assert all(later - earlier > 1e-4 for earlier, later in pairwise(found))


def test_replay_rebuilds_the_memories(tmp_path, data):
    """With weights that stand still, reading again gives what was saved: memories, short-term memory, counters."""

    def start(memory: str) -> dict[str, torch.Tensor]:
        config = small_run.config(
            tmp_path / "run",
            data,
            optimizer__lr=1e-12,
            optimizer__memory_lr=1e-12,
            model__dropout=0.0,
            checkpoint__memory=memory,
        )
        trainer = Trainer(config, Launch(0, 1, 0, "env"))
        assert trainer.step == 6
        trainer.monitor.close()
        trainer.engine.deepspeed.destroy()
        return trainer.engine.lane_state().named()

    assert (
        small_training.train(
            tmp_path / "run",
            data,
            optimizer__lr=1e-12,
            optimizer__memory_lr=1e-12,
            model__dropout=0.0,
        )
        == 0
    )
    saved, again = start("save"), start("replay")
    # A lane whose document has just ended needs no replay: what it holds is reset by the next.
    state = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-00000006" / "run.json").read_text()
    )["lanes"]["lanes"]
    inside = [
        i for i in range(4) if state[str(i)]["document"] >= 0 and state[str(i)]["position"] > 0
    ]
    assert len(inside) >= 2
    for name, value in saved.items():
        torch.testing.assert_close(
            again[name][inside],
            value[inside],
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_what_tensorboard_and_the_console_show(tmp_path, data, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    assert (
        small_training.train(
            run,
            data,
            logging__tensorboard=True,
            data__validation=str(data),
            evaluation__every=3,
            logging__peak_tflops=1.0,
        )
        == 0
    )
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        f"train/{n}" for n in ("loss", "lr", "grad_norm", "tokens_per_second", "tokens", "mfu")
    } <= tags
    assert {"validation/nll_memory_on", "validation/nll_memory_off"} <= tags
    for layer in ("layer_00", "layer_01"):
        assert len([t for t in tags if t.startswith("memory_") and t.endswith(layer)]) >= 4
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 4, 6]
    rows = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [3, 6] and rows[0]["on"]["tokens"] == rows[0]["off"][
        "tokens"
    ] > 0
    said = capsys.readouterr().out
    assert (
        "step 4/6" in said
        and "left 0:00:0" in said
        and "mfu" in said
        and "validation perplexity" in said
    )


@pytest.mark.parametrize(
    "lengths, lanes, words",
    [
        ([9, 30], 8, "8 lanes for 2 document(s): 6 of them .* up to 4 identical rows"),
        ([9, 30, 1], 3, "3 lanes for 2 document(s): 1 of them .* up to 2 identical rows"),
        ([9, 30], 2, None),
        ([9, 30, 40], 2, None),
    ],
)
def test_more_lanes_than_documents_are_told_with_the_numbers(lengths, lanes, words):
    said = crowding(np.array(lengths), lanes)
    assert said is None if words is None else re.search(words.replace("(s)", r"\(s\)"), said)


def test_the_trainer_says_so_before_training(tmp_path, capsys):
    two = small_run.write_dataset(tmp_path / "two", [150, 90])
    assert small_training.train(tmp_path / "run", two, run__steps=1, batch__lanes=8) == 0
    said = capsys.readouterr().out
    assert said.index("batch.lanes: 8 lanes for 2 document(s)") < said.index("step 1/1")


@pytest.mark.parametrize("end", ["patience", "the last step"])
def test_a_loss_that_is_no_number_ends_the_run_without_a_checkpoint(tmp_path, data, end):
    """Neither when patience ends nor at the last step nor in between: the weights may be why."""
    changes = {"patience": {"faults__patience": 3}, "the last step": {}}[end]
    trainer = Trainer(
        small_run.config(tmp_path / "run", data, checkpoint__every=1, **changes),
        Launch(0, 1, 0, "env"),
    )
    with torch.no_grad():
        next(trainer.engine.model.parameters()).fill_(float("nan"))
    with pytest.raises(
        UserError, match=f"step {3 if changes else 6}: .* the loss is not finite. Nothing was saved"
    ):
        trainer.run()
    assert not (tmp_path / "run" / "checkpoints").exists()
    trainer.engine.deepspeed.destroy()


def test_flops_of_a_plain_model_are_six_a_parameter(data):
    """The rule of thumb, for a model whose attention costs little beside its matrices."""
    config = replace(
        small_run.config(data, data).with_vocab(40).model,
        memory=None,
        hidden_size=256,
        layers=4,
        ffn_size=1024,
    )
    matrices = sum(
        p.numel()
        for n, p in InftyLM(config).named_parameters()
        if p.dim() == 2 and "embedding" not in n
    )
    per_token = flops.training_per_token(config)
    assert per_token == pytest.approx(6 * matrices, rel=0.05)
    assert flops.training_per_token(small_run.config(data, data).with_vocab(40).model) > 0


def test_a_perplexity_that_no_float_holds_is_left_out():
    documents = SimpleNamespace(info=SimpleNamespace(word_counts=[3]), lengths=np.array([11]))
    tally = Tally(1, "cpu")
    for nll, perplexity in ((9000.0, None), (20.0, math.exp(2))):
        tally.sums[0, 0] = torch.tensor([nll, 10, 1])
        found = evaluation.figures(tally, documents)
        assert (found["nll"], found["accuracy"], found["tokens"], found["words"]) == (
            nll / 10,
            0.1,
            10,
            3,
        )
        assert found.get("perplexity") == perplexity
        assert ("word_perplexity" in found) == (perplexity is not None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "x", "--data", "y", "--tokens", "0"], "--tokens"),
        (["evaluate", "x", "--data", "y", "--lanes", "0"], "--lanes"),
        (["evaluate", "", "--data", "y"], "MODEL"),
        (
            ["export", "--checkpoint", "x", "--output", "y", "--max-shard", "5 gigs"],
            "is not a size",
        ),
        (["generate", "--model", "x", "--prompt", "caf\udce9"], "not UTF-8"),
        (["generate", "--model", "x", "--seed", "-1"], "--seed"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(words, said):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and said in " ".join(result.output.replace("\u2502", " ").split())


def test_intervals_and_curves_add_up():
    """By document and by place, from windows of two lanes: each token once, at its place."""
    tally = Tally(3, "cpu")
    g = torch.Generator().manual_seed(0)
    nll = torch.rand(2, 4, 32, generator=g)
    weights = (torch.rand(2, 4, 32, generator=g) < 0.8).float()
    document = torch.tensor([[0, 0, 0, 0], [1, 1, 2, -1]])
    weights[1, 3] = 0
    seen = torch.tensor([[0, 1, 2, 3], [5, 6, 0, 0]])
    empty = torch.zeros(2, 4, 32, dtype=torch.long)
    correct = torch.rand(2, 4, 32, generator=g) < 0.5
    tally.add(Window(empty, empty, weights, seen == 0, document, 0), nll, correct, seen)
    tally.reduce()
    for index, where in enumerate((document == 0, document == 1, document == 2)):
        expected = (nll.double() * weights)[where].sum()
        right = (correct * weights)[where].sum().item()
        assert tally.by_document[index].tolist() == pytest.approx(
            [expected.item(), weights[where].sum().item(), right]
        )
    first, second, third = tally.curve()
    assert [(row["from"], row["to"]) for row in (first, second, third)] == [
        (0, 64),
        (64, 128),
        (128, 256),
    ]
    early = torch.cat([nll[0, :2].flatten(), nll[1, 2]]).double()
    counted = torch.cat([weights[0, :2].flatten(), weights[1, 2]])
    assert first["nll"] == pytest.approx(((early * counted).sum() / counted.sum()).item())
    assert sum(row["tokens"] for row in tally.curve()) == weights.sum()
    found = tally.perplexity(tally.by_document[:, 1])
    low, high = found["interval"]
    assert found["perplexity"] == pytest.approx(
        math.exp((nll.double() * weights).sum() / weights.sum())
    )
    assert low < found["perplexity"] < high
    alone = Tally(1, "cpu")
    alone.sums[0, 0] = torch.tensor([20.0, 10.0, 1.0])
    assert "interval" not in alone.perplexity(alone.by_document[:, 1])
