"""A rank that stands still: the other ends with the status that asks to be started again, and says who it was."""

from __future__ import annotations

import signal
import time

import pytest
import yaml

from infty.exit_codes import STOPPED
from infty_pretrain import checkpoint
from infty_tools.bench.fault_runs import Start  # both ranks, without a launcher that ends them
from support import small_run

STALLS = (8.0, 40.0)  # seconds; the second where an engine takes longer to start than the first


@pytest.mark.parametrize("stopped", [1, 0], ids=["other", "holder of the store"])
def test_a_stopped_rank_is_named_and_the_run_goes_on(tmp_path, stopped):
    data, run = small_run.write_dataset(tmp_path / "data"), tmp_path / "run"
    config = tmp_path / "config.yaml"

    def write(**changes: float) -> None:
        values = small_run.values(run, data, checkpoint__every=5, **changes)
        config.write_text(yaml.safe_dump(values))

    for stall in STALLS:
        write(run__steps=100_000, run__stall_minutes=stall / 60)
        start = Start(config, tmp_path / "first")
        if start.wait(120, lambda: checkpoint.candidates(run / "checkpoints")):
            break
        start.end()
    try:
        assert start.codes() == [None, None], start.said()
        start.signal(signal.SIGSTOP, [stopped])
        began = time.monotonic()
        other = start.processes[1 - stopped]
        other.join(4 * stall)
        assert other.exitcode == STOPPED, start.said()
        assert time.monotonic() - began >= stall / 2
    finally:
        start.end()
    told = start.logs[1 - stopped].read_text()
    assert (
        f"rank {stopped} does not answer any more" in told and "the others wait for it" in told
    ), told
    assert f"rank {1 - stopped} stands here" in told and "trainer.py" in told
    assert f"rank {stopped} does not answer any more" in (run / "stalled.txt").read_text()

    last = int(checkpoint.newest_valid(run / "checkpoints").name.removeprefix("step-"))
    write(run__steps=last + 2)
    start = Start(config, tmp_path / "second")
    try:
        assert start.wait(90) and start.codes() == [0, 0], start.said()
    finally:
        start.end()
    assert f"at step {last}" in start.said() and f"done: {last + 2} steps" in start.said()
