"""A perturbation of a model's weights does not grow on its way through the sticky memories."""

from __future__ import annotations

import json

import pytest

from infty.errors import UserError
from infty_tools.bench.growth import growth, make, measure, token_by_token


@pytest.mark.parametrize("policy", ["uniform", "learned"])
def test_perturbations_do_not_grow(policy):
    """512 functions, many more than there are segments: where the warp moves the signal most."""
    rows = measure(make({"basis": 512, "contraction": policy}), 20, [1e-7, 1e-3], seeds=1)
    assert max(rows[0]["difference"]) < 3e-5 and max(rows[1]["difference"]) < 5e-2


def test_following_every_segment_would_let_them_grow():
    """What the average is for: with a span of one segment 1e-7 becomes a tenth."""
    (row,) = measure(make({"basis": 512, "attention_span": 1}), 20, [1e-7], seeds=1)
    assert max(row["difference"]) > 1e-3


def test_token_by_token_is_one_pass():
    rows = {row["size"]: row for row in token_by_token(make({"basis": 256}), 8)}
    assert max(rows["tokens float32"]["difference"]) < 1e-4
    assert max(rows["tokens bfloat16"]["difference"]) < 0.2


def test_the_command_writes_a_table_and_json(tmp_path, capsys):
    growth(
        "uniform,0.5",
        "gaussian,gibbs",
        "off,multinomial",
        "1e-6",
        segments=4,
        seeds=1,
        train=1,
        basis=16,
        stepwise=1,
        out=tmp_path / "new",
    )
    rows = json.loads((tmp_path / "new" / "growth.json").read_text())
    assert len(rows) == (2 + 4) * 3  # cases that exist; one size and two precisions each
    assert all(len(row["difference"]) in (1, 4) for row in rows)
    assert "multinomial" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("tripling", "gaussian", "off", "1e-3"), "tripling"),
        (("0.5", "cauchy", "off", "1e-3"), "cauchy"),
        (("0.5", "gaussian", "on", "1e-3"), "--warps: on"),
        (("uniform", "gaussian", "multinomial", "1e-3"), "--warps"),
    ],
)
def test_mistakes_are_named(arguments, problem):
    with pytest.raises(UserError, match=problem):
        growth(*arguments, segments=2)
