"""From a task to a training and a validation dataset, as `infty prepare` makes them from books.

    output/
      train/        a dataset (see infty.data.documents) with answers (infty.data.answers)
      validation/   another; no document is in both
      report.json   the task, its options, and what was made

Everything is made in `output.partial` and renamed at the end, so `output` is whole or absent.
Started again with the same arguments, interrupted work goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infty import files
from infty.data.answers import COLUMNS
from infty.data.documents import TOKENIZER
from infty.data.workplace import REPORT, Workplace
from infty.errors import UserError
from infty_tools.tasks.base import Sample, Task

if TYPE_CHECKING:
    from infty.data.tokenizer import Tokenizer

PARTS = ("train", "validation")
SHARD_DOCUMENTS, SHARD_TOKENS = 1000, 2**22
"""The most in a shard, which is what an interruption can lose."""
MOST_DRAWS = 1000
"""Of a document that is to belong to one of the sets."""
COMMAND = "infty task"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is to be made."""

    task: Task
    samples: int
    validation_samples: int
    seed: int

    @property
    def counts(self) -> dict[str, int]:
        """Documents of each part."""
        return dict(zip(PARTS, (self.samples, self.validation_samples)))

    @property
    def options(self) -> dict[str, Any]:
        """All that decides what is made; JSON values."""
        mine = {"samples": self.samples, "validation_samples": self.validation_samples}
        values = {"task": self.task.name, "seed": self.seed, **mine, **self.task.options()}
        return json.loads(json.dumps(values))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()

    @property
    def per_shard(self) -> int:
        """Documents of a shard."""
        return max(1, min(SHARD_DOCUMENTS, SHARD_TOKENS // self.task.longest))


def make(
    task: Task,
    output: Path,
    samples: int,
    validation_samples: int,
    seed: int = 0,
    progress: Progress = lambda *_: None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write output/train and output/validation. Returns the report. Raises UserError."""
    plan = Plan(task, samples, validation_samples, seed)
    done = _already_made(output, plan)
    if done is not None:
        tell(f"{output} is already made")
        return done
    task.check()
    place = Workplace(output, COMMAND)
    try:
        place.begin(plan.fingerprint, tell)
        tokenizer = task.tokenizer(place.folder / TOKENIZER)
        for part in PARTS:
            _make_shards(plan, part, place, tokenizer, progress)
        report = {"fingerprint": plan.fingerprint, "options": plan.options, "datasets": {}}
        for part in PARTS:
            report["datasets"][part] = _merge(plan, part, place, tokenizer, progress)
        files.write_json(place.result / REPORT, report)
        place.publish()
        return report
    finally:
        place.close()


def sample(task: Task, seed: int, held_out: bool, index: int) -> Sample:
    """Document `index` of a set, whatever else is made. Raises UserError."""
    random = np.random.default_rng([seed, int(held_out), index])
    for _ in range(MOST_DRAWS):
        drawn = task.draw(random, index, held_out)
        if task.disjoint or _is_held_out(drawn.ids) == held_out:
            return drawn
    raise UserError(
        f"the options of {COMMAND} {task.name} allow so few different documents that none is left "
        f"for {PARTS[held_out]}: make documents longer, or give more facts, keys or values"
    )


def _is_held_out(ids: np.ndarray) -> bool:
    """To which set a document belongs: half of all there can be to either."""
    return bool(hashlib.sha256(np.ascontiguousarray(ids, "<i8").tobytes()).digest()[0] & 1)


def _already_made(output: Path, plan: Plan) -> dict[str, Any] | None:
    """The report of the same work done before; None when there is no output. Raises UserError."""
    try:
        if not output.exists() and not output.is_symlink():
            return None
        if output.is_dir() and not any(output.iterdir()):
            return None
        report = files.read_json(output / REPORT)
        before = report["options"]
        _ = report["datasets"], before["task"]
    except (ValueError, TypeError, KeyError, FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"--output {output} exists and was not made by {COMMAND}; leaving it alone: give another"
        ) from None
    except OSError as error:
        raise UserError(f"--output {output} cannot be made: {error}") from error
    now = plan.options
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r} now"
        for name in dict.fromkeys([*now, *before])
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"--output {output} was made with other options ({'; '.join(changed)}); give another "
            "output, or delete it first"
        )
    return report


def _shards(plan: Plan, part: str, place: Workplace) -> Iterator[tuple[Path, range]]:
    """A file for every shard of a part, and the documents in it."""
    count = plan.counts[part]
    for first in range(0, count, plan.per_shard):
        path = place.shards / f"{part}-{first:09d}.json"
        yield path, range(first, min(count, first + plan.per_shard))


def _make_shards(
    plan: Plan, part: str, place: Workplace, tokenizer: Tokenizer, progress: Progress
) -> None:
    from infty.data.build import token_dtype

    dtype, held_out = token_dtype(tokenizer.vocab_size), part == "validation"
    for path, documents in _shards(plan, part, place):
        if path.is_file():
            continue
        lengths, answers = [], []
        with (
            files.whole(path.with_suffix(".tokens")) as tokens_path,
            files.whole(path.with_suffix(".answers")) as answers_path,
            open(tokens_path, "wb") as tokens_file,
            open(answers_path, "wb") as answers_file,
        ):
            for index in documents:
                made = sample(plan.task, plan.seed, held_out, index)
                tokens_file.write(made.ids.astype(dtype).tobytes())
                answers_file.write(made.answers.astype(np.int64).tobytes())
                lengths.append(len(made.ids))
                answers.append(len(made.answers))
                progress(f"making {part}", index + 1, plan.counts[part])
        files.write_whole(path, json.dumps({"lengths": lengths, "answers": answers}))


def _merge(
    plan: Plan, part: str, place: Workplace, tokenizer: Tokenizer, progress: Progress
) -> dict[str, Any]:
    """One dataset of a part's shards; what is said of it."""
    from infty.data.build import DatasetWriter

    about = {
        "task": plan.task.name,
        "seed": plan.seed,
        "kinds": list(plan.task.kinds),
        "options": plan.options,
    }
    writer = DatasetWriter(place.result / part, tokenizer, about)
    for path, documents in _shards(plan, part, place):
        progress(f"merging {part}", documents.start, plan.counts[part])
        for index, (ids, answers) in zip(documents, _documents(path, writer.dtype), strict=True):
            writer.add(f"{part}-{index}", ids, 0, answers)
    info = writer.finish({"task": plan.task.name})
    return {"documents": info.documents, "tokens": info.tokens, "answers": info.answers}


def _documents(path: Path, dtype: np.dtype) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A shard's documents: tokens, and int64 [answers, 5]."""
    try:
        record = files.read_json(path)
        tokens = np.fromfile(path.with_suffix(".tokens"), dtype)
        rows = np.fromfile(path.with_suffix(".answers"), np.int64).reshape(-1, len(COLUMNS) - 1)
        lengths, answers = record["lengths"], record["answers"]
        whole = len(tokens) == sum(lengths) and len(rows) == sum(answers)
    except (ValueError, TypeError, KeyError, FileNotFoundError):
        whole = False
    if not whole:
        raise UserError(
            f"{path} was changed or cut short; delete {path.parent} and run the command again"
        )
    start, first = 0, 0
    for length, count in zip(lengths, answers, strict=True):
        yield tokens[start : start + length], rows[first : first + count]
        start += length
        first += count
