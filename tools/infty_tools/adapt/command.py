"""`infty adapt`: give a pretrained model a memory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from infty_tools.options import SEED, any_path, new_folder, one_of, utf8

MEMORIES = ("none", "continuation", "associative", "continuous")


def adapt(
    model: Annotated[
        Path,
        typer.Argument(
            parser=any_path,
            metavar="MODEL_FOLDER",
            help="A local Hugging Face folder (safetensors or .bin), or a .gguf",
        ),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(parser=utf8, help="Changes to the model's config: model.key=value"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(parser=new_folder, metavar="PATH", help="The folder to make")
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            parser=one_of(*MEMORIES),
            metavar="KIND",
            help="none, continuation, associative or continuous",
        ),
    ] = "none",
    end_token: Annotated[
        str | None,
        typer.Option(
            parser=utf8, help="The token that ends a document, if not the one the tokenizer names"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(parser=SEED, metavar="N", help="Draws the weights of the memories"),
    ] = 1,
) -> None:
    """Make a pretrained model of the GPT-2 or Llama family a checkpoint that infty trains, evaluates and exports.

    Examples:

      infty adapt models/SmolLM2-135M --output adapted/smollm2 --memory continuation model.stm_length=256

      infty adapt models/gpt2 --output adapted/gpt2 --memory continuous model.segment_length=512

    Nothing is downloaded. A memory says nothing before it is trained: the checkpoint's logits are the original's over
    the local window (docs/adapting.md).
    """
    from infty_pretrain import launch

    here = launch.detect()
    launch.quiet()
    from rich.console import Console

    from infty.errors import UserError
    from infty_tools.adapt.adapter import Adapter, check_free, describe

    if here.world > 1:
        raise UserError("infty adapt runs in one process: start it without a launcher")
    if output is None:
        raise UserError("--output is missing: name the folder to make")
    console = Console(markup=False, highlight=False, emoji=False)  # paths may look like markup
    with console.status("looking at the model") as status:
        check_free(output)
        adapter = Adapter(model, memory, changes, end_token, seed)
        size = adapter.write(output, status.update)
    console.print(f"{output}: {describe(adapter, size)}", soft_wrap=True)
    for name in adapter.audible:
        console.print(
            f"note: model.{name} changes what the model says before it is trained: it has no gate",
            soft_wrap=True,
        )
    folder = shlex.quote(str(output))
    console.print(
        "Next: prepare texts with the model's own tokenizer, then train from it\n"
        f"  infty prepare --input BOOKS --tokenizer {folder} --output DATA\n"
        f"  infty pretrain --config CONFIG.yaml init.from={folder} data.train=DATA/train train=memory",
        soft_wrap=True,
    )
