"""`infty pretrain`: train a model, or go on with its training."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

REQUEUE = 85  # as in infty_pretrain.signals, which is slow to import


def pretrain(
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the config: section.key=value")] = None,
    config: Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file")] = Path("config.yaml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the config, stop")] = False,
) -> None:
    """Pretrain a model; started again, go on from the newest checkpoint.

    Works by itself (one process) and under torchrun, deepspeed, mpirun and srun.

    Examples:

      infty pretrain --config configs/demo.yaml run.folder=runs/first optimizer.lr=5e-4

      torchrun --nproc-per-node 2 -m infty_tools pretrain --config configs/demo.yaml

    Ctrl-C, SIGTERM, SIGUSR1 or a file `stop` in the run's folder end it after the current step with a checkpoint and
    exit status 85; another signal, 3 seconds later or more, ends it at once.
    """
    if not dry_run:
        _end_when_told()
    from infty_pretrain import config as configs
    from infty_pretrain import launch

    resolved = configs.load(config, overrides)
    here = launch.detect()
    if dry_run:
        _show(resolved, here)
        return
    launch.quiet()
    from infty_pretrain.trainer import Trainer

    launch.leave(here, Trainer(resolved, here).run())


def _end_when_told() -> None:
    """SIGTERM and SIGUSR1 end the process at once with status 85, until the training program listens to them itself:
    nothing was begun, so nothing is lost.

    Python calls a handler only between two of its own instructions, and connecting is one that waits for the other
    processes. So a thread looks after the signals.
    """
    told, wakes = os.pipe()
    os.set_blocking(wakes, False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _end)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told,), daemon=True, name="early signals").start()


def _end(_number: int, _frame: object) -> None:
    os._exit(REQUEUE)


def _watch(told: int) -> None:
    while signal.getsignal(os.read(told, 1)[0]) is not _end:  # another one, or a handler that came later
        pass
    os._exit(REQUEUE)


def _show(config, here) -> None:
    import torch
    from rich.console import Console
    from rich.syntax import Syntax

    from infty_pretrain.trainer import validate

    config = validate(config, here.world)
    if here.rank == 0:
        Console().print(Syntax(config.to_yaml(), "yaml", background_color="default"))
        print(f"valid for {here.world} process(es) ({here.launcher}); torch {torch.__version__}; "
              f"{config.total_steps:,} steps of {config.tokens_per_step:,} tokens. Nothing was started.")
