"""The learning rate over a run, at the steps where it can go wrong."""

from __future__ import annotations

import pytest

from infty_pretrain.config import ScheduleConfig
from infty_pretrain.schedule import factor


def curve(total: int, **options) -> list[float]:
    return [factor(step, total, ScheduleConfig(**options)) for step in range(total)]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_warm_up_then_decay_to_the_minimum(kind):
    rates = curve(50, kind=kind, warmup_steps=10, min_ratio=0.1)
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_cosine_is_half_way_in_the_middle():
    assert curve(101, kind="cosine", min_ratio=0.0)[50] == pytest.approx(0.5)
    assert curve(101, kind="cosine", min_ratio=0.0)[25] == pytest.approx(0.5 + 0.5 * 0.5**0.5)


def test_constant_stays():
    assert curve(20, kind="constant", warmup_steps=2)[1:] == [1.0] * 19


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_short_runs_and_long_warm_ups(kind):
    for total, warmup in ((1, 0), (1, 1), (2, 1), (3, 10)):
        rates = curve(total, kind=kind, warmup_steps=warmup)
        assert len(rates) == total and all(0 < r <= 1 for r in rates)
    assert 0 < factor(100, 10, ScheduleConfig(kind=kind)) <= 1  # beyond the end
