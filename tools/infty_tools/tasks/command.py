"""`infty task`: datasets of questions whose answers are known, as hard as the options say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infty_tools.options import any_path, any_text_prints, whole
from infty_tools.progress import Progress, orderly_end
from infty_tools.tasks.base import MOST, Task

# name -> (module, function), as the verbs of infty_tools.cli.
TASKS = {
    "sorting": ("tasks.sorting", "sorting"),
    "facts": ("tasks.facts", "facts"),
    "needle": ("tasks.needle", "needle"),
    "stories": ("tasks.stories", "stories"),
    "copy": ("tasks.copying", "copy"),
}

Text = Annotated[
    Path,
    typer.Option(
        parser=any_path, metavar="PATH", help="Prose: a prepared output or dataset, or text files"
    ),
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(
        parser=any_path,
        metavar="PATH",
        help="Sentencepiece .model, tokenizer.json or dataset; left out: that of --text",
    ),
]
Samples = Annotated[
    int, typer.Option(parser=whole(1, MOST), metavar="N", help="Documents to train on")
]
ValidationSamples = Annotated[
    int, typer.Option(parser=whole(1, MOST), metavar="N", help="Documents held out")
]
Seed = Annotated[
    int,
    typer.Option(
        parser=whole(0, 2**63 - 1), metavar="N", help="The same seed makes the same documents"
    ),
]


def run(task: Task, output: Path, samples: int, validation_samples: int, seed: int) -> None:
    """Make a task's datasets, with a progress bar, and say what was made. Raises UserError."""
    from infty_pretrain import launch

    launch.quiet()
    any_text_prints()
    from infty_tools.tasks.making import make

    with orderly_end(), Progress(enabled=True) as progress:
        report = make(task, output, samples, validation_samples, seed, progress, progress.tell)
    for name, part in report["datasets"].items():
        print(
            f"{output / name}: {part['documents']:,} documents, {part['tokens']:,} tokens, "
            f"{part['answers']:,} answers"
        )
