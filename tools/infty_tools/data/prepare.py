"""`infty prepare` and `infty inspect`: make a dataset, and look into one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from infty_tools.options import DatasetsOutput, any_path, any_text_prints, utf8, whole
from infty_tools.progress import Progress, orderly_end

LARGEST_VOCABULARY = 2_000_000
MOST_WORKERS = 1024


def prepare(
    input: Annotated[
        Path,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Folder of .txt, .txt.gz, .jsonl(.gz, .zst), or a Hugging Face dataset",
        ),
    ],
    output: DatasetsOutput,
    validation: Annotated[
        Path | None,
        typer.Option(parser=any_path, metavar="PATH", help="Folder or file of held-out documents"),
    ] = None,
    validation_documents: Annotated[
        int,
        typer.Option(
            parser=whole(0, 10**9),
            metavar="N",
            help="Or hold out this many text files of the input, evenly spaced in the order of their names",
        ),
    ] = 0,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Existing sentencepiece .model, tokenizer.json or prepared dataset; left out: one is trained",
        ),
    ] = None,
    end_token: Annotated[
        str | None,
        typer.Option(
            parser=utf8,
            metavar="TOKEN",
            help="The token of --tokenizer that ends a document; left out: what its files say",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            parser=whole(260, LARGEST_VOCABULARY),
            metavar="N",
            help="Tokens of a tokenizer that is trained; left out: 32,000",
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            parser=utf8,
            metavar="NAME",
            help="Name of the text in JSON lines and datasets; left out: text",
        ),
    ] = None,
    min_words: Annotated[
        int,
        typer.Option(
            parser=whole(1, 10**9),
            metavar="N",
            help="Leave out shorter documents; a Chinese character or kana counts as a word, as do four Thai letters",
        ),
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, MOST_WORKERS), metavar="N", help="Processes; left out: one per core"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be read, then stop")
    ] = False,
) -> None:
    """Turn books into a memory-mapped dataset, one document a book.

    Examples:

      infty prepare --input books/ --output data/books --vocab-size 32000 --validation-documents 2

      mpirun -n 64 infty prepare --input pg19/train --validation pg19/validation --output data/pg19

    Empty, binary, wrongly encoded and duplicate documents are left out, counted and listed in output/report.json. An
    interrupted run goes on when started again; the result does not depend on the number of workers or MPI ranks.
    """
    import warnings

    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    any_text_prints()
    from infty.data import prepare as local
    from infty.data import prepare_mpi

    mpi = prepare_mpi.started_by_mpi()
    _check_together(tokenizer, end_token, vocab_size, workers, mpi)
    request = local.Request(
        input,
        output,
        validation,
        validation_documents,
        tokenizer,
        vocab_size or 32_000,
        field or "text",
        min_words,
        end_token=end_token,
    )
    if field is not None:
        _check_field(request)
    if dry_run:
        _dry_run(request)
        return
    first = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"
    with orderly_end(), Progress(enabled=not mpi or first == "0") as progress:
        report = (
            prepare_mpi.prepare(request, progress, progress.tell)
            if mpi
            else local.prepare(
                request, workers or len(os.sched_getaffinity(0)), progress, progress.tell
            )
        )
    if not mpi or first == "0":
        _show_report(output, report)


def _check_together(
    tokenizer: Path | None,
    end_token: str | None,
    vocab_size: int | None,
    workers: int | None,
    mpi: bool,
) -> None:
    """Raise UserError for an option that would have no effect beside the others."""
    from infty.errors import UserError

    if tokenizer is not None and vocab_size is not None:
        raise UserError(
            "--vocab-size is for a tokenizer that is trained, and --tokenizer gives one: leave one of them "
            "out"
        )
    if tokenizer is None and end_token is not None:
        raise UserError(
            "--end-token names a token of --tokenizer, which is not given: a tokenizer that is trained has "
            "an end token of its own"
        )
    if mpi and workers is not None:
        raise UserError(
            "--workers has no effect under mpirun, whose ranks do the work: leave it out, and give mpirun "
            "their number"
        )


def _check_field(request: Any) -> None:
    """Raise UserError when nothing that is read has fields."""
    from infty.errors import UserError

    train, validation = request.split()
    if all(source.one_document for source in train + validation):
        raise UserError(
            f"--field {request.field} has no effect: the input has text files only, no JSON lines and no "
            "dataset. Leave it out"
        )


def inspect(
    data: Annotated[
        Path,
        typer.Argument(
            parser=any_path,
            metavar="DATA",
            help="A dataset: the train or validation folder of a prepared output",
        ),
    ],
    samples: Annotated[
        int, typer.Option(parser=whole(0, 10_000), metavar="N", help="Decoded samples to show")
    ] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all tokens, compare with the fingerprint")
    ] = False,
) -> None:
    """Look into a dataset: documents, tokens, lengths, decoded samples.

    Examples:

      infty inspect data/books/train

      infty inspect data/books/train --samples 0 --verify
    """
    import warnings

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    any_text_prints()
    from infty.data.documents import Documents

    documents, console = Documents.open(data), Console()
    if verify:
        documents.verify()
        console.print("verified: every token is as it was prepared")
    info, lengths = documents.info, documents.lengths
    table = Table(show_header=False, box=None)
    for name, value in (
        ("documents", f"{info.documents:,}"),
        ("tokens", f"{info.tokens:,}"),
        ("words", f"{info.words:,}  ({info.tokens / max(1, info.words):.2f} tokens per word)"),
        (
            "tokens a document",
            f"{lengths.min():,} to {lengths.max():,}, mean {lengths.mean():,.0f}",
        ),
        ("vocabulary", f"{info.vocab_size:,}, stored as {info.dtype}"),
        ("left out", f"{len(info.report.get('left_out', [])):,}"),
        ("not given back exactly", f"{len(info.report.get('inexact', [])):,}"),
        ("fingerprint", info.fingerprint[:16]),
    ):
        table.add_row(name, value)
    if documents.answers is not None:
        kinds = ", ".join(documents.answers.kinds)
        table.add_row("task", f"{documents.answers.task} ({kinds})")
        table.add_row(
            "answers", f"{info.answers:,}, {documents.counted.total:,} tokens, which alone count"
        )
    console.print(table)
    _histogram(console, lengths)
    for i in range(min(samples, len(documents))):
        index = i * len(documents) // max(1, min(samples, len(documents)))
        text = documents.tokenizer.decode(documents.read(index, 0, min(60, int(lengths[index]))))
        name = (
            documents.names[index].encode("utf-8", "backslashreplace").decode()
        )  # a file may be named by any bytes
        console.print(f"\n[bold]{escape(name)}[/bold] ({lengths[index]:,} tokens)", highlight=False)
        console.print(text.strip(), markup=False, highlight=False)


def _histogram(console: Any, lengths: Any) -> None:
    """Lengths in powers of two."""
    import numpy as np

    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    console.print("\n[bold]documents by length in tokens[/bold]")
    for power in range(powers.min(), powers.max() + 1):
        count = int((powers == power).sum())
        bar = "█" * round(40 * count / max(1, np.bincount(powers).max()))
        console.print(
            f"{2**power:>12,} … {2 ** (power + 1):>12,}  {count:>8,}  {bar}", highlight=False
        )


def _dry_run(request: Any) -> None:
    from infty.data.prepare import Plan

    plan = Plan.of(request)
    train, validation = plan.train, plan.validation
    for name, part in (("train", train), ("validation", validation)):
        if part:
            print(f"{name}: {len(part):,} file(s), {sum(s.size for s in part) / 1e6:,.1f} MB")
    tokenizer = request.tokenizer or f"a new one of {request.vocab_size:,} tokens"
    print(f"tokenizer: {tokenizer}")
    if "end_token" in plan.options:
        print(f"end of a document: {plan.options['end_token']}")
    ignored = request.ignored()
    if ignored:
        print(f"not read: {len(ignored):,} (first: {ignored[0]['name']}: {ignored[0]['problem']})")
    print(f"output: {request.output}\nNothing was written.")


def _show_report(output: Path, report: dict[str, Any]) -> None:
    from collections import Counter

    for name, part in report["datasets"].items():
        print(
            f"{output / name}: {part['documents']:,} documents, {part['tokens']:,} tokens, {part['words']:,} words"
        )
        problems = Counter(d["problem"].split(" of ")[0] for d in part["left_out"])
        if problems:
            listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
            print(f"  left out: {listed} (listed in {output}/report.json)")
        if part.get("inexact"):
            print(
                f"  not recovered exactly from their tokens: {len(part['inexact']):,} documents, as the tokenizer "
                "does not know all their characters or changes spaces, case or accents (listed in "
                f"{output}/report.json)"
            )
    problems = Counter(entry["problem"] for entry in report.get("ignored", []))
    if problems:
        listed = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
        print(f"not read: {listed} (listed in {output}/report.json)")
