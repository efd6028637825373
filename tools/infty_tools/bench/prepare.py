"""`infty bench prepare`: how fast `infty prepare` tokenizes, beside its tokenizer alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty.errors import UserError
from infty_tools.bench import figures, machine
from infty_tools.options import FiguresOutput, any_path, check_new_file, whole

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

PARTS = ("reading", "counting words", "tokenizing", "checking")
"""What is done for every document; what is left of the whole is writing it and the digest that finds duplicates."""


def prepare(
    input: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Folder of .txt files [prose that is made up, a tenth of it with letters beyond ASCII]",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="sentencepiece .model, tokenizer.json or prepared dataset [one trained on the texts]",
        ),
    ] = None,
    megabytes: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Of the input, at most")
    ] = 4,
    rounds: Annotated[
        int, typer.Option(parser=whole(1, 1_000), metavar="N", help="Of each, in turn")
    ] = 5,
    output: FiguresOutput = None,
) -> None:
    """Time a worker of `infty prepare` and the tokenizer alone on the same documents, in turn, on one core.

    Example:

      infty bench prepare --input books/train --tokenizer data/books

    The time is that which the process had, so that other programs matter little. The goal is nine tenths of the bare
    tokenizer's speed.
    """
    if output is not None:
        check_new_file(output, "--output")
    with tempfile.TemporaryDirectory(prefix="infty-prepare-") as folder:
        found = measure(Path(folder), input, tokenizer, megabytes * 10**6, rounds)
    found = {"machine": machine.facts()} | found
    show(found)
    if output is not None:
        figures.write(output, found)
        print(f"wrote {output}")


def measure(
    place: Path, given: Path | None, tokenizer: Path | None, size: int, rounds: int
) -> dict[str, Any]:
    """Seconds of a worker, of the tokenizer alone and of each part, and bytes a second. Raises UserError."""
    from infty.data import build, sources
    from infty.data.tokenizer import Tokenizer

    texts = place / "texts" if given is None else given
    if given is None:
        make_prose(texts, size)
    chosen, total = [], 0
    for source in sources.find(texts):
        if source.one_document and (not chosen or total + source.size <= size):
            chosen.append(source)
            total += source.size
    documents = [text.text for source in chosen for text in sources.read(source) if text.text]
    if not documents:
        raise UserError(f"--input {texts} holds no text file that can be used")
    if tokenizer is None:
        tokenizer = place / "tokenizer.model"
        _train(documents, tokenizer)
    loaded = Tokenizer.load(tokenizer)
    loaded.save(place / "tokenizer")

    def worker() -> None:
        shards = Path(tempfile.mkdtemp(dir=place))
        job = build.Job(shards, place / "tokenizer")
        for i, source in enumerate(chosen):
            build.make_shard(job, loaded, i, source)

    seconds = _in_turn(_variants(worker, chosen, documents, loaded), rounds)
    bytes_read = sum(len(text.encode()) for text in documents)
    return {
        "tokenizer": type(loaded).__name__,
        "vocabulary": loaded.vocab_size,
        "documents": len(documents),
        "bytes": bytes_read,
        "seconds": seconds,
        "speed": seconds["tokenizer alone"] / seconds["worker"],
    }


def _variants(
    worker: Callable[[], None], chosen: list[Any], documents: list[str], tokenizer: Tokenizer
) -> dict[str, Callable[[], Any]]:
    from infty.data import sources
    from infty.data.words import count_words

    alone = _library(tokenizer.path)
    tokens = [tokenizer.encode(text) for text in documents]
    return {
        "tokenizer alone": lambda: [alone(text) for text in documents],
        "worker": worker,
        "reading": lambda: [text.digest for s in chosen for text in sources.read(s)],
        "counting words": lambda: [count_words(text) for text in documents],
        "tokenizing": lambda: [tokenizer.encode(text) for text in documents],
        "checking": lambda: [
            tokenizer.gives_back(text, ids) for text, ids in zip(documents, tokens)
        ],
    }


def _library(path: Path) -> Callable[[str], Any]:
    """What the tokenizer's own library does with a text."""
    if path.suffix == ".json":
        import tokenizers

        model = tokenizers.Tokenizer.from_file(str(path))
        return lambda text: model.encode(text, add_special_tokens=False).ids
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode


def _in_turn(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least seconds of each."""
    least = dict.fromkeys(variants, float("inf"))
    for _ in range(rounds):
        for name, run in variants.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return least


def make_prose(folder: Path, size: int, seed: int = 0) -> None:
    """Text files of made-up words, as often as words of prose are."""
    import numpy as np

    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    common = 1.0 / np.arange(1, len(letters) + 1)
    words = [
        "".join(random.choice(letters, random.integers(1, 11), p=common / common.sum()))
        for _ in range(8_000)
    ]
    words = [word + "\u00e9" * (i % 10 == 9) for i, word in enumerate(words)]
    often = 1.0 / np.arange(1, len(words) + 1)
    folder.mkdir(parents=True)
    count = max(1, size // 100_000)
    for number in range(count):
        drawn = random.choice(len(words), size // count // 5, p=often / often.sum())
        lines = (" ".join(words[i] for i in drawn[j : j + 12]) for j in range(0, len(drawn), 12))
        text = ",\n".join(lines).replace("e t", "e \u2014 \u201ct")
        (folder / f"book-{number:04d}.txt").write_text(text, encoding="utf-8")


def _train(documents: list[str], path: Path) -> None:
    from infty.data.vocabulary import train_sentencepiece

    train_sentencepiece((text[:100_000] for text in documents[:5]), 2_048, path)


def show(found: dict[str, Any]) -> None:
    """A table of speeds and shares."""
    from rich.console import Console
    from rich.table import Table

    print(machine.sentence(found["machine"]))
    seconds = found["seconds"]
    title = (
        f"{found['documents']} documents, {found['bytes'] / 1e6:.1f} MB, {found['tokenizer']} of "
        f"{found['vocabulary']:,} tokens, one core"
    )
    table = Table("", "seconds", "MB/s", "of the worker's time", title=title)
    for name in ("tokenizer alone", "worker", *PARTS):
        table.add_row(
            name,
            f"{seconds[name]:.3f}",
            f"{found['bytes'] / 1e6 / seconds[name]:.1f}",
            f"{seconds[name] / seconds['worker']:.0%}",
            end_section=name == "worker",
        )
    Console().print(table)
    print(f"infty prepare runs at {found['speed']:.2f} of the bare tokenizer's speed")
