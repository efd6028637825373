"""Making a dataset: tokenize every source into a shard of its own, in any order, then merge them in one order.

A shard is written aside and renamed, so an interrupted run goes on with the shards that are missing, and the result
does not depend on who made which shard or when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infty import files
from infty.data import sources
from infty.data.answers import COLUMNS, ROWS, TASK
from infty.data.documents import PREFIX, TOKENIZER, DatasetInfo, Documents, update_with_rows
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer
from infty.data.words import count_words
from infty.errors import UserError

SHARDS = "shards"
LONGEST = 2**31 - 1
"""Tokens of a document, which IndexedDataset counts in 32 bits."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to make any shard."""

    folder: Path
    """Where shards go."""
    tokenizer: Path
    field: str = "text"
    min_words: int = 1


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of IndexedDataset's types that holds every id."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def shard_path(job: Job, index: int) -> Path:
    return job.folder / f"{index:06d}.json"


def make_shard(job: Job, tokenizer: Tokenizer, index: int, source: Source) -> None:
    """Tokenize one source unless the shard of this very file and tokenizer is there already."""
    path = shard_path(job, index)
    made_from = {**facts(source), "tokenizer": tokenizer.fingerprint}
    if path.is_file():
        if made_from.items() <= read_record(path).items():
            return
        path.unlink()  # the source or the tokenizer has changed since, or the record was lost in a crash
    dtype = token_dtype(tokenizer.vocab_size)
    documents: list[dict[str, Any]] = []
    found: list[str] = []
    with files.whole(path.with_suffix(".tokens")) as partial, open(partial, "wb") as f:
        for text in sources.read(source, job.field):
            documents.append(_write_document(f, text, tokenizer, dtype, job.min_words))
            found.append(text.found)
    files.write_whole(
        path, json.dumps({**made_from, "digest": sources.digest(found), "documents": documents})
    )


def facts(source: Source) -> dict[str, Any]:
    """What is known of a source without reading it."""
    return {"name": source.name, "size": source.size, "modified": source.modified}


