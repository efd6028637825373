"""`infty evaluate`: perplexity and right answers on held-out documents, of one model or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infty import files
from infty.errors import UserError
from infty_tools.options import any_path, any_text_prints, check_new_file, printable, whole

MODES = ("on", "off", "emptied", "other")
"""The names in `infty_pretrain.memory_modes.MODES`, which is not imported for a command line."""
LARGEST_WINDOW = 2**24


def _modes(text: str) -> tuple[str, ...]:
    given = tuple(text.split(","))
    odd = [name for name in given if name not in MODES]
    if odd or len(set(given)) != len(given):
        raise typer.BadParameter(
            f"{printable(text)} must be one or more of {', '.join(MODES)}, each once, separated by commas"
        )
    return given


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(
            parser=any_path,
            metavar="MODEL",
            help="A run's folder (its newest whole checkpoint), a checkpoint, an export, or a folder with another "
            "Hugging Face causal language model; the first is what the others are compared with",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A dataset made by `infty prepare` with the models' tokenizer, or by a task",
        ),
    ],
    memory: Annotated[
        str,
        typer.Option(
            parser=_modes,
            metavar="MODES",
            help="How the long-term memory is read: on; off; emptied (every segment is read as if its document "
            "began there); other (the memory of a reading of other documents). Several with commas between",
        ),
    ] = "on,off",
    documents: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 2**31),
            metavar="N",
            help="Read only this many documents, from the first",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            parser=whole(2, 2**40), metavar="N", help="Read only this many tokens of each document"
        ),
    ] = None,
    lanes: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Documents read side by side")
    ] = 8,
    window: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, LARGEST_WINDOW),
            metavar="N",
            help="Tokens that a Hugging Face model sees at once; left out: as many as it has positions",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, LARGEST_WINDOW),
            metavar="N",
            help="Tokens by which its window moves on; the window's length reads in blocks; left out: half the window",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="PATH", help="Also write the figures to this JSON file"
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="PATH", help="Also draw the curves as PNG files in this folder"
        ),
    ] = None,
) -> None:
    """Evaluate models on whole documents, each read once from its start.

    Examples:

      infty evaluate runs/first --data data/books/validation

      infty evaluate runs/without runs/with --data data/books/validation --output figures.json --plots plots

    Perplexity a token, a word and a byte, whole and by position in the document; right answers by length and depth
    where the dataset carries answers; intervals by a bootstrap over documents. What a memory is worth is seen beside
    a model that was trained without one: name that one first. "off" shows something else: the weights of a model that
    was trained with its memory have leaned on it. Works in one process and under launchers.
    """
    from infty_pretrain import launch

    any_text_prints()
    _check(models, output, plots)
    here = launch.detect()
    launch.quiet()
    from infty_tools.evaluate.run import Request, run

    found = run(
        Request(models, data, memory, lanes, documents, tokens, window, stride),
        here,
    )
    if here.rank == 0:
        from infty_tools.evaluate import report
        from infty_tools.evaluate.plots import draw

        report.show(found)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(output, found)
        if plots is not None:
            for path in draw(found, plots):
                print(f"drawn: {printable(path)}")
    launch.leave(here, 0)


def _check(models: Sequence[Path], output: Path | None, plots: Path | None) -> None:
    """Refuse what can be refused before anything is read. Raises UserError."""
    twice = [path for i, path in enumerate(models) if path in models[:i]]
    if twice:
        raise UserError(f"{printable(twice[0])} is given twice: name each model once")
    if output is not None:
        check_new_file(output, "--output")
    if plots is not None:
        from infty_tools.plots import pyplot

        if plots.exists() and not plots.is_dir():
            raise UserError(f"--plots {printable(plots)} is a file: name a folder")
        check_new_file(plots / "position.png", "--plots")
        pyplot()
