"""`infty bench room`: what a fact's weight is worth, and what it costs."""

from __future__ import annotations

import json

import pytest

from infty.errors import UserError
from infty_tools.bench.room import room

SMALL = {"fact": 4, "basis": 64, "segment": 64, "segments": 8, "channels": 16}


def test_facts_with_more_weight_are_found_and_the_rest_fades(tmp_path, capsys):
    room(**SMALL, weights="1,300", every=1, seed=0, out=tmp_path / "new")
    even, heavy = json.loads((tmp_path / "new" / "room.json").read_text())
    assert even["share"] == pytest.approx(4 / 64, abs=1e-3)
    assert heavy["share"] == pytest.approx(4 * 300 / (4 * 300 + 60), abs=1e-3)
    assert heavy["found"] > 0.9 and even["found"] < 0.5
    assert even["rest"] > 0.9 > heavy["rest"]
    assert len(heavy["by_age"]) == 8 and "300" in capsys.readouterr().out


def test_segments_without_facts_leave_their_room_to_those_with():
    """What each token weighs is what it keeps: with a fact in one of four segments only, it has more room than if
    every segment had one."""
    from infty.memory import MemoryConfig
    from infty_tools.bench.room import measure

    config = MemoryConfig(basis=64, sticky="off", room="salience")
    often, seldom = (measure(config, 300.0, 16, 64, 4, every, 16) for every in (1, 4))
    assert seldom["tokens"] > 0.99 and often["tokens"] < 0.97


def test_a_fact_is_shorter_than_a_segment():
    with pytest.raises(UserError, match="--fact: 64 tokens must be fewer"):
        room(**SMALL | {"fact": 64}, weights="1", every=1, seed=0, out=None)
