"""`infty pretrain`: train a model, or go on with its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
