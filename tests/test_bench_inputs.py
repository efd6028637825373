"""`infty bench inputs`: its own rules, and a few dozen of its trials."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from infty.errors import UserError
from infty_tools.bench import input_mutations, inputs, ledger
from infty_tools.bench.input_kinds import KINDS
from infty_tools.bench.input_trials import GOOD, digests, outcome_of


@pytest.mark.multiprocess
def test_sixty_trials_end_well(tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    command = [
        sys.executable,
        "-m",
        "infty_tools",
        "bench",
        "inputs",
        "--trials",
        "60",
        "--seed",
        "1",
        "--kinds",
        "config,override,arguments,texts,datasets,checkpoints",
        "--output",
        str(ledger),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(rows) == 60 and {row["outcome"] for row in rows} == set(GOOD)


@pytest.mark.parametrize(
    "status, error, outcome",
    [
        (0, "a warning\n", "right"),
        (2, "error: no such file\n", "refused"),
        (2, "", "0 sentences"),
        (2, "error: a\nerror: b\n", "2 sentences"),
        (2, "error: a\n  in line 1\n", "more than one line"),
        (2, "error: a\u2028b\n", "refused"),
        (1, "Traceback (most recent call last):\n", "traceback"),
        (0, "Traceback (most recent call last):\n", "traceback"),
        (1, "", "status 1"),
        (-11, "", "signal 11"),
        (-9, "", "hung"),
    ],
)
def test_how_a_trial_ended(status, error, outcome):
    assert outcome_of(status, error) == outcome


def test_a_change_below_a_folder_is_seen(tmp_path):
    (tmp_path / "a").write_text("a")
    before = digests(tmp_path)
    assert digests(tmp_path) == before
    (tmp_path / "a").write_text("b")
    assert digests(tmp_path) != before


def test_a_seed_makes_the_same_changes():
    text = json.dumps({"a": 1, "b": {"c": 2}})
    for seed in range(20):
        for change, content in (
            (input_mutations.mutate_json, text),
            (input_mutations.mutate_bytes, text.encode()),
        ):
            assert change(content, random.Random(seed)) == change(content, random.Random(seed))


def test_a_ledger_is_gone_on_with(tmp_path):
    path = tmp_path / "ledger.jsonl"
    row = {"seed": 0, "kind": "texts", "number": 3, "outcome": "traceback"}
    for written in (row, row | {"seed": 1}, row | {"outcome": "right"}):
        ledger.write_row(path, written)
    with open(path, "a") as f:
        f.write('{"seed": 0, "ki')
    assert inputs.read_ledger(path, 0) == {("texts", 3): row | {"outcome": "right"}}
    assert inputs.read_ledger(tmp_path / "none", 0) == {}


def test_kinds():
    assert inputs.chosen_kinds(None) == list(KINDS) and inputs.chosen_kinds("text,conf") == [
        "texts",
        "config",
    ]
    with pytest.raises(UserError, match="there are: config, "):
        inputs.chosen_kinds("pictures")
