"""`infty bench recall`: a league that can be interrupted, at equal size, with figures that follow from its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools.bench import league, league_table
from infty_tools.bench.league import SYSTEMS, TASKS, Sizes
from infty_tools.bench.league_runs import LEDGER, League
from infty_tools.cli import app
from infty_tools.tasks.making import sample

VOCABULARY = 200


def config(task: str, system: str, steps: int = 90) -> dict:
    return league.config(TASKS[task], system, 1, steps, Sizes(), Path("run"), Path("data"))


@pytest.mark.parametrize("task", TASKS)
def test_systems_differ_in_their_part_of_the_model_alone(task):
    plain = config(task, "no-memory")
    for system in SYSTEMS:
        values = config(task, system)
        for key in SYSTEMS[system].keys() | {"stm_length"}:
            values["model"].pop(key, None)
        rest = {k: v for k, v in plain["model"].items() if k in values["model"]}
        if system == "full-attention":  # the same document in one segment
            assert values["model"].pop("segment_length") == 9 * league.SEGMENT or task == "sorting"
            rest.pop("segment_length")
            assert values.pop("batch")["window_segments"] == 1
            assert (
                values == plain | {"model": rest} | {"batch": None} or values.keys() < plain.keys()
            )
            continue
        assert values == plain | {"model": rest}


@pytest.mark.parametrize("task", TASKS)
def test_all_have_as_many_parameters(task):
    models = {name: league.model_of(config(task, name), VOCABULARY) for name in SYSTEMS}
    sizes = {name: league.parameters(model) for name, model in models.items()}
    largest = max(sizes.values())
    for name in SYSTEMS:
        values = league.widened(config(task, name), VOCABULARY, largest)
        found = league.parameters(league.model_of(values, VOCABULARY))
        one_more = 3 * values["model"]["hidden_size"] * values["model"]["layers"]
        assert largest - one_more < found <= largest
    with pytest.raises(UserError, match="cannot have"):
        league.widened(config(task, "paper"), VOCABULARY, sizes["paper"] - 1)


@pytest.mark.parametrize("task", TASKS)
def test_a_window_holds_a_document(task):
    contest = TASKS[task]
    for index in range(5):
        read = len(sample(contest.task(1), 0, False, index).ids) - 1
        assert (contest.segments - 1) * league.SEGMENT < read <= contest.segments * league.SEGMENT


def test_state_is_what_a_lane_carries():
    model = league.model_of(config("facts", "transformer-xl"), VOCABULARY)
    assert league.state_floats(model) == 2 * league.SEGMENT * 64
    assert league.state_floats(league.model_of(config("facts", "no-memory"), VOCABULARY)) == 0


def test_what_rows_say():
    def row(seed: int, young: float, old: float) -> dict:
        ages = [
            {"age": [0, 64], "answers": 10, "accuracy": young},
            {"age": [64, 128], "answers": 30, "accuracy": old},
            {"age": [128, 256], "answers": 10, "accuracy": 1.0},
        ]
        return {
            "task": "facts",
            "system": "joint",
            "seed": seed,
            "answers": {"1": {"by_age": ages, "accuracy": 0.0}},
            "loss": float(seed),
            "parameters": 5,
            "state_floats": 6,
            "seconds_per_step": 0.5,
        }

    (found,) = league_table.summary([row(1, 0.9, 0.2), row(2, 0.1, 0.6)])
    assert found["right"]["1"] == pytest.approx({"mean": 0.55, "least": 0.4, "most": 0.7})
    assert found["loss"] == {"mean": 1.5, "least": 1.0, "most": 2.0}
    assert found["seeds"] == [1, 2]


def test_a_league_is_run_and_goes_on(tmp_path):
    def rows(*systems: str) -> list[dict]:
        league_of = League(tmp_path, Sizes(hidden=16, lanes=2), held_out=4, steps=3)
        return league_of.run(["sorting"], list(systems), range(1, 2), jobs=1)

    (first,) = rows("no-memory")
    before = (tmp_path / LEDGER).read_text()
    with open(tmp_path / LEDGER, "a") as ledger:
        ledger.write('{"task": "sorting", "sys')  # cut off while it was written
    again, second = rows("no-memory", "continuation")
    assert again == first and (tmp_path / LEDGER).read_text().startswith(before)
    assert second["system"] == "continuation" and second["loss"] > 0
    league_table.write([first, second], tmp_path)
    found = json.loads((tmp_path / "recall.json").read_text())
    assert [row["system"] for row in found] == ["no-memory", "continuation"]
    assert all(set(row["right"]) == {"1"} for row in found)
    assert (tmp_path / "recall.png").stat().st_size > 1000
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    result = CliRunner().invoke(app, ["bench", "recall", "--out", str(tmp_path)])
    assert isinstance(result.exception, UserError) and "holds other things" in str(result.exception)
