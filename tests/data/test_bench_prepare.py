"""`infty bench prepare`: a worker beside its tokenizer alone, on texts that are made up or given."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infty.data.words import count_words
from infty.errors import UserError
from infty_tools.bench import prepare as bench_prepare
from infty_tools.cli import app


def test_a_worker_is_compared_with_its_tokenizer(tmp_path):
    texts = tmp_path / "texts"
    bench_prepare.make_prose(texts, 200_000)
    assert len(list(texts.glob("*.txt"))) == 2
    path = tmp_path / "prepare.json"
    words = ["--input", str(texts), "--rounds", "1", "--output", str(path)]
    result = CliRunner().invoke(app, ["bench", "prepare", *words])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(path.read_text())
    assert found["documents"] == 2 and found["bytes"] > 100_000
    assert 0.5 < found["speed"] < 1.5  # .9 and more for larger texts
    assert all(found["seconds"][part] > 0 for part in bench_prepare.PARTS)


def test_texts_are_needed(tmp_path):
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(UserError, match="holds no text file that can be used"):
        bench_prepare.measure(tmp_path, tmp_path, None, 10**6, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("caf\u00e9 \u2014 \u201cr\u00e9sum\u00e9\u201d", 3),  # far from any such script
        ("\u0dff a\u1800 b", 3),  # just below and just above their letters
        ("ab \u0e01\u0e02\u0e03\u0e04\u0e05", 3),
        ("ab \u17ff\u17ff", 2),
        ("\u3000\u4e00\u3042", 2),
        ("\U0001f600 smiles \U00020000", 2),
    ],
)
def test_words_of_any_script_are_counted(text, words):
    assert count_words(text) == words
