"""From a folder of books to a training and a validation dataset: what `infty prepare` does.

    output/
      train/        a dataset (see infty.data.documents)
      validation/   another, if asked for
      report.json   what was kept and left out
      sources.json  what was read: options, and size, time and digest of every source

Everything is made in `output.partial` and renamed at the end, so `output` is whole or absent. Started again with the
same arguments, an interrupted preparation goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from infty import files
from infty.data import build, record, sources
from infty.data.build import Job
from infty.data.documents import TOKENIZER, DatasetInfo
from infty.data.sample import sample
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer
from infty.data.vocabulary import train_sentencepiece
from infty.data.workers import Workers
from infty.data.workplace import REPORT, Workplace, already_done, partial_folder
from infty.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is (0: nobody knows)."""


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    input: Path
    output: Path
    validation: Path | None = None
    """A folder or file that is held out."""
    validation_documents: int = 0
    """Or: this many text files of the input, spread evenly over it, are held out."""
    tokenizer: Path | None = None
    """An existing tokenizer; None: train one."""
    vocab_size: int = 32_000
    field: str = "text"
    min_words: int = 1
    sample_megabytes: int = 512
    """At most this much text trains the tokenizer."""
    end_token: str | None = None
    """The token of `tokenizer` that ends a document; None: what its files say."""

    @property
    def own_folders(self) -> frozenset[Path]:
        """What is made here and is no input, wherever it is."""
        return frozenset({self.output, partial_folder(self.output)})

    def split(self) -> tuple[list[Source], list[Source]]:
        """Sources of the training and of the validation dataset."""
        train = sources.find(self.input, avoid=self.own_folders)
        count = self.validation_documents
        if self.validation is not None:
            if count:
                raise UserError(
                    "--validation and --validation-documents are mutually exclusive: give one"
                )
            return train, sources.find(self.validation, "--validation", self.own_folders)
        if count and not all(s.one_document for s in train):
            raise UserError(
                "--validation-documents holds out text files, and the input has files of many documents: "
                "put those to hold out into a file of their own and give it with --validation"
            )
        if count >= len(train):
            raise UserError(
                f"--validation-documents {count}: the input has only {len(train)} file(s), and some must "
                "be left to train on"
            )
        held_out = {(2 * i + 1) * len(train) // (2 * count) for i in range(count)}
        return (
            [s for i, s in enumerate(train) if i not in held_out],
            [s for i, s in enumerate(train) if i in held_out],
        )

    def options(self) -> dict[str, Any]:
        """What decides, with the sources, what is made. Raises UserError when the tokenizer cannot be used."""
        values: dict[str, Any] = {"field": self.field, "min_words": self.min_words}
        if self.tokenizer is None:
            return values | {
                "vocab_size": self.vocab_size,
                "sample_megabytes": self.sample_megabytes,
            }
        tokenizer = Tokenizer.load(self.tokenizer, self.end_token)
        tokenizer.check_end()
        return values | {"tokenizer": tokenizer.fingerprint, "end_token": tokenizer.end_token}

    def ignored(self) -> list[dict[str, str]]:
        """What is below the input folders and is not read."""
        folders = [self.input] if self.validation is None else [self.input, self.validation]
        found = [entry for folder in folders for entry in sources.ignored(folder, self.own_folders)]
        return [entry for i, entry in enumerate(found) if entry not in found[:i]]


@dataclass(frozen=True)
class Plan:
    """What is to be read, for a dataset to train on and one that is held out."""

    train: list[Source]
    validation: list[Source]
    options: dict[str, Any]

    @classmethod
    def of(cls, request: Request) -> Plan:
        """What a request asks for. Raises UserError."""
        train, validation = request.split()
        return cls(train, validation, request.options())

    @property
    def parts(self) -> dict[str, list[Source]]:
        return {"train": self.train, "validation": self.validation}

    @property
    def sources(self) -> list[Source]:
        return self.train + self.validation

    @property
    def fingerprint(self) -> str:
        """Changes when the options or the names of the sources do. What is in them is looked at source by source."""
        names = {name: [s.name for s in part] for name, part in self.parts.items()}
        return hashlib.sha256(json.dumps([names, self.options]).encode()).hexdigest()


def prepare(
    request: Request, workers: int, progress: Progress, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Make the datasets in this process and `workers` children. Returns the report. Raises UserError."""
    plan, place = Plan.of(request), Workplace(request.output)
    done = already_done(request.output, plan.options, plan.parts)
    if done is not None:
        tell(f"{request.output} is already prepared")
        return done
    try:
        place.begin(plan.fingerprint, tell)
        job = Job(
            place.shards,
            make_tokenizer(request, place, plan, progress),
            request.field,
            request.min_words,
        )
        _make_shards(job, plan.sources, workers, progress)
        return finish(request, place, job, plan, progress)
    finally:
        place.close()


def make_tokenizer(request: Request, place: Workplace, plan: Plan, progress: Progress) -> Path:
    """The folder of the tokenizer to use; trained on the training texts if none is given."""
    folder = place.folder / TOKENIZER
    if request.tokenizer is not None:
        Tokenizer.load(request.tokenizer, request.end_token).save(folder)
        return folder
    final = folder / "tokenizer.model"
    stamp = place.folder / "trained_on.json"
    texts = {"sources": [build.facts(source) for source in plan.train]}
    if (
        not final.is_file() or build.read_record(stamp) != texts
    ):  # one of earlier texts would not be found again
        stamp.unlink(missing_ok=True)
        progress("training the tokenizer", 0, 0)
        with Workers(1) as child:  # training does not listen to signals: this process does
            list(child.map(_train, [(request, plan.train, final)]))
        files.write_json(stamp, texts)
    return folder


def _train(request: Request, train: list[Source], path: Path) -> None:
    texts = sample(train, request.field, request.sample_megabytes * 2**20)
    first = next(texts, None)
    if first is None:
        raise UserError(
            f"--input {request.input} holds no usable text to train a tokenizer on (every file is empty, "
            f"binary or not UTF-8, or has no field '{request.field}')"
        )
    train_sentencepiece(chain([first], texts), request.vocab_size, path)


def by_size(all_sources: list[Source]) -> list[int]:
    """Indices of sources, the largest first, so that nobody is left with a long one at the end."""
    return sorted(range(len(all_sources)), key=lambda i: (-all_sources[i].size, i))


_worker: dict[str, Any] = {}


def _start_worker(job: Job) -> None:
    _worker.update(job=job, tokenizer=Tokenizer.load(job.tokenizer))


def _work(index: int, source: Source) -> int:
    build.make_shard(_worker["job"], _worker["tokenizer"], index, source)
    return source.size


def _make_shards(job: Job, all_sources: list[Source], workers: int, progress: Progress) -> None:
    total, done = sum(s.size for s in all_sources), 0
    progress("tokenizing", 0, total)
    with Workers(min(workers, len(all_sources)), _start_worker, job) as pool:
        for size in pool.map(_work, [(i, all_sources[i]) for i in by_size(all_sources)]):
            done += size
            progress("tokenizing", done, total)


def finish(
    request: Request, place: Workplace, job: Job, plan: Plan, progress: Progress
) -> dict[str, Any]:
    """Merge the shards, write the report and give the result its name."""
    tokenizer, count = Tokenizer.load(job.tokenizer), len(plan.train)
    seen: dict[str, str] = {}
    parts: dict[str, Iterable[int]] = {
        "validation": range(count, len(plan.sources)),
        "train": range(count),
    }  # a text in both is held out
    report: dict[str, Any] = {
        "fingerprint": plan.fingerprint,
        "datasets": {},
        "ignored": request.ignored(),
    }
    for name, indices in parts.items():
        if indices:
            progress(f"merging {name}", 0, 0)
            report["datasets"][name] = _summary(
                build.merge(job, tokenizer, indices, place.result / name, seen)
            )
    digests = [
        build.read_record(build.shard_path(job, i))["digest"] for i in range(len(plan.sources))
    ]
    record.write(place.result, plan.options, plan.parts, digests)
    files.write_json(place.result / REPORT, report)
    place.publish()
    return report


def _summary(info: DatasetInfo) -> dict[str, Any]:
    return {
        "documents": info.documents,
        "tokens": info.tokens,
        "words": info.words,
        "vocab_size": info.vocab_size,
        "fingerprint": info.fingerprint,
        **info.report,
    }
