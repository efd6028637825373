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
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infty.data import build, sources
from infty.data.build import Job
from infty.data.documents import TOKENIZER, DatasetInfo
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer, train_sentencepiece
from infty.errors import UserError

REPORT, PLAN = "report.json", "plan.json"
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


@dataclass(frozen=True)
class Request:
    """What to prepare."""

    input: Path
    output: Path
    validation: Path | None = None
    """A folder or file that is held out."""
    validation_documents: int = 0
    """Or: this many sources of the input, spread evenly over it, are held out."""
    tokenizer: Path | None = None
    """An existing tokenizer; None: train one."""
    vocab_size: int = 32_000
    field: str = "text"
    min_words: int = 1
    sample_megabytes: int = 512
    """At most this much text trains the tokenizer."""

    def split(self) -> tuple[list[Source], list[Source]]:
        """Sources of the training and of the validation dataset."""
        train = sources.find(self.input)
        if self.validation is not None:
            return train, sources.find(self.validation)
        count = self.validation_documents
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

    @property
    def partial(self) -> Path:
        return self.output.with_name(self.output.name + ".partial")


def prepare(request: Request, workers: int, progress: Progress, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """Make the datasets in this process and `workers` children. Returns the report. Raises UserError."""
    train, validation = request.split()
    fingerprint = request.fingerprint(train, validation)
    done = already_done(request, fingerprint)
    if done is not None:
        tell(f"{request.output} is already prepared")
        return done
    begin(request, fingerprint, tell)
    tokenizer = make_tokenizer(request, train, progress)
    job = Job(request.partial / build.SHARDS, tokenizer, request.field, request.min_words)
    _make_shards(job, train + validation, workers, progress)
    return finish(request, job, train, validation, fingerprint, progress)


def already_done(request: Request, fingerprint: str) -> dict[str, Any] | None:
    """The report of an identical preparation; None when there is no output yet. Raises UserError for any other."""
    if not request.output.exists():
        return None
    report = request.output / REPORT
    if not report.is_file():
        if request.output.is_dir() and not any(request.output.iterdir()):
            request.output.rmdir()
            return None
        raise UserError(f"--output {request.output} exists and was not made by infty prepare; leaving it alone")
    values = json.loads(report.read_text())
    if values["fingerprint"] != fingerprint:
        raise UserError(f"--output {request.output} was prepared from other input or with other options; give another "
                        "output, or delete it first")
    return values


def begin(request: Request, fingerprint: str, tell: Callable[[str], None]) -> None:
    """Make the working folder, or take up the one of an interrupted preparation with the same arguments."""
    plan = request.partial / PLAN
    if request.partial.exists():
        same = plan.is_file() and json.loads(plan.read_text()).get("fingerprint") == fingerprint
        if not same:
            raise UserError(f"{request.partial} is left from a preparation with other arguments: run that one again to "
                            "finish it, or delete the folder")
        tell(f"going on with {request.partial}")
        for name in ("train", "validation"):
            shutil.rmtree(request.partial / name, ignore_errors=True)
    (request.partial / build.SHARDS).mkdir(parents=True, exist_ok=True)
    plan.write_text(json.dumps({"fingerprint": fingerprint}))


def make_tokenizer(request: Request, train: list[Source], progress: Progress) -> Path:
    """The folder of the tokenizer to use; trained on the training texts if none is given."""
    folder = request.partial / TOKENIZER
    if request.tokenizer is not None:
        Tokenizer.load(request.tokenizer).save(folder)
        return folder
    final = folder / "tokenizer.model"
    if not final.is_file():
        train_sentencepiece(_sample(request, train, progress), request.vocab_size, final)
    return folder


def _sample(request: Request, train: list[Source], progress: Progress) -> Iterator[str]:
    """Texts to train the tokenizer on: evenly spread sources, up to the limit."""
    limit, total, taken = request.sample_megabytes * 2**20, sum(s.size for s in train), 0
    every = max(1, round(total / limit)) if limit else 1
    for source in train[::every]:
        for text in sources.read(source, request.field):
            if text.text is not None:
                yield text.text
                taken += len(text.text)
        progress("training the tokenizer", min(taken, limit), min(total, limit))
        if taken >= limit:
            return
    if taken == 0:
        raise UserError(f"--input {request.input} holds no usable text to train a tokenizer on "
                        "(every file is empty, binary or not UTF-8)")


def by_size(all_sources: list[Source]) -> list[int]:
    """Indices of sources, the largest first, so that nobody is left with a long one at the end."""
    return sorted(range(len(all_sources)), key=lambda i: (-all_sources[i].size, i))


_worker: dict[str, Any] = {}


def _start_worker(job: Job) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    _worker.update(job=job, tokenizer=Tokenizer.load(job.tokenizer))


def _work(index: int, source: Source) -> int:
    build.make_shard(_worker["job"], _worker["tokenizer"], index, source)
    return source.size


def _make_shards(job: Job, all_sources: list[Source], workers: int, progress: Progress) -> None:
    total, done = sum(s.size for s in all_sources), 0
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, workers), mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        futures = [pool.submit(_work, i, all_sources[i]) for i in by_size(all_sources)]
        for future in as_completed(futures):
            done += future.result()
            progress("tokenizing", done, total)
    except BaseException:
        processes = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # they ignore signals a person would send; what they were writing is not a shard
            process.kill()
        raise
    pool.shutdown()


def finish(request: Request, job: Job, train: list[Source], validation: list[Source], fingerprint: str,
           progress: Progress) -> dict[str, Any]:
    """Merge the shards, write the report and give the result its name."""
    tokenizer, partial = Tokenizer.load(job.tokenizer), request.partial
    seen: dict[str, str] = {}
    parts: dict[str, Iterable[int]] = {"validation": range(len(train), len(train) + len(validation)),
                                       "train": range(len(train))}  # a text in both is held out
    report: dict[str, Any] = {"fingerprint": fingerprint, "datasets": {}}
    for name, indices in parts.items():
        if indices:
            progress(f"merging {name}", 0, 1)
            report["datasets"][name] = _summary(build.merge(job, tokenizer, indices, partial / name, seen))
    (partial / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    shutil.rmtree(job.folder)
    shutil.rmtree(partial / TOKENIZER)
    (partial / PLAN).unlink()
    partial.rename(request.output)
    progress("done", 1, 1)
    return report


def _summary(info: DatasetInfo) -> dict[str, Any]:
    return {"documents": info.documents, "tokens": info.tokens, "words": info.words, "vocab_size": info.vocab_size,
            "fingerprint": info.fingerprint, **info.report}
