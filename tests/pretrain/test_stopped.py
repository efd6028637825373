"""A run that is stopped under one launcher, by a signal to everything as Ctrl-C sends it, finished under another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from infty_pretrain import checkpoint
from support import small_run

EARLY = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
BIN = Path(sys.executable).parent


def command(launcher: str, *words: str) -> list[str]:
    starts = {
        "torchrun": [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2"],
        "mpirun": [str(BIN / "mpirun"), "-n", "2", sys.executable],
    }
    return [*starts[launcher], "-m", "infty_tools", *words]


def environment() -> dict[str, str]:
    set_by_launchers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in set_by_launchers}
    return env | {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}"}


def finish(launcher: str, *words: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(launcher, *words),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def stop(words: list[str], run: Path, number: signal.Signals, steps: int) -> None:
    """Start, wait for some steps, send a signal to the launcher and all its processes, wait for the end."""
    with open(run.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(
            words, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline, rows = time.monotonic() + 300, run / "metrics.jsonl"
        while not rows.exists() or len(rows.read_text().splitlines()) < steps:
            assert process.poll() is None and time.monotonic() < deadline, run.with_suffix(
                ".log"
            ).read_text()
            time.sleep(0.05)
        os.killpg(process.pid, number)
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_stopped_under_torchrun_finished_under_mpirun_evaluated(tmp_path):
    if not (BIN / "mpirun").exists():
        pytest.skip("mpirun is not installed")
    data, run = small_run.write_dataset(tmp_path / "data"), tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            small_run.values(run, data, run__steps=3000, parallel__tensor=2, parallel__zero_stage=3)
        )
    )
    stop(command("torchrun", "pretrain", "--config", str(config)), run, signal.SIGINT, steps=4)
    assert (
        "rerun the same command to resume from the checkpoint of step"
        in run.with_suffix(".log").read_text()
    )
    stopped_at = len(small_run.curve(run))
    assert checkpoint.newest_valid(run / "checkpoints").name == f"step-{stopped_at:08d}"

    last = stopped_at + 2
    done = finish("mpirun", "pretrain", "--config", str(config), f"run.steps={last}")
    assert f"at step {stopped_at}" in done.stdout and f"done: {last} steps" in done.stdout
    assert [row[0] for row in small_run.curve(run)] == list(range(1, last + 1))

    one = small_run.write_dataset(
        tmp_path / "one", [150]
    )  # fewer documents than processes: a rank without any
    finish(
        "mpirun",
        "evaluate",
        str(run),
        "--data",
        str(one),
        "--output",
        str(tmp_path / "figures"),
    )
    figures = json.loads((tmp_path / "figures").read_text())
    modes = figures["models"][0]["memory"]
    assert all(modes[m]["tokens"] == 149 and 0 < modes[m]["nll"] < 5 for m in ("on", "off"))


def _listens_to_signals(process: subprocess.Popen, _port: int) -> bool:
    """Whether Python has a handler for every signal: most of its imports are still to come."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(
        next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16
    )
    return all(caught >> (number - 1) & 1 for number in EARLY)


def _waits_for_another(_process: subprocess.Popen, port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def hangups_are_not_ignored():
    """As they are for what nohup starts, perhaps these tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_are_not_ignored")
@pytest.mark.parametrize("number", EARLY)
@pytest.mark.parametrize("moment", [_listens_to_signals, _waits_for_another])
def test_stopped_before_anything_has_begun(tmp_path, moment, number):
    config = tmp_path / "config.yaml"
    config.write_text(
        yaml.safe_dump(
            small_run.values(tmp_path / "run", small_run.write_dataset(tmp_path / "data"))
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first_of_two = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "infty_tools", "pretrain", "--config", str(config)],
        env=environment() | first_of_two,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not moment(process, port):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            assert process.wait(20) == 85
        finally:
            process.kill()
