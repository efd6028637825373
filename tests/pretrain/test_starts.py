"""`infty pretrain` as people start it: under every launcher, and with a mistake."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import small_run

BIN = Path(sys.executable).parent
SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def write(root: Path, **changes) -> Path:
    values = {"run__steps": 2, "parallel__zero_stage": 3, "batch__window_segments": 2} | changes
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(root / "run", root / "data", **values)))
    return path


def start(
    config: Path,
    *more: str,
    before: tuple[str, ...] = (sys.executable,),
    module: tuple[str, ...] = ("-m", "infty_tools"),
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in SET_BY_LAUNCHERS}
    env |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}"}
    return subprocess.run(
        [*before, *module, "pretrain", "--config", str(config), *more],
        env=env,
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def root(tmp_path):
    small_run.write_dataset(tmp_path / "data")
    return tmp_path


def free_port() -> str:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "mpirun"])
def test_two_processes_under(root, launcher):
    if not (BIN / launcher).exists() or (
        launcher == "mpirun" and importlib.util.find_spec("mpi4py") is None
    ):
        pytest.skip(f"{launcher} is not installed beside {sys.executable}")
    port = free_port()
    before, module = {
        "torchrun": (
            (str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", port),
            ("-m", "infty_tools"),
        ),
        "deepspeed": (
            (str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", port, "--module"),
            ("infty_tools",),
        ),
        "mpirun": ((str(BIN / "mpirun"), "-n", "2", sys.executable), ("-m", "infty_tools")),
    }[launcher]
    done = start(write(root, parallel__tensor=2), before=before, module=module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 process(es) (1 data x 2 tensor parallel, ZeRO-3" in done.stdout
    assert [row[0] for row in small_run.curve(root / "run")] == [1, 2]


def test_a_typo_is_told_in_one_message(root):
    done = start(write(root), "optimizer.leraning_rate=1")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (
        len(lines) == 1
        and "unknown key 'leraning_rate'" in lines[0]
        and "Traceback" not in done.stderr
    )
    assert not (root / "run").exists()
