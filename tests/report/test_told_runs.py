"""What `infty report` reads of a run's folder, and what it says of one that is empty, damaged, or none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools.cli import app
from support.told_run import write_evaluation, write_run


def told(*arguments: object) -> dict:
    """The JSON of a report."""
    result = CliRunner().invoke(app, ["report", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    assert isinstance(result.exception, UserError)
    return str(result.exception)


def test_a_run_is_told_from_its_folder_alone(tmp_path):
    run = write_run(tmp_path / "first")
    write_evaluation(run / "figures.json")
    before = sorted(tmp_path.rglob("*"))
    [found] = told(run)["runs"]
    assert sorted(tmp_path.rglob("*")) == before
    assert found["state"] == "finished: 60 of 60 steps"
    facts = found["facts"]
    assert facts["steps"] == 60 and facts["tokens"] == 6000
    assert facts["perplexity_on"] == 22.2 and facts["perplexity_off"] == 33.1
    assert facts["parameters"] == 123456 and facts["layout"].startswith("1 data x 2")
    assert (facts["restarts"], facts["skipped"], facts["checkpoints"]) == (1, 1, 2)
    assert len(found["curves"]["loss"]) == 59, "the skipped step has no loss"
    assert [row["from"] for row in found["validation"]["on"]["by_position"]] == [0, 64, 128]
    assert list(found["evaluations"]) == ["figures.json"]
    assert set(found["figures"]) == {"memory_sigma/layer_00", "memory_sigma/layer_01"}
    events = {event["event"]: event["text"] for event in found["events"]}
    assert "10 step(s) done again" in events["resumed"]
    assert events["skipped"] == "its loss is not finite" and events["quarantined"] == "lane 3"


def test_runs_side_by_side_tell_how_their_configs_differ(tmp_path):
    runs = [write_run(tmp_path / a / "run", lr=lr) for a, lr in (("a", 0.003), ("b", 0.001))]
    found = told(*runs)
    assert [run["name"] for run in found["runs"]] == [str(run) for run in runs]
    assert found["config_differences"] == {"optimizer.lr": ["0.003", "0.001"]}


def test_an_empty_run_is_shown_as_such(tmp_path):
    [found] = told(write_run(tmp_path / "new", steps=0))["runs"]
    assert found["state"] == "nothing was trained yet" and found["facts"]["loss"] is None


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"event": "stopped", "reason": "SIGTERM"}, "stopped: 40 of 60 steps (SIGTERM)"),
        ({"event": "saved"}, "ended early: 40 of 60 steps; start the same command again to go on"),
    ],
)
def test_a_run_that_did_not_finish_says_how_it_ended(tmp_path, last, state):
    run = write_run(tmp_path / "run", steps=40)
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": None, "step": 40, **last}) + "\n")
    assert told(run)["runs"][0]["state"] == state


def test_a_run_in_progress_is_read_while_it_writes(tmp_path):
    run = write_run(tmp_path / "run", steps=40)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "lo')
    hold = (
        "import pathlib, sys; from infty_pretrain import lock; "
        "kept = lock.take(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        [found] = told(run)["runs"]
        other.communicate(b"\n")
    assert found["state"].startswith(f"in progress: 40 of 60 steps (process {other.pid} on ")
    assert found["notes"] == []


@pytest.mark.parametrize(
    "damage", [b'{"step": 12, "lo\n', b"\xff\xfe\n", b"[1]\n", b'{"step": "x"}\n', b"[" * 9999]
)
def test_a_damaged_line_is_left_out_and_told(tmp_path, damage):
    run = write_run(tmp_path / "run")
    rows = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    rows[11] = damage if damage.endswith(b"\n") else damage + b"\n"
    (run / "metrics.jsonl").write_bytes(b"".join(rows))
    [found] = told(run)["runs"]
    assert found["notes"] == ["metrics.jsonl: 1 damaged line(s) left out (line 12)"]
    assert len(found["curves"]["loss"]) == 58


def test_values_that_are_no_numbers_are_no_points(tmp_path):
    run = write_run(tmp_path / "run", steps=3)
    odd = {"step": 4, "steps": "x", "loss": "high", "lr": [1], "grad_norm": True, "tokens": None}
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(odd) + "\n")
        file.write('{"step": 5, "loss": NaN}\n')
    [found] = told(run)["runs"]
    assert [len(points) for points in found["curves"].values()] == [3, 3, 3]


def test_json_that_is_no_evaluation_is_no_matter(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "mine.json").write_text('{"models": 3}')
    (run / "half.json").write_text('{"models": ')
    [found] = told(run)["runs"]
    assert found["evaluations"] == {}
    assert [note.partition(":")[0] for note in found["notes"]] == ["half.json"]


def test_the_last_pictures_are_told(tmp_path):
    run = write_run(tmp_path / "run")
    with open(run / "pictures.jsonl", "a") as file:
        file.write('{"step": 80, "pict')
    assert told(run)["runs"][0]["pictures"]["step"] == 60


def test_a_long_run_is_thinned_to_means(tmp_path):
    run = write_run(tmp_path / "run", steps=1500, total=1500)
    points = told(run)["runs"][0]["curves"]["lr"]
    assert len(points) == 375 and points[0] == [2.5, 0.003]


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("just words")
    assert "is no run: it holds no config.yaml" in refused(tmp_path / "empty")
    assert "is no folder" in refused(tmp_path / "nothing")
    assert "is no folder" in refused(tmp_path / "file")
    assert "is one checkpoint" in refused(run / "checkpoints" / "step-00000040")
    assert "holds no sections" in refused(tmp_path / "odd")
    assert "is given twice" in refused(run, run)
    assert "choose one" in refused(run, "--markdown", "--json")
    assert "must end in .html" in refused(run, "--output", run / "config.yaml")
    assert "is no folder" in refused(run, "--output", tmp_path / "file" / "x.html")


def test_markdown_has_the_tables(tmp_path):
    run = write_run(tmp_path / "a|b")
    result = CliRunner().invoke(app, ["report", str(run), "--markdown"])
    assert "# Run a\\|b" in result.stdout
    assert "| validation perplexity, memory on | 22.20 |" in result.stdout
    assert "| 2026-01-01 00:03:00 | 25 | skipped | its loss is not finite |" in result.stdout
    target = tmp_path / "folder" / "told.md"
    CliRunner().invoke(app, ["report", str(run), "--markdown", "--output", str(target)])
    assert Path(target).read_text() == result.stdout
