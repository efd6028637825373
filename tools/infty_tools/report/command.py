"""`infty report`: a run's story, or several runs side by side, in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infty import files
from infty.errors import UserError
from infty_tools.options import any_path, any_text_prints, check_new_file, printable

PAGE = Path("report.html")


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=any_path,
            metavar="RUN",
            help="The folder of a run (its run.folder), also while it trains; several stand side by side",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help=f"File to write; left out: {PAGE}, and the terminal for --markdown and --json",
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Tables as Markdown instead of a page")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Everything as JSON instead of a page")
    ] = False,
) -> None:
    """Tell the story of a run in one HTML file that needs no network, or of several runs side by side.

    Examples:

      infty report runs/demo

      infty report runs/with runs/without --output compared.html

    Config, curves, perplexity by position, what is in the memory, restarts, skipped steps, checkpoints; and what
    `infty evaluate --output` wrote into the run's folder. Nothing but the folder is read.
    """
    any_text_prints()
    suffix = ".md" if markdown else ".json" if json else ".html"
    target = output if output is not None or markdown or json else PAGE
    _check(runs, target, suffix, markdown and json)
    text = _text(runs, suffix)
    if target is None:
        print(text, end="")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(target, text.encode("utf-8", "backslashreplace"))
    print(f"written: {printable(target)}")


def _check(runs: Sequence[Path], target: Path | None, suffix: str, both: bool) -> None:
    """Refuse what can be refused before anything is read. Raises UserError."""
    if both:
        raise UserError("--markdown and --json exclude each other: choose one")
    twice = [path for i, path in enumerate(runs) if path in runs[:i]]
    if twice:
        raise UserError(f"{printable(twice[0])} is given twice: name each run once")
    if target is not None:
        if target.suffix != suffix:  # a run's own files cannot be written over by mistake
            raise UserError(f"--output {printable(target)} must end in {suffix}")
        check_new_file(target, "--output")


def _text(runs: Sequence[Path], suffix: str) -> str:
    import json

    from infty_tools.report import reading
    from infty_tools.report.summary import summary

    if suffix == ".html":
        from infty_tools.plots import pyplot

        pyplot("take --markdown or --json")
    found = summary([reading.read(*both) for both in zip(runs, reading.names(runs))])
    if suffix == ".json":
        return json.dumps(found, indent=1) + "\n"
    if suffix == ".md":
        from infty_tools.report.markdown import markdown

        return markdown(found)
    from infty_tools.report.page import page

    return page(found)
