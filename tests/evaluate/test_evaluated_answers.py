"""Right answers: which count, and what they are shared out over; intervals; plots; files that are whole or absent."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from infty.data.answers import ROWS, TASK, Answers
from infty.data.documents import INFO, DatasetInfo, Documents
from infty.errors import UserError
from infty_pretrain import bootstrap, evaluation
from infty_tools.cli import app
from infty_tools.evaluate import report
from infty_tools.evaluate.answers import AnswerTally
from infty_tools.evaluate.data import limited
from infty_tools.evaluate.plots import draw
from support import small_run

pytestmark = pytest.mark.usefixtures("single_process")
LENGTHS = [130, 47, 220, 75]
ANSWERS = [  # document, start, end, depth, age, kind
    (0, 1, 2, 0, 1, 0),
    (0, 2, 5, 250, 3, 1),
    (0, 128, 130, 999, 100, 0),
    (1, 8, 10, 1000, 9, 1),
    (2, 64, 65, 500, 64, 1),
    (2, 219, 220, 100, 200, 0),
]


class Knows:
    """A model that predicts every token rightly but those given: (document, position)."""

    segment_length, window_segments, device = 8, 3, "cpu"

    def __init__(self, wrong: set[tuple[int, int]]) -> None:
        self.wrong = wrong

    def begin(self, lanes):
        return [0] * lanes

    def read(self, window, state):
        correct = torch.ones(window.tokens.shape, dtype=torch.bool)
        for lane in range(len(correct)):
            for s in range(correct.shape[1]):
                if window.reset[lane, s]:
                    state[lane] = 0
                for i in range(8):
                    state[lane] += 1  # the position of the label
                    key = (int(window.document[lane, s]), state[lane])
                    correct[lane, s, i] = key not in self.wrong
        return torch.full(window.tokens.shape, 0.5), correct, state


@pytest.fixture
def data(tmp_path):
    folder = small_run.write_dataset(tmp_path / "task", LENGTHS)
    np.save(folder / ROWS, np.array(ANSWERS, dtype=np.int64))
    task = {"task": "facts", "seed": 1, "kinds": ["one", "two"], "options": {}}
    (folder / TASK).write_text(json.dumps(task))
    if "answers" in {field.name for field in fields(DatasetInfo)}:
        info = json.loads((folder / INFO).read_text()) | {"answers": len(ANSWERS)}
        (folder / INFO).write_text(json.dumps(info))
    return folder


def tallied(data, wrong=(), lanes=3, count=None, **options) -> AnswerTally:
    whole = Documents.open(data)
    documents = limited(whole, count, None)
    tally = AnswerTally(Answers.open(data, whole.lengths), documents.lengths, "cpu")
    evaluation.evaluate(Knows(set(wrong)), documents, lanes=lanes, beside=tally, **options)
    return tally


@pytest.mark.parametrize("lanes", [1, 4])
def test_an_answer_is_right_when_all_of_it_is(data, lanes):
    """One wrong token in one of several; and wrong tokens beside answers, which do not matter."""
    found = tallied(data, [(0, 3), (0, 5), (0, 127), (1, 10), (2, 219)], lanes).figures()
    assert (found["answers"], found["accuracy"]) == (6, 4 / 6)
    kinds = {row["kind"]: (row["answers"], row["accuracy"]) for row in found["by_kind"]}
    assert kinds == {"one": (3, 2 / 3), "two": (3, 2 / 3)}
    cells = {
        (tuple(row["length"]), tuple(row["depth"])): (row["answers"], row["accuracy"])
        for row in found["by_length_and_depth"]
    }
    assert cells == {
        ((0, 64), (0.9, 1.0)): (1, 1),
        ((128, 256), (0.0, 0.1)): (1, 1),
        ((128, 256), (0.1, 0.2)): (1, 0),
        ((128, 256), (0.2, 0.3)): (1, 0),
        ((128, 256), (0.5, 0.6)): (1, 1),
        ((128, 256), (0.9, 1.0)): (1, 1),
    }
    ages = {tuple(row["age"]): (row["answers"], row["accuracy"]) for row in found["by_age"]}
    assert ages == {(0, 64): (3, 2 / 3), (64, 128): (2, 1), (128, 256): (1, 0)}
    low, high = found["interval"]
    assert low < 4 / 6 < high


def test_answers_that_were_not_read_do_not_count(data):
    tally = tallied(data, lanes=4, windows=1)  # 24 tokens of each document
    assert tally.figures()["answers"] == 3
    assert tallied(data, count=1).figures()["answers"] == 3
    rows = np.load(data / ROWS)
    found = Answers(rows[rows[:, 0] > 0], ("one", "two"), "facts", 1)
    none = AnswerTally(found, np.array(LENGTHS[:1]), "cpu").figures()
    assert none == {"answers": 0, "by_length_and_depth": [], "by_age": [], "by_kind": []}


def test_resamples_are_pairs(monkeypatch):
    """Of two columns that differ by a constant share, every resample's ratio is that share."""
    sums = torch.rand(7, 1, dtype=torch.float64)
    drawn = bootstrap.resampled(torch.cat([sums, 2 * sums, torch.ones_like(sums)], 1))
    assert drawn.shape == (bootstrap.RESAMPLES, 3)
    assert torch.allclose(drawn[:, 1], 2 * drawn[:, 0])
    assert (drawn[:, 2] == 7).all() and len(set(drawn[:, 0].tolist())) > 500
    assert torch.equal(drawn, bootstrap.resampled(torch.cat([sums, 2 * sums, sums * 0 + 1], 1)))
    monkeypatch.setattr(bootstrap, "AT_ONCE", 16)  # as little at once as can be changes nothing
    assert torch.allclose(drawn[:, 0], bootstrap.resampled(sums)[:, 0])
    low, high = bootstrap.interval(drawn[:, 0] / drawn[:, 2])
    assert low < sums.mean() < high
    assert bootstrap.interval(torch.full((9,), torch.nan)) is None


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    g = torch.Generator().manual_seed(1)
    values = torch.randn(400, 1, generator=g, dtype=torch.float64)
    low, high = bootstrap.interval(bootstrap.resampled(values)[:, 0] / 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)


