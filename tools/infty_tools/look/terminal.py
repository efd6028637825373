"""What a model looked at, for a terminal."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from infty_tools.look.reading import Look
from infty_tools.options import printable

STRIP = 36
SHADES = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
EXCERPT = 56
LEAST = 0.005
"""Weights below it are not listed."""
WHAT_WEIGHTS_ARE = (
    "A weight is how much of what a head read is the value of the passage's tokens: attention's are shares, a "
    "delta rule's can be negative (taken away). How strongly a layer used what it read is its share of the stream."
)


def show(look: Look, top: int) -> None:
    """Print it to standard output."""
    console = Console(highlight=False, markup=False)
    console.print(Text(printable(look.question + "".join(look.written)), style="bold"))
    console.print(
        f"The book: {look.passages.tokens:,} tokens, in {len(look.passages):,} passages of {look.passages.size}."
    )
    console.print()
    console.print(_strips(look))
    for source in look.unmeasured:
        console.print(
            f"layer {source.layer}, {source.name}: this kind of memory has no measure of where it looks"
        )
    console.print()
    console.print(_tokens(look, top))
    console.print(WHAT_WEIGHTS_ARE)


def _strips(look: Look) -> Table:
    """A line for each layer and memory: where all heads looked, for all tokens."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("layer", "reads", "in the book", "of stream"):
        table.add_column(column, justify="right" if column != "reads" else "left")
    table.add_column("the book, beginning to end", no_wrap=True)
    for source in look.sources:
        weights = torch.stack(source.weights).abs().mean((0, 1))
        whole = float(weights.sum())
        part = f"{float(weights[:-1].sum()) / whole:.0%}" if whole else "-"
        share = f"{sum(source.share) / len(source.share):.1%}" if source.share else ""
        table.add_row(str(source.layer), source.name, part, share, _strip(weights[:-1]))
    for source in look.sources:
        if source.room is not None:
            table.add_row(
                str(source.layer), f"{source.name} holds", "", "", _strip(source.room[:-1])
            )
    return table


def _strip(weights: Tensor) -> str:
    """One character for each stretch of the book, darker where there is more."""
    cells = torch.stack([part.sum() for part in weights.tensor_split(min(STRIP, len(weights)))])
    shades = SHADES[0] if (sys.stdout.encoding or "").lower().startswith("utf") else SHADES[1]
    scaled = cells / cells.max().clamp(min=1e-30) * (len(shades) - 1)
    return "".join(shades[round(float(x))] for x in scaled)


def _tokens(look: Look, top: int) -> Table:
    """For each written token the heads that read most from one passage."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("wrote", "layer", "reads", "head", "weight", "line", "passage"):
        table.add_column(
            column, justify="left" if column in ("wrote", "reads", "passage") else "right"
        )
    for token, text in enumerate(look.written):
        rows = [row for row in look.strongest(token, top) if abs(row[3]) >= LEAST]
        for row, (source, head, passage, weight) in enumerate(rows):
            table.add_row(
                quoted(text) if row == 0 else "",
                str(source.layer),
                source.name,
                str(head),
                f"{weight:+.2f}",
                f"{look.passages.lines[passage]:,}",
                printable(excerpt(look.passages.texts[passage])),
            )
    return table


def quoted(text: str) -> str:
    """A token that shows its spaces and line ends."""
    return printable('"' + text.replace("\n", "\\n") + '"')


def excerpt(text: str) -> str:
    """A passage on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "..."
