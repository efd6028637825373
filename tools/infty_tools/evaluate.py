"""`infty evaluate`: perplexity of held-out documents, whole and by place, with the memory on and off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infty import files
from infty_tools.options import any_path, check_new_file, whole


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A run's folder (its newest whole checkpoint), or one checkpoint",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A dataset made by `infty prepare` with the run's tokenizer",
        ),
    ],
    lanes: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Documents read side by side")
    ] = 8,
    windows: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 2**31), metavar="N", help="Read only this many windows of each lane"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="PATH", help="Also write the figures to this JSON file"
        ),
    ] = None,
) -> None:
    """Evaluate a checkpoint on whole documents, with the long-term memory on and off.

    Example:

      infty evaluate --checkpoint runs/first --data data/books/validation

    Every document is read once from its start. "Off" means that every segment finds an empty memory; the weights are
    the same, and have leaned on it: what a memory is worth is seen beside a model that was trained without one.
    Works in one process and under launchers (with the run's parallel.tensor or any other).
    """
    from infty_pretrain import launch

    if output is not None:
        check_new_file(output, "--output")
    here = launch.detect()
    launch.quiet()
    from infty_pretrain.evaluator import Evaluator

    figures = Evaluator(checkpoint, data, here).run(lanes, windows)
    if here.rank == 0:
        _show(figures)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(output, figures)
    launch.leave(here, 0)


def _show(figures: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "memory",
        "tokens",
        "nats a token",
        "perplexity",
        "95 % over documents",
        "perplexity a word",
        "right",
    )
    for mode, f in figures.items():
        word = f"{f['word_perplexity']:,.1f}" if "word_perplexity" in f else "-"
        perplexity = f"{f['perplexity']:,.2f}" if "perplexity" in f else "-"
        interval = "{:,.2f} to {:,.2f}".format(*f["interval"]) if "interval" in f else "-"
        table.add_row(
            mode,
            f"{f['tokens']:,}",
            f"{f['nll']:.4f}",
            perplexity,
            interval,
            word,
            f"{100 * f['accuracy']:.1f}%",
        )
    Console().print(table)
    curve = Table(
        "tokens of a document",
        *(f"memory {mode}" for mode in figures),
        title="nats a token, by place",
    )
    for rows in zip(*(f["by_position"] for f in figures.values()), strict=True):
        curve.add_row(
            f"{rows[0]['from']:,} to {rows[0]['to']:,}", *(f"{row['nll']:.4f}" for row in rows)
        )
    Console().print(curve)
