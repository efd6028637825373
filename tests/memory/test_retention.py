"""What the default memory must keep of a whole book, and what the paper's rule keeps of it."""

from __future__ import annotations

import json

import pytest

from infty.errors import UserError
from infty.memory import MemoryConfig
from infty_tools.bench.retention import measure, retention


def test_the_default_keeps_a_book():
    """200 segments of 512 tokens with 512 functions."""
    fine, coarse = measure(MemoryConfig(sticky="off"), [200], [64, 512], channels=16)
    assert coarse["correlation"] >= 0.99 and fine["correlation"] >= 0.5
    assert min(coarse["by_age"]) >= 0.99 and min(fine["by_age"]) >= 0.45
    assert fine["limit"] == pytest.approx(0.566, abs=0.001)


def test_a_constant_share_forgets():
    (row,) = measure(MemoryConfig(contraction=0.5, sticky="off"), [64], [512], channels=16)
    assert row["correlation"] < 0.5 and row["by_age"][-1] > 0.5


def test_doubling_knows_where_segments_lie():
    rows = measure(
        MemoryConfig(basis=128, contraction="doubling", sticky="off"), [1, 5, 8], [64], segment=64
    )
    assert [row["tokens"] for row in rows] == [64, 320, 512]
    assert all(row["correlation"] > 0.95 for row in rows)


def test_the_command_writes_a_table_json_and_a_plot(tmp_path, capsys):
    retention(
        "uniform,0.5",
        "64",
        "512,1024",
        "16,64",
        segment=64,
        channels=4,
        seed=1,
        out=tmp_path / "new",
    )
    rows = json.loads((tmp_path / "new" / "retention.json").read_text())
    assert len(rows) == 2 * 2 * 2 and {row["policy"] for row in rows} == {"uniform", "0.5"}
    assert (tmp_path / "new" / "retention.png").stat().st_size > 1000
    assert "uniform" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("tripling", "64", "512", "64"), "tripling"),
        (("0.5", "64", "500", "64"), "--tokens: 500"),
        (("0.5", "64", "512", "48"), "--chunks: 48"),
        (("1.5", "64", "512", "64"), "contraction"),
    ],
)
def test_mistakes_are_named(arguments, problem):
    with pytest.raises(UserError, match=problem):
        retention(*arguments, segment=64)


def test_what_is_read_keeps_more_and_the_rest_is_not_lost():
    """A share of attention on one segment of a book: it keeps its details, and nothing else pays visibly for it."""
    plain = measure(MemoryConfig(), [200], [64, 512], channels=16, attention=1e-9)
    little = measure(MemoryConfig(), [200], [64, 512], channels=16, attention=0.05)
    more = measure(MemoryConfig(), [200], [64, 512], channels=16, attention=0.2)
    assert plain[0]["room"] == pytest.approx(1 / 200, abs=1e-4)
    assert (
        little[0]["room"] > 1.5 * plain[0]["room"]
        and little[0]["attended"] > plain[0]["attended"] + 0.1
    )
    assert more[0]["room"] > 5 * plain[0]["room"] and more[0]["attended"] > 0.95
    for fine, coarse in (little, more):
        assert coarse["correlation"] > 0.99 and fine["correlation"] > plain[0]["correlation"] - 0.02
    all_of_it = measure(MemoryConfig(), [200], [512], channels=16, attention=1.0)[0]
    assert all_of_it["correlation"] > 0.98
