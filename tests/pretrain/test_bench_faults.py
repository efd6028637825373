"""`infty bench faults`: a handful of its hundreds of trials; and it tells a loss from none."""

from __future__ import annotations

import json
import random
import signal
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools.bench import fault_kinds, ledger
from infty_tools.bench import fault_runs as runs
from infty_tools.bench import faults as bench_faults
from infty_tools.cli import app


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # one layout: each needs two undisturbed runs first
        patch.setattr(
            runs,
            "LAYOUTS",
            {k: v for k, v in runs.LAYOUTS.items() if k == "tensor parallel, ZeRO-3"},
        )
        yield bench_faults.Harness(tmp_path_factory.mktemp("faults"), random.Random(7))


@pytest.mark.parametrize(
    "kind",
    [
        "kill -9 of one rank",
        "kill -9 in a checkpoint",
        "full disk",
        "stalled rank",
        "flipped bit",
        "NaN in a lane",
        "loss spike",
    ],
)
def test_nothing_is_lost(harness, kind):
    row = harness.trial(kind)
    assert row["detected"] and row["went on"] and not row["lost"], row


def harmed(harness, layout="tensor parallel, ZeRO-3"):
    """A run that was killed after its second checkpoint, its config, and the run that nothing happened to."""
    harness.count += 1
    run = harness.folder / f"run-{harness.count}"
    config = runs.write_config(run.with_suffix(".yaml"), run, harness.data, layout)
    trial = fault_kinds.Trial(
        lambda harm=None: runs.Start(config, run, harm), run, harness.random, 1.0
    )
    start = trial.start()
    trial.saved(start, 2)
    start.end()
    return trial, config, harness.reference(layout)


def test_a_run_that_comes_to_something_else_counts_as_lost(harness):
    trial, config, reference = harmed(harness)
    trial.facts["damaged"] = "step-00000099"  # of which the second start will say nothing
    config.write_text(config.read_text().replace("lr: 0.003", "lr: 0.0031"))
    row = harness.judge_end("flipped bit", trial, config, reference)
    assert row["went on"] and row["lost"] and not row["detected"]
    assert "the loss curve differs" in row["wrong"] and any(
        "/weight differs" in w for w in row["wrong"]
    )


def test_a_run_that_cannot_go_on_counts_as_lost(harness):
    trial, config, reference = harmed(harness)
    for folder in trial.folders("step-????????"):
        (folder / "manifest.json").unlink()
    row = harness.judge_end("kill -9 of all", trial, config, reference)
    assert row["lost"] and not row["went on"] and "none is whole" in row["wrong"][0]


@pytest.mark.usefixtures("harness")
def test_the_command(tmp_path):
    path = tmp_path / "faults.json"
    result = CliRunner().invoke(
        app, ["bench", "faults", "--tries", "1", "--kinds", "truncated", "--output", str(path)]
    )
    assert result.exit_code == 0, result.output
    assert "truncated" in result.output and "detected" in result.output
    (row,) = map(json.loads, path.read_text().splitlines())
    assert (row["kind"], row["detected"], row["lost"]) == ("truncated file", True, False)
    assert row["commit"] and (row["seed"], row["number"]) == (0, 0)
    for options, said in (
        (["--kinds", "meteor"], "no kind of fault"),
        (["--output", "/dev/null/x.json"], "is no folder"),
    ):
        assert said in str(CliRunner().invoke(app, ["bench", "faults", *options]).exception)


@pytest.mark.parametrize(
    ("lost", "detected", "status"), [(False, True, 0), (True, True, 1), (False, False, 1)]
)
def test_trials_of_a_ledger_are_not_made_again(tmp_path, lost, detected, status):
    """And a fault that was not noticed is a failure, as is one by which something was lost."""
    path = tmp_path / "faults.jsonl"
    row = {"kind": "loss spike", "layout": "any", "number": 0, "seed": 5, "wrong": []}
    row |= {"went on": True, "lost": lost, "detected": detected, "commit": ledger.commit()}
    ledger.write_row(path, row | {"commit": "another", "lost": True})
    ledger.write_row(path, row)
    words = ["--tries", "1", "--kinds", "loss spike", "--seed", "5", "--output", str(path)]
    result = CliRunner().invoke(app, ["bench", "faults", *words])
    assert result.exit_code == status, result.output
    assert len(path.read_text().splitlines()) == 2


def test_kinds_are_found_by_a_word():
    assert bench_faults.chosen_kinds("stalled, kill -9 of") == [
        "stalled rank",
        "kill -9 of one rank",
        "kill -9 of all",
    ]
    assert len(bench_faults.chosen_kinds(None)) == len(fault_kinds.KINDS) == 11
    with pytest.raises(UserError, match="there are: kill"):
        bench_faults.chosen_kinds("")


@pytest.mark.parametrize(
    "number, code, detected",
    [
        (signal.SIGTERM, 85, True),
        (signal.SIGTERM, -signal.SIGTERM, False),
        (signal.SIGUSR1, 1, False),
        (signal.SIGUSR1, None, False),
        (signal.SIGKILL, -signal.SIGKILL, True),
    ],
)
def test_a_signal_in_start_up_counts_only_with_the_status_for_again(
    tmp_path, number, code, detected
):
    """The other rank waits for it and is ended by its launcher."""
    codes: list = [None, None]

    def wait(_seconds, until=None):
        return until is not None and until()

    def deliver(_number, ranks):
        for rank in ranks:
            codes[rank] = code

    start = SimpleNamespace(
        codes=lambda: list(codes), said=lambda: "", wait=wait, signal=deliver, end=lambda: None
    )
    trial = fault_kinds.Trial(lambda harm=None: start, tmp_path, random.Random(0), 1.0)
    assert fault_kinds.end_by_signal(trial, number, [1]) == detected
