"""The whole path on a real Slurm cluster: submit, train on two nodes, be stopped, requeued, lose a node, finish.

The losses are those of a run that nothing happened to, to the bit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import slurm_cluster

pytestmark = pytest.mark.skipif(
    slurm_cluster.missing() is not None, reason=slurm_cluster.missing() or ""
)
STEPS = 36
CONFIG = f"""
run: {{folder: run, steps: {STEPS}}}
data: {{train: data/train}}
model: {{hidden_size: 128, layers: 3, heads: 4, segment_length: 64, stm_length: 64, memory: {{basis: 64}}}}
batch: {{lanes: 8, window_segments: 4}}
optimizer: {{lr: 1e-3}}
parallel: {{tensor: 2, zero_stage: 1}}
checkpoint: {{every: 4, keep_last: 3}}
logging: {{every: 1, tensorboard: false}}
"""


def _infty(*words: str, folder: Path, environment: dict | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "infty_tools", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=(environment or os.environ) | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm-training")
    (folder / "books").mkdir()
    for book in range(6):
        words = " ".join(f"word{(i * i + 7 * book) % 97} of book {book}." for i in range(900))
        (folder / "books" / f"book{book}.txt").write_text(words)
    _infty(
        "prepare",
        "--input",
        "books",
        "--output",
        "data",
        "--vocab-size",
        "280",
        "--workers",
        "1",
        folder=folder,
    )
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def _rows(run: Path) -> dict[int, dict]:
    """The newest row of every step: a run that lost steps trains them again."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["step"]: row for row in rows if "loss" in row}


def _submit(cluster, folder: Path, *words: str, nodes: int = 2) -> str:
    """Two processes in all, one or two a node; from a shell in which something else was launched."""
    out = _infty(
        "submit",
        "--config",
        "config.yaml",
        "--nodes",
        str(nodes),
        "--gpus-per-node",
        "0",
        "--tasks-per-node",
        str(2 // nodes),
        "--cpus-per-task",
        "1",
        "--time",
        "20",
        *words,
        folder=folder,
        environment=cluster.environment | {"RANK": "7", "WORLD_SIZE": "9", "LOCAL_RANK": "7"},
    )
    return out.split("submitted job ")[1].split()[0]


def _submit_other(cluster, folder: Path, verb: str, *words: str) -> str:
    """Submit an evaluation or a preprocessing on two nodes; wait for its end; return its summary and logs."""
    out = _infty(
        "submit",
        "--verb",
        verb,
        "--nodes",
        "2",
        "--gpus-per-node",
        "0",
        "--tasks-per-node",
        "1",
        "--cpus-per-task",
        "1",
        "--time",
        "10",
        "--",
        *words,
        folder=folder,
        environment=cluster.environment,
    )
    number = out.split("submitted job ")[1].split()[0]
    cluster.wait(
        lambda: cluster.job(number)["JobState"] in ("COMPLETED", "FAILED"), 600, f"{verb} to end"
    )
    said = "\n".join(p.read_text() for p in sorted((folder / "logs" / number).iterdir()))
    assert cluster.job(number)["JobState"] == "COMPLETED", said
    return said


@pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py: pip install infty[mpi]"
)
def test_preprocessing_by_mpi_ranks_is_that_of_one_process(workplace):
    with slurm_cluster.Cluster() as cluster:
        said = _submit_other(
            cluster,
            workplace,
            "prepare",
            "--input",
            "books",
            "--output",
            "by-slurm",
            "--vocab-size",
            "280",
        )
    assert "start 1 of" in said and "finished" in said
    for name in ("tokens.bin", "tokens.idx"):
        assert (workplace / "by-slurm/train" / name).read_bytes() == (
            workplace / "data/train" / name
        ).read_bytes()


def test_submit_train_signal_requeue_node_failure_finish(workplace):
    with slurm_cluster.Cluster() as cluster:
        quiet = _submit(cluster, workplace, "run.folder=quiet", nodes=1)
        number = _submit(cluster, workplace)
        (workplace / "config.yaml").write_text(
            "run: {steps: 0}"
        )  # a job keeps the config it was submitted with
        run, logs = workplace / "run", workplace / "run-slurm"

        def summary() -> str:
            path = logs / number / "summary.txt"
            return path.read_text() if path.exists() else ""

        def trained(steps: int, start: int):
            return lambda: f"start {start} " in summary() and len(_rows(run)) >= steps

        def explained(condition, seconds: float, what: str) -> None:
            try:
                cluster.wait(condition, seconds, what)
            except TimeoutError as error:
                texts = [
                    p.read_text()
                    for p in sorted(logs.rglob("*"))
                    if p.is_file() and p.suffix in (".log", ".out")
                ]
                raise AssertionError("\n".join([str(error), summary(), *texts])) from None

        explained(trained(6, 1), 600, "the first steps")
        cluster.slurm("scancel", "--batch", "--signal=USR1", number)
        explained(trained(14, 2), 600, "steps after the signal")
        cluster.slurm("scontrol", "requeue", number)
        explained(trained(22, 3), 600, "steps after the requeue")
        cluster.fail_node(cluster.nodes[1])
        explained(
            lambda: cluster.job(number)["JobState"] != "RUNNING", 600, "the job to lose its node"
        )
        cluster.start_node(cluster.nodes[1])
        explained(lambda: "finished" in summary(), 600, "the end")
        explained(lambda: cluster.job(number)["JobState"] == "COMPLETED", 20, "the job to complete")
        explained(
            lambda: cluster.job(quiet)["JobState"] == "COMPLETED", 600, "the quiet run to end"
        )

        # One log a node, for both of its processes.
        assert [p.name for p in (workplace / "quiet-slurm" / quiet).glob("node-*.log")] == [
            "node-0.log"
        ]
        assert (
            "fine for 2 processes" in (workplace / "quiet-slurm" / quiet / "node-0.log").read_text()
        )

        said = _submit_other(
            cluster,
            workplace,
            "evaluate",
            "run",
            "--data",
            "data/train",
            "--output",
            "evaluation.json",
        )
        assert json.loads((workplace / "evaluation.json").read_text()), said
        assert "told to stop" in summary() and summary().count("preflight passed") >= 4
        assert "resumed from" in (logs / number / "node-0.log").read_text()
    losses, expected = _rows(run), _rows(workplace / "quiet")
    assert sorted(losses) == sorted(expected) == list(range(1, STEPS + 1))
    for key in ("loss", "grad_norm"):
        assert [losses[s][key] for s in losses] == [expected[s][key] for s in sorted(losses)], key
