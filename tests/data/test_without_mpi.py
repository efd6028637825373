"""mpi4py is an extra: everything but `mpirun` works without it."""

from __future__ import annotations

import os
import subprocess
import sys

from support.small_data import contents

WITHOUT = """
import sys
sys.modules["mpi4py"] = None  # importing it fails, as where it is not installed
sys.argv[0] = "infty"
from infty_tools.cli import main
main()
"""


def infty(*words: object, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


def test_prepare_and_pretrain_need_no_mpi(prepared, tmp_path):
    done = infty(
        "prepare",
        "--input",
        prepared / "books",
        "--validation-documents",
        2,
        "--vocab-size",
        330,
        "--output",
        tmp_path / "data",
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "data") == contents(prepared / "data")
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {hidden_size: 32, layers: 1, heads: 2, segment_length: 16, memory: {basis: 16}}\n"
        "batch: {lanes: 2, window_segments: 2}\nlogging: {tensorboard: false}\n"
    )
    done = infty(
        "pretrain",
        "--config",
        config,
        "run.steps=2",
        f"run.folder={tmp_path / 'run'}",
        f"data.train={tmp_path / 'data' / 'train'}",
    )
    assert done.returncode == 0, done.stderr
    assert "done: 2 steps" in done.stdout


def test_mpirun_says_what_it_needs(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("run: {steps: 1}\n")
    done = infty("pretrain", "--config", config, PMI_RANK="0", PMI_SIZE="2")
    assert done.returncode == 2
    assert "needs mpi4py: pip install 'infty[mpi]'" in done.stderr
