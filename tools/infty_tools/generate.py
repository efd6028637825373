"""`infty generate`: text from an exported model, after a prompt of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infty_tools.options import any_path, any_text_prints, real, utf8, whole


def generate(
    model: Annotated[
        Path, typer.Option(parser=any_path, metavar="PATH", help="A folder made by `infty export`")
    ],
    prompt: Annotated[
        str | None, typer.Option(parser=utf8, metavar="TEXT", help="The beginning of the text")
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A text file (UTF-8, or .gz of it) to read first, as long as "
            "you like; --prompt then follows it",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="Tokens to write at most")
    ] = 200,
    temperature: Annotated[
        float,
        typer.Option(parser=real(0, 1e6), metavar="X", help="0: always the likeliest token"),
    ] = 0.8,
    top_p: Annotated[
        float,
        typer.Option(
            parser=real(0, 1),
            metavar="X",
            help="Sample from the likeliest tokens that together have this probability",
        ),
    ] = 0.95,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=whole(0, 2**63 - 1), metavar="N", help="The same seed writes the same text"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(parser=utf8, help="cpu, cuda, ...; left out: a GPU if there is one"),
    ] = None,
) -> None:
    """Let an exported model write on.

    Examples:

      infty generate --model exports/first --prompt 'Once more unto the breach'

      infty generate --model exports/first --prompt-file moby_dick.txt --max-new-tokens 500 --seed 1

    A book is read into the model's memory segment by segment, in constant space. Text goes to standard output as it is
    written, all else to standard error.
    """
    from infty_tools.writer import Writer, read_prompt

    any_text_prints()
    text = read_prompt(prompt, prompt_file)
    writer = Writer(model, device)
    ids = writer.encode(text)
    if prompt_file is None:
        print(text, end="", flush=True)
    elif prompt:
        print(prompt, end="", flush=True)
    writer.read(ids)
    for piece in writer.text(writer.write(max_new_tokens, temperature, top_p, seed)):
        print(piece, end="", flush=True)
    print(flush=True)
    typer.echo(writer.report(), err=True)
