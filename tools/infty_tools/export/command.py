"""`infty export`: a checkpoint as a folder that plain transformers loads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from infty_tools.export.dtypes import DTYPES
from infty_tools.options import any_path, file_size, new_folder, one_of


def export(
    checkpoint: Annotated[
        Path,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A run's folder (its newest whole checkpoint), or one checkpoint",
        ),
    ],
    output: Annotated[
        Path, typer.Option(parser=new_folder, metavar="PATH", help="The folder to make")
    ],
    dtype: Annotated[
        str,
        typer.Option(
            parser=one_of(*DTYPES),
            metavar="DTYPE",
            help=f"Numbers of the weights: {', '.join(DTYPES)}",
        ),
    ] = "float32",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="The tokenizer, if it is no longer where the run found it: a "
            "dataset's folder, a .model or a tokenizer.json",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an export that is already there")
    ] = False,
    max_shard: Annotated[
        str,
        typer.Option(
            parser=file_size, metavar="SIZE", help="Largest weight file, such as 500MB or 5GB"
        ),
    ] = "5GB",
) -> None:
    """Write a checkpoint as a Hugging Face model that stands alone.

    Example:

      infty export --checkpoint runs/first --output exports/first

    The folder holds weights, tokenizer and code: transformers loads it with trust_remote_code=True on a machine that
    has torch and transformers only. Before it appears under its name, it is loaded in such a process, and its logits
    and tokens are compared with those of the trained model.
    """
    from infty_pretrain import launch

    here = launch.detect()
    launch.quiet()
    from rich.console import Console

    from infty.errors import UserError
    from infty_tools.export.exporter import Exporter, check_free

    if here.world > 1:
        raise UserError("infty export runs in one process: start it without a launcher")
    console = Console(markup=False, highlight=False, emoji=False)  # paths may look like markup
    with console.status("reading the checkpoint") as status:
        check_free(output, force)
        exporter = Exporter(checkpoint, dtype, tokenizer, max_shard, status.update)
        launch.connect(here, tensor=1)
        size, report = exporter.write(output, force)
    console.print(f"{output}: {size}. {report}")
    model = shlex.quote(str(output))
    console.print(
        "Next: write on from a beginning of your own\n"
        f"  infty generate --model {model} --prompt 'Once more unto the breach'",
        soft_wrap=True,
    )
    launch.leave(here, 0)
