"""The answers of a task's dataset: which tokens count for loss and accuracy, and what is known of each.

| file | what it holds |
|---|---|
| `answers.npy` | int64 [answers, 6], a row an answer (`COLUMNS`), by document and place, no overlap |
| `task.json` | `task` (its name), `seed`, `kinds` (names of the kinds of questions), `options` |

A dataset without `answers.npy` is text: every token counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infty.errors import UserError
from infty.files import read_json

ROWS, TASK = "answers.npy", "task.json"
COLUMNS = ("document", "start", "end", "depth_per_mille", "age_tokens", "kind")
"""Of a row: the document's index; the answer's first token in it, and the one after its last;
where in the document that which is asked for was told, in thousandths of the document; tokens from
there to the answer (from the last time, where it was told or answered again); the kind of question,
an index into `Answers.kinds`."""


@dataclass(frozen=True)
class Answers:
    """What `answers.npy` and `task.json` say. Rows stay on disk until they are looked at."""

    rows: np.ndarray
    """int64 [answers, 6]; columns are also attributes by the names in `COLUMNS`."""
    kinds: tuple[str, ...]
    task: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path, lengths: np.ndarray) -> Answers | None:
        """The answers of the dataset in `folder`, whose documents have `lengths` tokens.

        None where every token counts. Raises UserError when they do not belong to these documents.
        """
        folder = Path(folder)
        if not (folder / ROWS).is_file():
            return None
        rows = _read_rows(folder / ROWS)
        task = _read_task(folder / TASK)
        wrong = _wrong_row(rows, lengths, len(task["kinds"]))
        if wrong is not None:
            raise UserError(
                f"{folder / ROWS} is damaged ({wrong}); make the dataset again or copy it again"
            )
        return cls(rows, tuple(task["kinds"]), task["task"], task["seed"], task["options"])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def document(self) -> np.ndarray:
        return self.rows[:, 0]

    @property
    def start(self) -> np.ndarray:
        return self.rows[:, 1]

    @property
    def end(self) -> np.ndarray:
        return self.rows[:, 2]

    @property
    def depth_per_mille(self) -> np.ndarray:
        return self.rows[:, 3]

    @property
    def age_tokens(self) -> np.ndarray:
        return self.rows[:, 4]

    @property
    def kind(self) -> np.ndarray:
        return self.rows[:, 5]

    def of(self, document: int) -> np.ndarray:
        """The rows of one document, int64 [its answers, 6]."""
        first, after = np.searchsorted(self.document, [document, document + 1])
        return self.rows[first:after]


class Counted:
    """The mask of tokens that count: those of the answers, or all where there are none.

    A document's first token is predicted by nobody and never counts.
    """

    def __init__(self, lengths: np.ndarray, answers: Answers | None = None) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._everything = answers is None
        if answers is None:
            self.total = int((self._lengths - 1).clip(0).sum())
            """Tokens that count in the whole dataset."""
            return
        # Documents one behind the other, so that a place in the dataset is one number.
        self._first = np.cumsum(self._lengths) - self._lengths
        self._starts = self._first[answers.document] + answers.start
        self._ends = self._first[answers.document] + answers.end
        self._before = np.concatenate([[0], np.cumsum(self._ends - self._starts)])
        self.total = int(self._before[-1])

    def count(self, document: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """How many of the tokens start..stop-1 of each document count.

        int64 arrays of one shape, 0 <= start <= stop <= the document's length.
        """
        document, start, stop = (np.asarray(x, dtype=np.int64) for x in (document, start, stop))
        if self._everything:
            return stop - np.maximum(start, np.minimum(stop, 1))
        first = self._first[document]
        return self._counted_before(first + stop) - self._counted_before(first + start)

    def _counted_before(self, place: np.ndarray) -> np.ndarray:
        """How many tokens count before each place of the dataset."""
        begun = np.searchsorted(self._starts, place)
        last = np.maximum(begun - 1, 0)
        beyond = np.where(begun > 0, (self._ends[last] - place).clip(0), 0)
        return self._before[begun] - beyond

    def mask(self, document: int, start: int, stop: int) -> np.ndarray:
        """bool [stop - start]: which of a document's tokens start..stop-1 count."""
        counted = np.full(stop - start, self._everything)
        if self._everything:
            counted[: max(0, 1 - start)] = False
            return counted
        here = self._first[document] + start
        begin = np.searchsorted(self._ends, here, side="right")
        end = np.searchsorted(self._starts, here + stop - start)
        for row in range(begin, end):
            counted[max(0, self._starts[row] - here) : self._ends[row] - here] = True
        return counted


def _read_rows(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:  # not damage: making it again would not help
        raise
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); make the dataset again or copy it again"
        ) from error
    if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != len(COLUMNS) or not len(rows):
        raise UserError(
            f"{path} is not a table of answers: it holds {rows.dtype} {list(rows.shape)}, and int64 "
            f"[answers, {len(COLUMNS)}] is expected; make the dataset again"
        )
    return rows


def _read_task(path: Path) -> dict[str, Any]:
    try:
        task = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; make the dataset again or copy it again") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make the dataset again") from error
    types = {"task": str, "seed": int, "kinds": list, "options": dict}
    whole = isinstance(task, dict) and all(
        isinstance(task.get(name), kind) for name, kind in types.items()
    )
    if not whole or not all(isinstance(kind, str) for kind in task["kinds"]):
        raise UserError(
            f"{path} is damaged (it does not hold task, seed, kinds and options); make the dataset again"
        )
    return task


def _wrong_row(rows: np.ndarray, lengths: np.ndarray, kinds: int) -> str | None:
    """The first thing that no table of answers can hold, in words."""
    document, start, end, depth, age, kind = rows.T
    if document.min() < 0 or document.max() >= len(lengths):
        return f"a document that is not one of {len(lengths)}"
    if start.min() < 1 or (start >= end).any() or (end > lengths[document]).any():
        return "an answer that does not lie in its document"
    same = document[1:] == document[:-1]
    if (document[1:] < document[:-1]).any() or (same & (start[1:] < end[:-1])).any():
        return "answers that do not follow each other"
    if kind.min() < 0 or kind.max() >= kinds:
        return f"a kind that is not one of {kinds}"
    if depth.min() < 0 or depth.max() > 1000 or age.min() < 0:
        return "a depth or an age that cannot be"
    return None
