"""`infty generate`: text from an exported model, after a book of any length and a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infty.errors import UserError
from infty_tools.options import any_path, any_text_prints, check_new_file, real, utf8, whole

Model = Annotated[
    Path, typer.Option(parser=any_path, metavar="PATH", help="A folder made by `infty export`")
]
Read = Annotated[
    Path | None,
    typer.Option(
        parser=any_path,
        metavar="PATH",
        help="A text file (UTF-8, or .gz of it) to read first, as long as you like",
    ),
]
Memory = Annotated[
    list[Path] | None,
    typer.Option(
        parser=any_path,
        metavar="PATH",
        help="A bookmark to go on from, made by this model with `infty generate --save-memory`",
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option(parser=whole(1, 10**9), metavar="N", help="Tokens to write at most")
]
Temperature = Annotated[
    float, typer.Option(parser=real(0, 1e6), metavar="X", help="0: always the likeliest token")
]
TopP = Annotated[
    float,
    typer.Option(
        parser=real(0, 1),
        metavar="X",
        help="Sample from the likeliest tokens that together have this probability",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        parser=whole(0, 2**63 - 1), metavar="N", help="The same seed writes the same text"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(parser=utf8, help="cpu, cuda, ...; left out: a GPU if there is one"),
]


def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Option(parser=utf8, metavar="TEXT", help="The beginning of the text to write"),
    ] = None,
    read: Read = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.8,
    top_p: TopP = 0.95,
    seed: Seed = None,
    device: Device = None,
    memory: Memory = None,
    save_memory: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="A bookmark to make, of --memory and --read; without --prompt that is all",
        ),
    ] = None,
) -> None:
    """Let an exported model write on.

    Examples:

      infty generate --model exports/first --prompt 'Once more unto the breach'

      infty generate --model exports/first --read moby_dick.txt --max-new-tokens 500 --seed 1

      infty generate --model exports/first --read moby_dick.txt --save-memory moby_dick.safetensors

      infty generate --model exports/first --memory moby_dick.safetensors --prompt 'The white whale'

    A book is read into the model's memory segment by segment, in constant space, and the prompt after it. Text goes to
    standard output as it is written, all else to standard error.
    """
    from infty_tools.writer import Writer, read_book

    any_text_prints()
    bookmark = one_bookmark(memory)
    _check(prompt, read, bookmark, save_memory)
    book = None if read is None else read_book(read)
    writer = Writer(model, device)
    ids = None if prompt is None else writer.encode(prompt)
    if bookmark is not None:
        writer.go_on_from(bookmark)
    if read is not None and book is not None:
        writer.read_book(read, book)
    if save_memory is not None:
        writer.save(save_memory)
        typer.echo(f"{save_memory} holds what was read: {writer.cache.tokens:,} tokens", err=True)
    if prompt is not None and ids is not None:
        print(prompt, end="", flush=True)
        writer.read(ids)
    elif save_memory is not None:
        return
    for piece in writer.text(writer.write(max_new_tokens, temperature, top_p, seed)):
        print(piece, end="", flush=True)
    print(flush=True)
    typer.echo(writer.report(), err=True)


def one_bookmark(given: list[Path] | None) -> Path | None:
    """The bookmark that `--memory` names. Raises UserError."""
    if given and len(given) > 1:
        raise UserError(
            f"--memory is given {len(given)} times, and bookmarks cannot be merged: go on from one of them and read "
            "the other text after it (--memory ONE --read TEXT)"
        )
    return given[0] if given else None


def _check(prompt: str | None, read: Path | None, memory: Path | None, save: Path | None) -> None:
    """Refuse what cannot be done before anything is loaded. Raises UserError."""
    if prompt is not None and not prompt.strip():
        raise UserError("--prompt holds nothing but space: leave it out, or give a text")
    if prompt is None and read is None:
        raise UserError(
            "there is nothing to continue: give --prompt TEXT or --read BOOK"
            + (" (a bookmark holds what was read, not what comes next)" if memory else "")
        )
    if save is None:
        return
    if read is None:
        raise UserError("--save-memory: there is nothing new to save; name a text with --read")
    check_new_file(save, "--save-memory")
    from infty.hf.bookmark_infty import is_bookmark

    if save.exists() and not is_bookmark(save):
        raise UserError(f"--save-memory {save} exists and is not a bookmark; leaving it alone")
