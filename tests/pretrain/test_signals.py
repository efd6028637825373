"""Requests to stop: what sets the flag, and what a second request does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from infty import stopping
from infty_pretrain import signals


@pytest.fixture
def flag(tmp_path, single_process):
    before = {n: signal.getsignal(n) for n in stopping.REQUESTS}
    for number in before:  # a shell may have started the tests with some ignored
        signal.signal(number, signal.SIG_DFL)
    yield lambda **options: signals.StopFlag(tmp_path, "cpu", **options)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.REQUESTS)
def test_a_signal_is_remembered_and_obeyed_later(flag, number):
    stop = flag()
    assert not stop.agreed()[0]
    os.kill(os.getpid(), number)
    assert stop.agreed()[0] and stop.reason == number.name
    os.kill(
        os.getpid(), signal.SIGTERM
    )  # at once after the first: a launcher passing the same request on
    assert stop.agreed()[0] and stop.reason == number.name


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_from_the_start_stays_ignored(flag, number):
    """A closed terminal under nohup; Ctrl-C for what a script runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        stop = flag()
        os.kill(os.getpid(), number)
        assert not stop.agreed()[0]
    finally:
        signal.signal(number, before)


def test_a_file_stops_once(flag, tmp_path):
    stop = flag()
    (tmp_path / "stop").touch()
    assert stop.agreed()[0] and "stop" in stop.reason
    stop.clear_file()
    stop.clear_file()
    assert not (tmp_path / "stop").exists() and not flag().agreed()[0]


def test_the_budget_stops(flag):
    assert not flag(budget_minutes=10).agreed()[0]
    stop = flag(budget_minutes=1e-9)
    time.sleep(0.01)
    assert stop.agreed()[0] and stop.reason == "the time budget"


def test_the_budget_stops_before_what_would_go_beyond_it(flag, monkeypatch):
    """As long as the longest step so far, with what came between: an evaluation, a checkpoint."""
    now = time.monotonic()
    stop = flag(budget_minutes=1)
    assert not stop.agreed()[0]
    # This step took half a minute, and so may the next.
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now + 31))
    assert stop.agreed()[0] and stop.reason == "the time budget"


CHILD = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import torch, torch.distributed as dist
from infty_pretrain import signals

signals.SAME_REQUEST = 0.5
rank, store = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
stop = signals.StopFlag(Path("."), "cpu")
print("ready", flush=True)
if rank == 1:
    time.sleep(60)  # never joins
dist.all_reduce(torch.ones(1))
"""


def test_a_second_signal_stops_at_once_where_a_rank_waits_for_another(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "store")],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [r.stdout.readline() for r in ranks] == ["ready\n"] * 2
        time.sleep(0.5)  # rank 0 is in the collective by now
        for number in (
            signal.SIGUSR1,
            signal.SIGTERM,
        ):  # the second belongs to the first: a launcher passes it on
            ranks[0].send_signal(number)
            time.sleep(0.05)
        time.sleep(0.6)
        assert ranks[0].poll() is None
        ranks[0].send_signal(signal.SIGTERM)
        assert ranks[0].wait(timeout=10) == 128 + signal.SIGTERM
        said = ranks[0].stderr.read()
        assert said.count("saving after this step") == 1 and said.startswith("SIGUSR1")
    finally:
        for r in ranks:
            r.kill()
            r.wait()