@pytest.fixture
def found(data):
    """What an evaluation of two models found, without models."""
    answers = tallied(data, [(0, 3)]).figures()
    curve = [
        {"from": 0, "to": 64, "tokens": 9, "documents": 3, "nll": 2.0, "interval": [1.9, 2.2]},
        {"from": 64, "to": 128, "tokens": 9, "documents": 1, "nll": 1.5},
    ]
    figures = {"documents": 3, "tokens": 18, "nll": 1.75, "accuracy": 0.5, "perplexity": 5.75}
    figures |= {"by_position": curve, "answers": answers}
    ratio = {"model": "b", "memory": "on", "beside": "a", "beside_memory": "none", "ratio": 0.9}
    ratio["by_position"] = [{"from": 0, "to": 64, "ratio": 0.9, "interval": [0.8, 1.0]}]
    return {
        "data": {"path": "d"},
        "models": [
            {"name": "a", "model": "x/a", "what": "checkpoint", "memory": {"none": figures}},
            {
                "name": "b",
                "model": "[red]x/b",
                "what": "checkpoint",
                "memory": {"on": figures, "off": figures},
            },
        ],
        "comparisons": [ratio],
    }


def test_plots(found, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    first = {path.name: path.read_bytes() for path in draw(found, tmp_path / "plots")}
    assert sorted(first) == sorted(p.name for p in (tmp_path / "plots").iterdir())
    assert sorted(first) == [
        "answers-1-a-none.png",
        "answers-2-b-off.png",
        "answers-2-b-on.png",
        "position.png",
        "ratio.png",
    ]
    assert all(content.startswith(b"\x89PNG") for content in first.values())
    draw(found, tmp_path / "plots")  # again: replaced, and the same to the byte
    assert {p.name: p.read_bytes() for p in (tmp_path / "plots").iterdir()} == first


def test_tables(found, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    report.show(found)
    said = capsys.readouterr().out
    for words in (
        "b, memory off",
        "a, no memory",
        "0.9000",
        "83.3% of 6",
        "64 to 128",
        "WITHOUT WITH",
        "[red]x/b: checkpoint",
    ):
        assert words in said, words


def test_what_is_missing_for_plots_is_named_before_anything_is_read(tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for words in (
        ["evaluate", "a", "--data", "b", "--plots", str(tmp_path / "plots")],
        ["bench", "retention", "--out", str(tmp_path / "out")],
        ["bench", "recall", "--out", str(tmp_path / "out")],
    ):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, UserError), words
        assert "pip install 'infty[plots]'" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_named_once():
    result = CliRunner().invoke(app, ["evaluate", "a", "b", "a", "--data", "d"])
    assert isinstance(result.exception, UserError) and "given twice" in str(result.exception)
