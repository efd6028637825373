"""`infty look`: which passages of a book an exported model looked at when it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infty_tools.options import any_path, any_text_prints, check_new_file, utf8, whole


def look(
    model: Annotated[
        Path,
        typer.Argument(parser=any_path, metavar="MODEL", help="A folder made by `infty export`"),
    ],
    read: Annotated[
        Path,
        typer.Option(
            parser=any_path, metavar="FILE", help="The book: a text file (UTF-8, or .gz of it)"
        ),
    ],
    ask: Annotated[
        str,
        typer.Option(
            parser=utf8, metavar="TEXT", help="What the model goes on from after the book"
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="FILE",
            help="Write a page with every layer, head and token, which needs no network",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(parser=whole(1, 1000), metavar="N", help="Tokens to write at most")
    ] = 24,
    passage: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 10**6),
            metavar="N",
            help="Tokens of a passage; left out: 8, or more where the book would be over 512 passages",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(parser=whole(1, 1000), metavar="N", help="Heads to list for each token")
    ] = 3,
    device: Annotated[
        str | None,
        typer.Option(parser=utf8, help="cpu, cuda, ...; left out: a GPU if there is one"),
    ] = None,
) -> None:
    """Show which passages of a book a model looked at.

    Example:

      infty look exported/demo --read books/validation/macbeth.txt --ask 'Enter MACBETH' --html look.html

    The model reads the book and the question, and then writes the likeliest tokens. For each of them you see which
    passages every layer and head read, through local attention and through each memory, with exact weights.
    """
    from infty_tools.look import page, reading, terminal
    from infty_tools.writer import Writer, read_book

    any_text_prints()
    if html is not None:
        check_new_file(html, "--html")
    book = read_book(read)
    writer = Writer(model, device)
    found = reading.look(writer, book, ask, passage, max_new_tokens, read)
    terminal.show(found, top)
    if html is not None:
        page.write(found, f"{model.resolve().name} reads {read.name}", html)
        typer.echo(f"wrote {html}", err=True)
