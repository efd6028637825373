"""Runs to be harmed: a small model on a small dataset, in real processes of this machine, started hundreds of times.

Every start is the `infty pretrain` that users start, in a process forked from one that has done the imports.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infty_tools import processes

if TYPE_CHECKING:
    import torch

LENGTHS = (130, 47, 220, 75, 160, 33, 98, 64, 181)
STEPS, LANES = 10, 4
WORLD = 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "data parallel, ZeRO-1": {"parallel": {"zero_stage": 1}},
    "data parallel, ZeRO-3": {"parallel": {"zero_stage": 3}},
    "tensor parallel, ZeRO-3": {"parallel": {"tensor": 2, "zero_stage": 3}},
    "tensor parallel, ZeRO-2, bf16": {
        "parallel": {"tensor": 2, "zero_stage": 2},
        "precision": "bf16",
    },
}
PATIENCE = 60.0
"""Seconds after which processes that should end by themselves count as hanging."""


def dataset(folder: Path) -> Path:
    """A few documents of unequal length, in random symbols."""
    import numpy as np

    from infty.data.build import DatasetWriter
    from infty.data.tokenizer import Tokenizer
    from infty_tools.tasks import sorting

    path = folder / "tokenizer.json"
    sorting.tokenizer().save(str(path))
    writer, random = DatasetWriter(folder / "data", Tokenizer.load(path)), np.random.default_rng(0)
    for i, n in enumerate(LENGTHS):
        writer.add(f"document-{i}", random.integers(0, sorting.SYMBOLS, n), n)
    writer.finish({"task": "faults"})
    return folder / "data"


def write_config(
    path: Path, run: Path, data: Path, layout: str, **sections: dict[str, Any]
) -> Path:
    """A run's YAML file; `sections` are merged into it."""
    values: dict[str, Any] = {
        "run": {"folder": str(run), "steps": STEPS, "stall_minutes": 8 / 60},
        "data": {"train": str(data)},
        "model": {
            "hidden_size": 32,
            "layers": 2,
            "heads": 4,
            "segment_length": 8,
            "stm_length": 8,
            "vocab_multiple": 8,
            "dropout": 0.1,
            "memory": {"basis": 16, "bins": 16},
        },
        "batch": {"lanes": LANES, "window_segments": 3},
        "optimizer": {"lr": 3e-3},
        "schedule": {"warmup_steps": 2},
        "checkpoint": {"every": 1, "keep_last": 100},
        "faults": {"spike_window": 6},
        "logging": {"every": 2, "tensorboard": False},
    }
    for given in (LAYOUTS[layout], sections):
        for name, section in given.items():
            values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


class Start:
    """One start of a run: all ranks, without a launcher that would end one when the other ends."""

    def __init__(self, config: Path, log: Path, harm: Callable[[int], None] | None = None) -> None:
        """`harm(rank)` is called in every process before it begins."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.logs = [log.with_suffix(f".{rank}.log") for rank in range(WORLD)]
        for path in self.logs:
            path.write_bytes(b"")
        self.began = time.monotonic()
        arguments = [
            (rank, port, str(log), str(config), harm) for rank, log in enumerate(self.logs)
        ]
        self.processes = [
            processes.context().Process(target=_rank, args=a, daemon=True) for a in arguments
        ]
        for process in self.processes:
            process.start()

    def codes(self) -> list[int | None]:
        """Exit statuses; negative: a signal; None: still running."""
        return [process.exitcode for process in self.processes]

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.logs)

    def wait(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Wait until all processes have ended (or `until` says yes); whether that came in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if until is not None and until():
                return True
            if None not in self.codes():
                return until is None
            time.sleep(0.002)
        return False

    def signal(self, number: int, ranks: Iterable[int]) -> None:
        for rank in ranks:
            if self.processes[rank].exitcode is None:
                os.kill(self.processes[rank].pid, number)

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()  # also ends a process that was stopped
            process.join()


def _rank(rank: int, port: int, log: str, config: str, harm: Callable[[int], None] | None) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(WORLD),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from infty_tools import cli

    if harm is not None:
        harm(rank)
    sys.argv = ["infty", "pretrain", "--config", config]
    cli.main()


def curve(run: Path) -> list[tuple]:
    """What a run logged of every step, without the clock's figures."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        tuple(row[k] for k in ("step", "loss", "grad_norm", "lr", "tokens"))
        for row in rows
        if "loss" in row
    ]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by name; lanes one by one."""
    from infty_pretrain.checkpoint import Reader

    return Reader(run / "checkpoints" / f"step-{step:08d}").everything()


def inside_document(run: Path, step: int, lane: int) -> bool:
    """Whether a lane goes on with a document after that step."""
    path = run / "checkpoints" / f"step-{step:08d}" / "run.json"
    place = json.loads(path.read_text())["lanes"]["lanes"][str(lane)]
    return place["document"] >= 0 and place["position"] > 0
