"""`infty bench layouts` goes on where it was stopped, by a ledger of rows that tell their commit."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from infty.memory.signals import SIGNALS
from infty_tools.bench import layouts, ledger
from infty_tools.cli import app


@pytest.mark.parametrize(("loss", "status"), [(1e-7, 0), (1e-3, 1)])
def test_layouts_of_a_ledger_are_not_trained_again(tmp_path, loss, status):
    path = tmp_path / "layouts.jsonl"
    found = {"loss": loss, "norm": None, "weights": 1e-7, "steps": 3, "commit": ledger.commit()}
    for signal in SIGNALS:
        for layout in layouts.grid(1):
            row = {"signal": signal, "processes": 1, **layout}
            ledger.write_row(path, row | found | {"commit": "another", "loss": 1.0})
            ledger.write_row(path, row | found)
    before = path.read_text()
    words = ["--most", "1", "--steps", "3", "--output", str(path)]
    result = CliRunner().invoke(app, ["bench", "layouts", *words])
    assert result.exit_code == status, (result.output, result.exception)
    assert path.read_text() == before and f"{32} layouts" in result.output


def test_rows_of_another_commit_or_length_count_for_nothing(tmp_path):
    path = tmp_path / "layouts.jsonl"
    row = {"signal": "heads", "processes": 1, **layouts.grid(1)[0]}
    for commit, steps in (("another", 3), (ledger.commit(), 4), (ledger.commit(), 3)):
        ledger.write_row(path, row | {"steps": steps, "commit": commit, "loss": steps})
    with open(path, "a") as f:
        f.write('{"cut sho')
    assert list(layouts.Sitting(path, 4).done.values()) == [
        row | {"steps": 4, "commit": ledger.commit(), "loss": 4}
    ]
    assert layouts.Sitting(None, 4).done == {}
