"""The files of a run's folder: what is cut when a run goes on from a checkpoint, and what never is."""

from __future__ import annotations

import json

from infty_pretrain.records import EVENTS, METRICS, SAVED, Journal, forget_after


def test_events_are_whole_lines_whatever_a_killed_run_left(tmp_path):
    Journal(tmp_path).add(SAVED, 20, stall=0.5)
    with open(tmp_path / EVENTS, "a") as file:
        file.write('{"time": "2026')
    Journal(tmp_path).add("done", 40)
    first, half, last = (tmp_path / EVENTS).read_text().splitlines()
    assert half == '{"time": "2026'
    assert json.loads(first)["stall"] == 0.5
    assert {**json.loads(last), "time": None} == {"time": None, "event": "done", "step": 40}
    assert json.loads(last)["time"].endswith("+00:00")


def test_rows_behind_a_checkpoint_are_cut_and_the_last_is_known(tmp_path):
    path = tmp_path / METRICS
    assert forget_after(path, 2) == 0
    path.write_text("".join(f'{{"step": {n}}}\n' for n in range(1, 6)) + '{"step": 6')
    assert forget_after(path, 2) == 5
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
