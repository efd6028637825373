"""Runs of the trainer inside the test's own processes: what `processes.run` calls on every rank."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist

from infty.parallel import groups
from infty_pretrain import trainer
from infty_pretrain.launch import Launch
from infty_pretrain.trainer import Trainer
from support import small_run


def train(folder: Path, data: Path, stop_at: int | None = None, **changes) -> int:
    """One start of a run, to its end or until a signal in step `stop_at`; returns the exit code."""
    launch = Launch(dist.get_rank(), dist.get_world_size(), dist.get_rank(), "env")
    trainer.connect = join
    run = Trainer(small_run.config(folder, data, **changes), launch)
    if stop_at is not None:
        plain = run.engine.step

        def step(*arguments):
            # The last rank alone is told to stop, in the middle of a step: all must agree.
            if run.step + 1 == stop_at and dist.get_rank() == dist.get_world_size() - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            return plain(*arguments)

        run.engine.step = step
    code = run.run()
    run.engine.deepspeed.destroy()
    return code


def join(_launch: Launch, tensor: int, _stall_minutes: float | None) -> str:
    """The processes are connected already; only the layout changes from run to run."""
    groups.initialize(tensor=tensor)
    return "cpu"


def copy(source: Path, target: Path) -> None:
    """A run's folder under another name, made by rank 0."""
    if dist.get_rank() == 0:
        shutil.copytree(source, target)
    dist.barrier()


def checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whichever file holds it: weights, moments, lanes (rows by lane id)."""
    from infty_pretrain.checkpoint import Reader

    return Reader(folder / "checkpoints" / f"step-{step:08d}").everything()
