"""Windows that grow while a model trains (`batch.window_stages`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infty.errors import UserError
from infty_pretrain import curriculum
from infty_pretrain.config import BatchConfig
from support import small_run

STAGES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=0, max_size=4)


def batch(parts: list[tuple[int, int]]) -> BatchConfig:
    """Stages of growing windows: by how much each grows, and for how many steps it lasts."""
    stages, size = {}, 0
    for more, steps in parts:
        size += more
        stages[size] = steps
    return BatchConfig(window_segments=size + 1, window_stages=stages or None)


@given(STAGES, st.integers(0, 40))
def test_what_is_read_is_the_sum_of_the_windows(parts, steps):
    b = batch(parts)
    sizes = [curriculum.window_segments(b, step) for step in range(steps)]
    expected = [s for s, n in (b.window_stages or {}).items() for _ in range(n)]
    expected += [b.window_segments] * steps
    assert sizes == expected[:steps]
    assert curriculum.segments_read(b, steps) == sum(sizes)
    assert curriculum.problem(b) is None


@given(STAGES, st.integers(1, 200))
def test_a_run_of_so_many_tokens_is_no_step_too_long(parts, segments):
    b = batch(parts)
    steps = curriculum.steps_to_read(b, segments)
    assert curriculum.segments_read(b, steps) >= segments
    assert curriculum.segments_read(b, steps - 1) < segments


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({4: 10, 2: 10}, "windows must grow from stage to stage.*4, 2, 8 segments"),
        ({8: 10}, "windows must grow.*8, 8 segments"),
        ({2: 0}, "{2: 0}: segments must be > 0 and steps a whole number from 1 to"),
        ({0: 5}, "{0: 5}: segments must be > 0"),
    ],
)
def test_stages_that_do_not_grow_are_refused(tmp_path, stages, said):
    with pytest.raises(UserError, match=rf"batch\.window_stages: {said}"):
        small_run.config(
            tmp_path / "run", tmp_path, batch__window_segments=8, batch__window_stages=stages
        )


def test_a_run_by_tokens_counts_every_stage(tmp_path):
    config = small_run.config(
        tmp_path / "run",
        tmp_path,
        run__steps=None,
        run__tokens=4 * 8 * (2 * 1 + 3 * 2 + 3 * 4 - 1),
        batch__window_segments=3,
        batch__window_stages={1: 2, 2: 3},
    )
    assert config.total_steps == 2 + 3 + 4
    assert config.total_tokens == 4 * 8 * (2 * 1 + 3 * 2 + 3 * 4)
