"""Requests to stop: what sets the flag, and what a second request does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from infty_pretrain import signals


@pytest.fixture
def flag(tmp_path, single_process):
    before = {n: signal.getsignal(n) for n in signals._HANDLED}
    yield lambda **options: signals.StopFlag(tmp_path, "cpu", **options)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals._HANDLED)
def test_a_signal_is_remembered_and_obeyed_later(flag, number):
    stop = flag()
    assert not stop.agreed()[0]
    os.kill(os.getpid(), number)
    assert stop.agreed()[0] and stop.reason == number.name
    os.kill(os.getpid(), signal.SIGTERM)  # at once after the first: a launcher passing the same request on
    assert stop.agreed()[0] and stop.reason == number.name


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


CHILD = """
import os, signal, sys, time
from pathlib import Path
from infty_pretrain import signals
if sys.argv[1] == "worker":
    signals.ignore_in_worker()
else:
    signals.SAME_REQUEST = 0.2
    signals.StopFlag(Path("."), "cpu")
for name in ("SIGUSR1", "SIGTERM"):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.3)
print("alive", flush=True)
"""


def child(kind: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", CHILD, kind], capture_output=True, text=True, timeout=60, check=False)


def test_a_second_signal_stops_at_once():
    done = child("trainer")
    assert done.returncode == 128 + signal.SIGTERM and "alive" not in done.stdout
    assert "SIGUSR1: saving after this step" in done.stderr


def test_workers_leave_signals_to_their_parent():
    done = child("worker")
    assert done.returncode == 0 and "alive" in done.stdout
