"""`infty pretrain`: train a model, or go on with its training."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from infty import exit_codes, stopping
from infty_tools.options import ConfigChanges, ConfigFile
from infty_tools.outlast import outlast_readers


def pretrain(
    overrides: ConfigChanges = None,
    config: ConfigFile = Path("config.yaml"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the config, then stop")
    ] = False,
) -> None:
    """Pretrain a model; started again, go on from the newest checkpoint.

    Works by itself (one process) and under torchrun, deepspeed, mpirun and srun.

    Examples:

      infty pretrain --config configs/demo.yaml run.folder=runs/first optimizer.lr=5e-4

      torchrun --nproc-per-node 2 -m infty_tools pretrain --config configs/demo.yaml

    Ctrl-C, a closed terminal (not under nohup), SIGTERM, SIGUSR1, SIGUSR2 or a file `stop` in the run's folder end it
    after the current step with a checkpoint and exit status 85; another signal, 3 seconds later or more, ends it at
    once.
    """
    if not dry_run:
        _end_when_told()
        outlast_readers()
    from infty_pretrain import config as configs
    from infty_pretrain import launch
    from infty_pretrain.idle import idle_keys

    given = configs.written(config, overrides)
    resolved = configs.from_dict(given, str(config))
    here = launch.detect()
    if here.rank == 0:
        for sentence in idle_keys(given, resolved):
            print(f"note: {sentence}", flush=True)
    launch.quiet()
    if dry_run:
        _show(resolved, here)
        return
    from infty_pretrain.trainer import Trainer

    launch.leave(here, Trainer(resolved, here).run())


def _end_when_told() -> None:
    """A request to stop ends the process at once with status 85, until the training program listens to it itself:
    nothing was begun, so nothing is lost. (Ctrl-C raises KeyboardInterrupt: whoever types it wants no requeue.)

    Python calls a handler only between two of its own instructions, and connecting is one that waits for the other
    processes. So a thread looks after the signals.
    """
    told, wakes = os.pipe()
    os.set_blocking(wakes, False)
    for number in set(stopping.requests()) - {signal.SIGINT}:
        signal.signal(number, _end)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told,), daemon=True, name="early signals").start()


def _end(_number: int, _frame: object) -> None:
    os._exit(exit_codes.STOPPED)


def _watch(told: int) -> None:
    while (
        signal.getsignal(os.read(told, 1)[0]) is not _end
    ):  # another one, or a handler that came later
        pass
    os._exit(exit_codes.STOPPED)


def _show(config, here) -> None:
    import torch
    from rich.console import Console
    from rich.syntax import Syntax

    from infty.data.documents import Documents
    from infty_pretrain.trainer import crowding, validate

    config = validate(config, here.world)
    if here.rank == 0:
        Console().print(Syntax(config.to_yaml(), "yaml", background_color="default"))
        print(
            f"valid for {here.world} process(es) ({here.launcher}); torch {torch.__version__}; "
            f"{config.total_steps:,} steps, {config.total_tokens:,} tokens. Nothing was started."
        )
        if crowded := crowding(Documents.open(config.data.train).lengths, config.batch.lanes):
            print(crowded)
