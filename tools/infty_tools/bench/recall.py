"""`infty bench recall`: which memory remembers? A league of systems on tasks whose answers are known.

Every system is trained by `infty pretrain` on the same documents, with the same blocks, steps and optimizer, and as
many parameters: the feed-forward layers of smaller ones are wider. The window holds a whole document, so gradients
reach all that was written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from infty.errors import UserError
from infty_tools import plots
from infty_tools.bench.league import SYSTEMS, TASKS, Sizes
from infty_tools.options import SEED, check_folder, listed, new_folder, one_of, real, several, whole


def recall(
    tasks: Annotated[
        str, typer.Option(parser=several(one_of(*TASKS)), help="Tasks, separated by commas")
    ] = ",".join(TASKS),
    systems: Annotated[
        str, typer.Option(parser=several(one_of(*SYSTEMS)), help="Systems, separated by commas")
    ] = ",".join(SYSTEMS),
    seeds: Annotated[
        int,
        typer.Option(parser=whole(1, 1_000), metavar="N", help="Runs of every system on a task"),
    ] = 3,
    first_seed: Annotated[
        int, typer.Option(parser=SEED, metavar="N", help="Seed of the first run")
    ] = 1,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 10**9), metavar="N", help="Training steps; left out: the task's own"
        ),
    ] = None,
    hidden: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Hidden size")
    ] = 64,
    layers: Annotated[int, typer.Option(parser=whole(1, 1_000), metavar="N")] = 2,
    lanes: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Documents a step")
    ] = 16,
    lr: Annotated[
        float, typer.Option(parser=real(0, 100, above=True), metavar="X", help="Peak learning rate")
    ] = 3e-3,
    held_out: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Documents of an evaluation")
    ] = 256,
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 4_096), metavar="N", help="Runs trained side by side [one per core]"
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            parser=new_folder,
            metavar="PATH",
            help="Folder for data, runs, rows (recall.jsonl) and the summary (recall.json, .png)",
        ),
    ] = Path("recall"),
) -> None:
    """Train every system on every task, several times; report the share of right answers, also in longer documents.

    Takes hours for all of it. Stop it whenever you like and start it again with the same --out: finished runs
    are kept, and an unfinished one resumes.

    Examples:

      infty bench recall --tasks facts --systems no-memory,associative --out recall

      infty bench recall --out recall
    """
    from infty_pretrain import config as configs
    from infty_tools.bench import league
    from infty_tools.bench.league_runs import League
    from infty_tools.bench.league_table import show, write

    check_folder(out, "--out")
    plots.pyplot()
    sizes = Sizes(hidden, layers, lanes, lr)
    for task in listed(tasks):  # all are checked before one begins
        for system in listed(systems):
            values = league.config(TASKS[task], system, 0, 1, sizes, Path("runs"), Path("data"))
            configs.from_dict(values, f"{system} on {task}")
    if out.exists() and any(out.iterdir()) and not (out / "recall.jsonl").exists():
        raise UserError(f"--out {out} holds other things: give a new folder, or one of this bench")
    made = League(out, sizes, held_out, steps)
    rows = made.run(
        listed(tasks),
        listed(systems),
        range(first_seed, first_seed + seeds),
        jobs or os.cpu_count() or 1,
    )
    show(rows)
    write(rows, out)
