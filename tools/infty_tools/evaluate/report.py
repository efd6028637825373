"""An evaluation's figures as tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from infty_tools.evaluate.plots import label

SWITCHED_OFF = (
    "A model that was trained with its memory has leaned on it: without one it usually does worse than a model that "
    "never had one. What a memory is worth is seen beside a model trained without: infty evaluate WITHOUT WITH."
)


def show(found: dict[str, Any]) -> None:
    """Print everything that was found."""
    console = Console(markup=False, highlight=False, emoji=False)  # paths may look like markup
    for model in found["models"]:
        console.print(f"{model['model']}: {model['what']}", soft_wrap=True)
    _, figures = next(_readings(found))
    read = f"{figures['tokens']:,} tokens of {figures['documents']:,} documents"
    console.print(f"perplexity of {read}; 95 % is an interval over documents")
    console.print(_whole(found))
    console.print("nats a token, by position in the document")
    console.print(_by_position(found))
    if found["comparisons"]:
        console.print(f"perplexity ÷ that of {found['models'][0]['name']}", soft_wrap=True)
        console.print(_comparisons(found))
    for name, figures in _readings(found):
        answers = figures.get("answers", {})
        if answers.get("answers"):
            share = f"{answers['accuracy']:.1%} of {answers['answers']:,}"
            console.print(f"right answers, {name}: {share}", soft_wrap=True)
            console.print(_answers(answers))
            console.print(_by_age(answers))
    if any({"on", "off"} <= model["memory"].keys() for model in found["models"]):
        console.print(SWITCHED_OFF, style="dim", soft_wrap=True)


def _readings(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for model in found["models"]:
        for mode, figures in model["memory"].items():
            yield label(model, mode), figures


def _whole(found: dict[str, Any]) -> Table:
    table = Table("model")
    for heading in ("perplexity", "95 %", "a word", "a byte", "right"):
        table.add_column(heading, no_wrap=True)
    for name, f in _readings(found):
        table.add_row(
            name,
            _number(f, "perplexity", ",.2f"),
            _interval(f, ",.2f"),
            _number(f, "word_perplexity", ",.1f"),
            _number(f, "byte_perplexity", ",.3f"),
            f"{100 * f['accuracy']:.1f}%",
        )
    return table


def _by_position(found: dict[str, Any]) -> Table:
    names = [name for name, _ in _readings(found)]
    table = Table("position", *names)
    curves = [figures["by_position"] for _, figures in _readings(found)]
    for rows in zip(*curves, strict=True):
        start, end = rows[0]["from"], rows[0]["to"]
        table.add_row(f"{start:,} to {end:,}", *(f"{row['nll']:.4f}" for row in rows))
    return table


def _comparisons(found: dict[str, Any]) -> Table:
    rows = found["comparisons"]
    interval = "95 %, paired over documents"
    answered = any(row.get("answers") for row in rows)
    table = Table("model", "ratio", interval)
    for heading in ("right answers, difference", interval) if answered else ():
        table.add_column(heading)
    for row in rows:
        cells = [_number(row, "ratio", ".4f"), _interval(row, ".4f")]
        if answered:
            answers = row.get("answers", {})
            cells += [_number(answers, "difference", "+.1%"), _interval(answers, "+.1%")]
        table.add_row(row["model"], *cells)
    return table


def _by_age(answers: dict[str, Any]) -> Table:
    table = Table("age, tokens", "answers", "right", "95 % over documents")
    for row in answers["by_age"]:
        table.add_row(
            f"{row['age'][0]:,} to {row['age'][1]:,}",
            f"{row['answers']:,}",
            _number(row, "accuracy", ".1%"),
            _interval(row, ".1%"),
        )
    return table


def _answers(answers: dict[str, Any]) -> Table:
    shares = {
        (tuple(row["length"]), tuple(row["depth"])): row for row in answers["by_length_and_depth"]
    }
    lengths = sorted({length for length, _ in shares})
    table = Table("depth \\ tokens", *(f"{start:,} to {end:,}" for start, end in lengths))
    for depth in sorted({depth for _, depth in shares}):
        cells = (_number(shares.get((length, depth), {}), "accuracy", ".1%") for length in lengths)
        table.add_row(f"{depth[0]:.0%} to {depth[1]:.0%}", *cells)
    return table


def _number(figures: dict[str, Any], name: str, how: str) -> str:
    return format(figures[name], how) if name in figures else "-"


def _interval(figures: dict[str, Any], how: str) -> str:
    if "interval" not in figures:
        return "-"
    low, high = figures["interval"]
    return f"{low:{how}} to {high:{how}}"
