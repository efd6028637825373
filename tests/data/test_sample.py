"""The texts that train a tokenizer, and counting words."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from infty.data import sources
from infty.data.sample import sample, spread
from infty.data.words import count_words


def lines(letter: str, size: int) -> str:
    """Numbered lines of about `size` bytes."""
    line = letter * 40
    return "".join(f"{i:09} {line}\n" for i in range(size // (11 + len(line.encode()))))


@pytest.fixture
def books(tmp_path):
    """A large English file, then Greek, then a small one and packed lines."""
    (tmp_path / "a.txt").write_text(lines("a", 1_500_000))
    (tmp_path / "b.txt").write_text(lines("β", 500_000))
    (tmp_path / "c.txt").write_text(lines("c", 9_000))
    packed = "".join(json.dumps({"text": lines("d", 5_000)}) + "\n" for _ in range(100))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    return sources.find(tmp_path)


def test_every_source_has_its_share(books):
    """Whatever comes first: with a budget spent in order, Greek was never seen."""
    limit = 1_000_000
    pieces = list(sample(books, "text", limit))
    text = "".join(pieces)
    assert 0.4 * limit < len(text.encode()) <= limit
    shares = {letter: text.count(letter * 40) * 51 for letter in "aβcd"}
    assert (
        shares["a"] > 300_000
        and shares["β"] > 60_000
        and shares["c"] > 2_000
        and shares["d"] > 3_000
    )
    assert pieces == list(sample(books, "text", limit))


def test_a_large_source_is_seen_from_its_beginning_to_its_end(books):
    text = "".join(sample(books[:1], "text", 100_000))
    total = 1_500_000 // 51
    places = [
        int(line[:9]) / total for line in text.splitlines() if line[:9].isdigit() and len(line) > 9
    ]
    for tenth in range(10):
        assert any(tenth / 10 <= place < (tenth + 1) / 10 for place in places)


def test_little_text_is_taken_whole(books):
    assert "".join(sample(books, "text", 10**8)).count("\n") == sum(
        t.text.count("\n") for s in books for t in sources.read(s)
    )


@pytest.mark.parametrize("budget", [1, 100, 3000, 50_000, 10**6])
def test_spread(budget):
    """Half of the budget or more where there is so much, never more than it except for the one piece that is kept; of
    one long line too."""
    rng = random.Random(budget)
    long = "".join(rng.choices("ab c", k=200_000))
    for texts in ([lines("é", 300_000)], [long], [lines("x", 1000)] * 300):
        size = sum(len(t.encode()) for t in texts)
        taken = sum(len(piece.encode()) for piece in spread(texts, budget))
        assert taken <= max(budget, 256)
        assert taken >= min(size, budget) / 4
    assert spread([], budget) == []
    assert "".join(spread(["short\n", "texts"], 1000)) == "short\ntexts"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", 0),
        ("two words", 2),
        ("naïve — “quoted”", 3),
        ("한국어 텍스트", 2),
        ("你好，世界。", 4),
        ("iPhone手机 is 好.", 5),
        ("カタカナとひらがな", 9),
        ("สวัสดีชาวโลก", 3),
        ("ภาษา ไทย", 2),
        ("「はい」", 2),
        ("𠀀𠀁", 2),
        ("123 中 456", 3),
    ],
)
def test_words(text, words):
    assert count_words(text) == words
