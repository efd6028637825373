"""`infty sorting`: the task of sorting symbols by how often they came, over sequences longer than any attention.

From the ∞-former (Martins et al., ACL 2022, section 4.1): the probability of the symbols changes along the sequence, so
that a model which has forgotten the beginning sorts wrongly.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from infty.errors import UserError

if TYPE_CHECKING:
    import tokenizers

    from infty.data.tokenizer import Tokenizer

SYMBOLS = 20
SEPARATOR = SYMBOLS
END = SYMBOLS + 1
"""Never in a sequence; a tokenizer must have one."""
LARGEST_WEIGHT = 9


def sorting(
    output: Annotated[Path, typer.Option(help="Folder to make: output/train and output/validation")],
    length: Annotated[int, typer.Option(help="Tokens that a model reads of a sequence, answer included")] = 4096,
    train: Annotated[int, typer.Option(min=1, help="Sequences to train on")] = 8000,
    validation: Annotated[int, typer.Option(min=1, help="Sequences held out")] = 160,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make a dataset of sequences to sort: 20 symbols in random order, a separator, then the symbols by falling count.

    Symbols are drawn from a distribution that moves evenly from one to another along the sequence; each sequence has
    two distributions of its own, with weights drawn from 1 to 9. Symbols that came equally often are sorted by number.
    Only the answer's tokens count for loss and accuracy. A length that is a multiple of the segment fills segments
    exactly.

    Example:

      infty sorting --output data/sorting-4k --length 4096
    """
    from infty_pretrain import launch

    launch.quiet()
    make(output, length, train, validation, seed)
    print(f"{output}: {train:,} sequences of {length:,} tokens to train on, {validation:,} held out")


def make(output: Path, length: int, train: int, validation: int, seed: int) -> None:
    """Write output/train and output/validation. Raises UserError."""
    from infty.data.tokenizer import Tokenizer

    if length < 2 * SYMBOLS:
        raise UserError(f"--length {length}: the answer alone has {SYMBOLS} tokens; give at least {2 * SYMBOLS}")
    if output.exists():
        raise UserError(f"--output {output} exists: give a new folder, or delete it first")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    path = partial / "tokenizer.json"
    tokenizer().save(str(path))
    loaded = Tokenizer.load(path)
    for split, (name, count) in enumerate((("train", train), ("validation", validation))):
        _write(partial / name, loaded, length, count, np.random.default_rng([seed, split]), name)
    path.unlink()
    partial.rename(output)


def _write(folder: Path, tokenizer: Tokenizer, length: int, count: int, random: np.random.Generator,
           name: str) -> None:
    from rich.progress import track

    from infty.data.build import DatasetWriter

    writer = DatasetWriter(folder, tokenizer)
    symbols = length - SYMBOLS  # a document has one token more than is read: the last label
    for i in track(range(count), description=name, transient=True):
        ids = sequence(symbols, random)
        writer.add(f"{name}-{i}", ids, 0, counted_from=symbols + 1)
    writer.finish({"task": "sorting", "symbols": symbols})


def sequence(symbols: int, random: np.random.Generator) -> np.ndarray:
    """One document, int64 [symbols + 21]: `symbols` symbols, the separator, the 20 symbols by falling count."""
    first, last = (w / w.sum() for w in random.integers(1, LARGEST_WEIGHT + 1, (2, SYMBOLS)))
    late = random.random(symbols) < np.linspace(0, 1, symbols)
    body = np.where(late, random.choice(SYMBOLS, symbols, p=last), random.choice(SYMBOLS, symbols, p=first))
    return np.concatenate([body, [SEPARATOR], answer(body)])


def answer(body: np.ndarray) -> np.ndarray:
    """The symbols by falling count, ties by number."""
    return np.argsort(-np.bincount(body, minlength=SYMBOLS), kind="stable")


def tokenizer() -> tokenizers.Tokenizer:
    """The task's 22 tokens. Symbols are letters, in words of one letter: `infty generate` can be asked, too."""
    import tokenizers

    names = [chr(ord("a") + i) for i in range(SYMBOLS)] + ["[SEP]", "</s>"]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made