def read_record(path: Path) -> dict[str, Any]:
    """The facts beside a shard; none when they were lost in a crash."""
    try:
        record = files.read_json(path)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write_document(
    f: Any, text: sources.Text, tokenizer: Tokenizer, dtype: np.dtype, min_words: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": text.name, "problem": text.problem}
    if text.problem is None:
        words = count_words(text.text)
        if words < min_words:
            return entry | {"problem": f"fewer than {min_words} words"}
        ids = np.append(tokenizer.encode(text.text), tokenizer.eos_id)
        if ids.max() >= tokenizer.vocab_size:
            raise UserError(
                f"{tokenizer.path} gives token {ids.max()} although its vocabulary has "
                f"{tokenizer.vocab_size} tokens: number its tokens without gaps"
            )
        if len(ids) > LONGEST:
            return entry | {"problem": f"more than {LONGEST:,} tokens"}
        f.write(ids.astype(dtype).tobytes())
        entry |= {
            "tokens": len(ids),
            "words": words,
            "sha256": text.digest,
            "exact": tokenizer.gives_back(text.text, ids[:-1]),
        }
    return entry


def merge(
    job: Job, tokenizer: Tokenizer, indices: Iterable[int], output: Path, seen: dict[str, str]
) -> DatasetInfo:
    """Merge shards, in the order of `indices`, into one dataset in the new folder `output`.

    `seen` maps digests to names of documents that are kept already, in this dataset or another: a text that comes
    again is left out and reported, as are documents that their tokens do not give back. What was written is read back.
    Raises UserError when nothing is left.
    """
    writer = DatasetWriter(output, tokenizer)
    left_out: list[dict[str, str]] = []
    inexact: list[str] = []
    for index in indices:
        for entry, ids in _documents(job, index, writer.dtype):
            if entry["problem"] is None and entry["sha256"] in seen:
                entry["problem"] = f"duplicate of {seen[entry['sha256']]}"
            if entry["problem"] is not None:
                left_out.append({"name": entry["name"], "problem": entry["problem"]})
                continue
            seen[entry["sha256"]] = entry["name"]
            writer.add(entry["name"], ids, entry["words"])
            if not entry["exact"]:
                inexact.append(entry["name"])
    if not writer.names:
        reasons = ", ".join(
            [f"{d['name']}: {d['problem']}" for d in left_out[:5]] + ["..."] * (len(left_out) > 5)
        )
        raise UserError(
            f"no usable document for {output.name} ({reasons}): choose other input, and delete "
            f"{job.folder.parent}"
        )
    return writer.finish({"left_out": left_out, "inexact": inexact})


class DatasetWriter:
    """Writes a dataset, document by document, into the new folder `output`.

    `task` makes it one where only answers count: what `task.json` is to hold (see `infty.data.answers`).
    """

    def __init__(
        self, output: Path, tokenizer: Tokenizer, task: dict[str, Any] | None = None
    ) -> None:
        from infty.megatron import indexed_dataset

        output.mkdir(parents=True)
        self.output, self.tokenizer = output, tokenizer
        self.dtype = token_dtype(tokenizer.vocab_size)
        self._builder = indexed_dataset.IndexedDatasetBuilder(
            str(output / f"{PREFIX}.bin"), dtype=self.dtype.type
        )
        self._digest, self._tokens = hashlib.sha256(), 0
        self.names: list[str] = []
        self.words: list[int] = []
        self._answers = None if task is None else _AnswersWriter(output, task)

    def add(
        self, name: str, ids: np.ndarray, words: int, answers: np.ndarray | None = None
    ) -> None:
        """Append a document; its words (0: not text) are counted for perplexities.

        `answers`, of a task's document: int64 [answers, 5], the columns of `infty.data.answers` after the document.
        """
        import torch

        if self._answers is not None:
            self._answers.add(len(self.names), answers)
        self._builder.add_document(torch.from_numpy(ids.astype(np.int64)), [len(ids)])
        self._digest.update(len(ids).to_bytes(8, "little") + ids.astype(self.dtype).tobytes())
        self._tokens += len(ids)
        self.names.append(name)
        self.words.append(words)

    def finish(self, report: dict[str, Any]) -> DatasetInfo:
        """Write index, tokenizer and facts, force all to disk and read it back."""
        self._builder.finalize(str(self.output / f"{PREFIX}.idx"))
        self.tokenizer.save(self.output / TOKENIZER)
        answers = 0
        if self._answers is not None:
            answers = self._answers.finish(self._digest)
        info = DatasetInfo(
            len(self.names),
            self._tokens,
            self.dtype.name,
            self.tokenizer.vocab_size,
            self._digest.hexdigest(),
            self.tokenizer.fingerprint,
            sum(self.words),
            self.names,
            self.words,
            report,
            answers,
        )
        info.save(self.output)
        files.sync_tree(self.output)
        Documents.open(self.output).verify()
        return info


class _AnswersWriter:
    """Writes `answers.npy`, whose rows are on disk as they come, and `task.json`."""

    def __init__(self, output: Path, task: dict[str, Any]) -> None:
        self._final, self._raw = output / ROWS, output / f"{ROWS}{files.PARTIAL}"
        self._file = open(self._raw, "wb")  # noqa: SIM115  (until finish())
        self._count = 0
        files.write_json(output / TASK, task)

    def add(self, document: int, answers: np.ndarray | None) -> None:
        if answers is None or not len(answers):
            return
        rows = np.empty((len(answers), len(COLUMNS)), dtype=np.int64)
        rows[:, 0], rows[:, 1:] = document, answers
        self._file.write(rows.tobytes())
        self._count += len(rows)

    def finish(self, digest: Any) -> int:
        """Give the table its form, add its rows to a hash, and return their number."""
        self._file.close()
        rows = np.memmap(self._raw, np.int64, "r", shape=(self._count, len(COLUMNS)))
        np.save(self._final, rows)
        update_with_rows(digest, rows)
        del rows
        self._raw.unlink()
        return self._count


def _documents(
    job: Job, index: int, dtype: np.dtype
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """A shard's entries with their tokens (empty for those left out)."""
    path = shard_path(job, index)
    record = files.read_json(path)
    expected = sum(d.get("tokens", 0) for d in record["documents"]) * dtype.itemsize
    data = path.with_suffix(".tokens")
    if data.stat().st_size != expected:
        raise UserError(f"{data} was changed or cut short; delete {path.parent} and prepare again")
    start, tokens = 0, np.memmap(data, dtype, "r") if expected else np.empty(0, dtype)
    for entry in record["documents"]:
        count = entry.get("tokens", 0)
        yield entry, np.asarray(tokens[start : start + count])
        start += count
