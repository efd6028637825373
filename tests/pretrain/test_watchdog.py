"""A rank that stands still: the other ends with the status that asks to be started again, and says who it was."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from infty.exit_codes import STOPPED
from infty_pretrain import checkpoint
from support import small_run

STALL = 8.0  # seconds; longer than an engine takes to start on a busy machine


def start(config: Path, log: Path, *words: str) -> list[subprocess.Popen]:
    """Both ranks, without a launcher that would end one when the other ends."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    processes = []
    for rank in range(2):
        env = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(log.with_suffix(f".{rank}"), "w") as out:
            processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "infty_tools",
                        "pretrain",
                        "--config",
                        str(config),
                        *words,
                    ],
                    env=env,
                    stdout=out,
                    stderr=out,
                )
            )
    return processes


def end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()  # also ends a stopped process
        process.wait()


@pytest.mark.parametrize("stopped", [1, 0], ids=["other", "holder of the store"])
def test_a_stopped_rank_is_named_and_the_run_goes_on(tmp_path, stopped):
    data, run, log = small_run.write_dataset(tmp_path / "data"), tmp_path / "run", tmp_path / "log"
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            small_run.values(
                run, data, run__steps=100_000, run__stall_minutes=STALL / 60, checkpoint__every=5
            )
        )
    )
    processes = start(config, log)
    try:
        deadline = time.monotonic() + 90
        while not checkpoint.candidates(run / "checkpoints"):
            assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, log_of(
                log
            )
            time.sleep(0.1)
        processes[stopped].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert processes[1 - stopped].wait(4 * STALL) == STOPPED, log_of(log)
        assert time.monotonic() - began >= STALL / 2
    finally:
        end(processes)
    told = log.with_suffix(f".{1 - stopped}").read_text()
    assert (
        f"rank {stopped} does not answer any more" in told and "the others wait for it" in told
    ), told
    assert f"rank {1 - stopped} stands here" in told and "trainer.py" in told
    assert f"rank {stopped} does not answer any more" in (run / "stalled.txt").read_text()

    last = int(checkpoint.newest_valid(run / "checkpoints").name.removeprefix("step-"))
    processes = start(config, log, f"run.steps={last + 2}")
    try:
        assert [p.wait(90) for p in processes] == [0, 0], log_of(log)
    finally:
        end(processes)
    assert f"at step {last}" in log_of(log) and f"done: {last + 2} steps" in log_of(log)


def log_of(log: Path) -> str:
    return "\n".join(log.with_suffix(f".{rank}").read_text() for rank in range(2))
