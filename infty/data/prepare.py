"""From a folder of books to a training and a validation dataset: what `infty prepare` does.

    output/
      train/        a dataset (see infty.data.documents)
      validation/   another, if asked for
      report.json   what was read, kept and left out

Everything is made in `output.partial` and renamed at the end, so `output` is whole or absent. Started again with the
same arguments, an interrupted preparation goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infty.data import build, sources
from infty.data.build import Job
from infty.data.documents import TOKENIZER, DatasetInfo
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer, train_sentencepiece
from infty.data.workers import Workers
from infty.data.workplace import REPORT, Workplace, already_done
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

    def split(self) -> tuple[list[Source], list[Source]]:
        """Sources of the training and of the validation dataset."""
        train, count = sources.find(self.input), self.validation_documents
        if self.validation is not None:
            if count:
                raise UserError("--validation and --validation-documents exclude each other: give one")
            return train, sources.find(self.validation, "--validation")
        if count and not all(s.one_document for s in train):
            raise UserError("--validation-documents holds out text files, and the input has files of many documents: "
                            "put those to hold out into a file of their own and give it with --validation")
        if count >= len(train):
            raise UserError(f"--validation-documents {count}: the input has only {len(train)} file(s), and some must "
                            "be left to train on")
        held_out = {(2 * i + 1) * len(train) // (2 * count) for i in range(count)}
        return ([s for i, s in enumerate(train) if i not in held_out],
                [s for i, s in enumerate(train) if i in held_out])

    def fingerprint(self, train: list[Source], validation: list[Source]) -> str:
        """Changes when the arguments or the list of sources do."""
        tokenizer = None if self.tokenizer is None else Tokenizer.load(self.tokenizer).fingerprint
        facts = [[[s.name, s.size] for s in part] for part in (train, validation)]
        values = [facts, tokenizer, self.vocab_size if tokenizer is None else None, self.field, self.min_words,
                  self.sample_megabytes]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What is to be read, for a dataset to train on and one that is held out."""

    train: list[Source]
    validation: list[Source]
    fingerprint: str

    @classmethod
    def of(cls, request: Request) -> Plan:
        train, validation = request.split()
        return cls(train, validation, request.fingerprint(train, validation))

    @property
    def sources(self) -> list[Source]:
        return self.train + self.validation


def prepare(request: Request, workers: int, progress: Progress, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Make the datasets in this process and `workers` children. Returns the report. Raises UserError."""
    plan, place = Plan.of(request), Workplace(request.output)
    done = already_done(request.output, plan.fingerprint)
    if done is not None:
        tell(f"{request.output} is already prepared")
        return done
    try:
        place.begin(plan.fingerprint, tell)
        job = Job(place.shards, make_tokenizer(request, place, plan, progress), request.field, request.min_words)
        _make_shards(job, plan.sources, workers, progress)
        return finish(request, place, job, plan, progress)
    finally:
        place.close()


def make_tokenizer(request: Request, place: Workplace, plan: Plan, progress: Progress) -> Path:
    """The folder of the tokenizer to use; trained on the training texts if none is given."""
    folder = place.folder / TOKENIZER
    if request.tokenizer is not None:
        Tokenizer.load(request.tokenizer).save(folder)
        return folder
    final = folder / "tokenizer.model"
    if not final.is_file():
        progress("training the tokenizer", 0, 0)
        with Workers(1) as child:  # training does not listen to signals: this process does
            list(child.map(_train, [(request, plan.train, final)]))
    return folder


def _train(request: Request, train: list[Source], path: Path) -> None:
    train_sentencepiece(_sample(request, train), request.vocab_size, path)


def _sample(request: Request, train: list[Source]) -> Iterator[str]:
    """Texts to train the tokenizer on: evenly spread sources, up to the limit."""
    limit, total, taken = request.sample_megabytes * 2**20, sum(s.size for s in train), 0
    for source in train[::max(1, round(total / limit))]:
        for text in sources.read(source, request.field):
            if text.text is not None:
                yield text.text[:limit - taken]
                taken += len(text.text)
            if taken >= limit:
                return
    if taken == 0:
        raise UserError(f"--input {request.input} holds no usable text to train a tokenizer on (every file is empty, "
                        f"binary or not UTF-8, or has no field '{request.field}')")


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


def finish(request: Request, place: Workplace, job: Job, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Merge the shards, write the report and give the result its name."""
    tokenizer, count = Tokenizer.load(job.tokenizer), len(plan.train)
    seen: dict[str, str] = {}
    parts: dict[str, Iterable[int]] = {"validation": range(count, len(plan.sources)),
                                       "train": range(count)}  # a text in both is held out
    report: dict[str, Any] = {"fingerprint": plan.fingerprint, "datasets": {},
                              "ignored": sources.ignored(request.input)}
    for name, indices in parts.items():
        if indices:
            progress(f"merging {name}", 0, 0)
            report["datasets"][name] = _summary(build.merge(job, tokenizer, indices, place.result / name, seen))
    build.write_whole(place.result / REPORT, report)
    place.publish()
    return report


def _summary(info: DatasetInfo) -> dict[str, Any]:
    return {"documents": info.documents, "tokens": info.tokens, "words": info.words, "vocab_size": info.vocab_size,
            "fingerprint": info.fingerprint, **info.report}
