"""`infty doctor`: is everything here that a run needs? On a laptop, or in every task of a job
before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infty.errors import UserError
from infty_tools.options import ConfigChanges, any_path

if TYPE_CHECKING:
    from infty_tools.doctor.findings import Finding


COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def doctor(
    overrides: ConfigChanges = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            parser=any_path,
            metavar="PATH",
            help="The run to check for; left out: this installation alone",
        ),
    ] = None,
) -> None:
    """Check this installation, and with a config all that a run needs, on every process of a
    launcher.

    Versions, devices, communication and its speed between the processes, clocks, whether all of
    them see the run's folder, its space and speed, and whether every process can read the dataset
    and its tokenizer. Exits with status 1 when something is wrong, and says what to do. Where a run
    goes on from a checkpoint of its own, too little space or speed is only a warning.

    Examples:

      infty doctor

      srun --nodes 2 --ntasks-per-node 8 infty doctor --config configs/pg19-1.3b.yaml
    """
    from infty_pretrain import config as configs
    from infty_pretrain import launch

    resolved = configs.load(config, overrides) if config is not None else None
    if resolved is None and overrides:
        raise UserError("changes to a config need one: add --config")
    here = launch.detect()
    launch.quiet()
    from infty_tools.doctor import checks

    findings = checks.run(resolved, here)
    wrong = any(f.wrong for f in findings)
    if here.rank == 0:
        _show(findings, here.world)
    launch.leave(here, 1 if wrong else 0)


def _show(findings: list[Finding], world: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "check", "found", box=None, pad_edge=False)
    for f in findings:
        table.add_row(f"[{COLOURS[f.verdict]}]{f.verdict}[/]", f.check, escape(f.found))
    console = Console(highlight=False)
    console.print(table)
    advice = [f for f in findings if not f.fine]
    for f in advice:
        console.print(f"[{COLOURS[f.verdict]}]{f.check}:[/] {escape(f.advice)}", soft_wrap=True)
    if not advice:
        console.print(f"everything is fine for {world} process{'es' if world > 1 else ''}")
