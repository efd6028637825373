"""`infty sorting`: the task of sorting symbols by how often they came, over sequences longer than any attention.

From the ∞-former (Martins et al., ACL 2022, section 4.1): the probability of the symbols changes along the sequence, so
that a model which has forgotten the beginning sorts wrongly.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from infty.errors import UserError
from infty_tools.options import DatasetsOutput, any_text_prints, whole

if TYPE_CHECKING:
    import tokenizers

    from infty.data.tokenizer import Tokenizer

SYMBOLS = 20
SEPARATOR = SYMBOLS
END = SYMBOLS + 1
"""Never in a sequence; a tokenizer must have one."""
LARGEST_WEIGHT = 9
MOST = 100_000_000
"""Tokens of a sequence, and sequences: more is a slip of the keyboard."""


def sorting(
    output: DatasetsOutput,
    length: Annotated[
        int,
        typer.Option(
            parser=whole(0, 2**63),
            metavar="N",
            help="Tokens that a model reads of a sequence, answer included",
        ),
    ] = 4096,
    train: Annotated[
        int, typer.Option(parser=whole(1, MOST), metavar="N", help="Sequences to train on")
    ] = 8000,
    validation: Annotated[
        int, typer.Option(parser=whole(1, MOST), metavar="N", help="Sequences held out")
    ] = 160,
    seed: Annotated[
        int,
        typer.Option(
            parser=whole(0, 2**63 - 1), metavar="N", help="The same seed makes the same sequences"
        ),
    ] = 0,
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
    any_text_prints()
    make(output, length, train, validation, seed)
    print(
        f"{output}: {train:,} sequences of {length:,} tokens to train on, {validation:,} held out"
    )


def make(output: Path, length: int, train: int, validation: int, seed: int) -> None:
    """Write output/train and output/validation. Raises UserError."""
    from infty.data.tokenizer import Tokenizer

    if not 2 * SYMBOLS <= length <= MOST:
        raise UserError(
            f"--length {length}: the answer alone has {SYMBOLS} tokens; give {2 * SYMBOLS} to {MOST:,}"
        )
    if output.exists():
        raise UserError(f"--output {output} exists: give a new folder, or delete it first")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, so that it can be renamed, and in a folder that is surely new.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as beside:
        path = Path(beside) / "tokenizer.json"
        tokenizer().save(str(path))
        loaded = Tokenizer.load(path)
        loaded.check_end()
        partial = Path(beside) / output.name
        for split, (name, count) in enumerate((("train", train), ("validation", validation))):
            _write(
                partial / name, loaded, length, count, np.random.default_rng([seed, split]), name
            )
        partial.rename(output)


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    length: int,
    count: int,
    random: np.random.Generator,
    name: str,
) -> None:
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
    body = np.where(
        late, random.choice(SYMBOLS, symbols, p=last), random.choice(SYMBOLS, symbols, p=first)
    )
    return np.concatenate([body, [SEPARATOR], answer(body)])


def answer(body: np.ndarray) -> np.ndarray:
    """The symbols by falling count, ties by number."""
    return np.argsort(-np.bincount(body, minlength=SYMBOLS), kind="stable")


def tokenizer() -> tokenizers.Tokenizer:
    """The task's 22 tokens. Symbols are letters, in words of one letter: `infty generate` can be asked, too."""
    import tokenizers

    names = [chr(ord("a") + i) for i in range(SYMBOLS)] + ["[SEP]"]
    model = tokenizers.models.WordLevel(
        {name: i for i, name in enumerate(names)}, unk_token=names[0]
    )
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])  # no word of the vocabulary: no text gives it
    return made
