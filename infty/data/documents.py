"""A prepared dataset: one memory-mapped file of tokens, one document a book, and the tokenizer that made it.

| file | what it holds |
|---|---|
| `tokens.bin`, `tokens.idx` | the tokens, in megatron-core's IndexedDataset format; one sequence = one document |
| `dataset.json` | counts, names, fingerprints of data and tokenizer: `DatasetInfo` |
| `tokenizer/` | the tokenizer's own files |
| `answers.npy`, `task.json` | where only some tokens count, which: `infty.data.answers` |
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infty.data.answers import ROWS, Answers, Counted
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from infty.files import read_json

INFO, PREFIX, TOKENIZER = "dataset.json", "tokens", "tokenizer"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without reading its tokens."""

    documents: int
    tokens: int
    dtype: str
    vocab_size: int
    fingerprint: str
    """sha256 over all tokens and document lengths, and the rows of the answers where there are any."""
    tokenizer_fingerprint: str
    words: int
    """Words in the texts (see `infty.data.words`), for perplexity per word."""
    names: list[str]
    word_counts: list[int] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    """What was left out and why (`left_out`), and which documents their tokens do not give back (`inexact`)."""
    answers: int = 0
    """Rows of `answers.npy`, whose tokens alone count for loss and accuracy; 0: there is none, and all count."""

    def save(self, folder: Path) -> None:
        (folder / INFO).write_text(json.dumps(asdict(self), indent=1) + "\n")


class Documents:
    """Read access to a prepared dataset. Nothing is held in memory but the index."""

    def __init__(
        self, folder: Path, info: DatasetInfo, index: Any, answers: Answers | None
    ) -> None:
        self.folder, self.info, self._index = folder, info, index
        self.lengths = np.asarray(index.sequence_lengths, dtype=np.int64)
        self.answers = answers
        self.counted = Counted(self.lengths, answers)
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Documents:
        """Open a dataset and check that it is whole. Raises UserError saying what is missing or cut short."""
        folder = Path(folder)
        info = _read_info(folder)
        for suffix in ("bin", "idx"):
            if not (folder / f"{PREFIX}.{suffix}").is_file():
                raise UserError(
                    f"{folder}: {PREFIX}.{suffix} is missing; prepare the dataset again"
                )
        size, itemsize = (folder / f"{PREFIX}.bin").stat().st_size, np.dtype(info.dtype).itemsize
        if size != info.tokens * itemsize:
            raise UserError(
                f"{folder}/{PREFIX}.bin holds {size} bytes where {info.tokens * itemsize} are expected: "
                "it was cut short or changed; prepare the dataset again or copy it again"
            )
        _check_index(folder / f"{PREFIX}.idx", info.documents)
        from infty.megatron import indexed_dataset

        try:
            index = indexed_dataset.IndexedDataset(
                str(folder / PREFIX), multimodal=False, mmap=True
            )
            lengths = np.asarray(index.sequence_lengths, dtype=np.int64)
        except PermissionError:  # not damage: preparing again would not help
            raise
        except Exception as error:
            raise UserError(
                f"{folder}/{PREFIX}.idx cannot be read ({error}); prepare the dataset again"
            ) from error
        if len(lengths) != info.documents or int(lengths.sum()) != info.tokens:
            raise UserError(
                f"{folder}/{PREFIX}.idx does not match {INFO}: prepare the dataset again"
            )
        places = np.asarray(index.index.sequence_pointers, dtype=np.int64)
        if not np.array_equal(places, (lengths.cumsum() - lengths) * itemsize):
            raise UserError(
                f"{folder}/{PREFIX}.idx is damaged: documents do not follow each other in {PREFIX}.bin; "
                "prepare the dataset again or copy it again"
            )
        answers = Answers.open(folder, lengths)
        found = 0 if answers is None else len(answers)
        if found != info.answers:
            raise UserError(
                f"{folder}/{ROWS} holds {found} answers where {INFO} counts {info.answers}: make the "
                "dataset again or copy it again"
            )
        return cls(folder, info, index, answers)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        return self.info.fingerprint

    @property
    def names(self) -> list[str]:
        return self.info.names

    @property
    def vocab_size(self) -> int:
        return self.info.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded when first asked for; checked against the fingerprint the dataset was made with."""
        if self._tokenizer is None:
            tokenizer = Tokenizer.load(self.folder / TOKENIZER)
            if tokenizer.fingerprint != self.info.tokenizer_fingerprint:
                raise UserError(
                    f"{self.folder / TOKENIZER} is not the tokenizer this dataset was made with; "
                    "put the right one back or prepare the dataset again"
                )
            self._tokenizer = tokenizer
        return self._tokenizer

    def verify(self) -> None:
        """Read all tokens and compare them with the fingerprint. Raises UserError when they differ."""
        digest, dtype = hashlib.sha256(), np.dtype(self.info.dtype)
        for document, length in enumerate(self.lengths.tolist()):
            tokens = self._index.get(document)
            digest.update(
                length.to_bytes(8, "little") + np.ascontiguousarray(tokens, dtype).tobytes()
            )
        if self.answers is not None:
            update_with_rows(digest, self.answers.rows)
        if digest.hexdigest() != self.fingerprint:
            raise UserError(
                f"{self.folder}: the tokens are not the ones that were prepared (a damaged disk or an "
                "incomplete copy?); copy or prepare the dataset again"
            )

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of a document, int64."""
        return self._index.get(document, offset=start, length=stop - start).astype(np.int64)


def update_with_rows(digest: Any, rows: np.ndarray) -> None:
    """Add the rows of the answers to a hash, some at a time."""
    for first in range(0, len(rows), 2**16):
        digest.update(np.ascontiguousarray(rows[first : first + 2**16], "<i8").tobytes())


def _check_index(path: Path, documents: int) -> None:
    """What megatron-core would answer with a stack trace. The file: 34 bytes of header, then for every document its
    length (int32) and place (int64), then the numbers of the sequences that begin documents (int64, one more)."""
    with open(path, "rb") as f:
        header = f.read(17)
    begins_well = header == b"MMIDIDX\0\0" + (1).to_bytes(8, "little")  # and the format's version
    size, expected = path.stat().st_size, 34 + 12 * documents + 8 * (documents + 1)
    if not begins_well or size != expected:
        raise UserError(
            f"{path} cannot be read: it is not an index of {documents} documents (cut short or changed?); "
            "prepare the dataset again or copy it again"
        )


def _read_info(folder: Path) -> DatasetInfo:
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: prepare a dataset first (infty prepare --input BOOKS --output DATA)"
        )
    path = folder / INFO
    if not path.is_file():
        inner = sorted(p.parent.name for p in folder.glob(f"*/{INFO}"))
        hint = f"; did you mean {folder / inner[0]}?" if inner else " (infty prepare makes one)"
        raise UserError(f"{folder} is not a prepared dataset: it has no {INFO}{hint}")
    try:
        values = read_json(path)
        earlier = values.pop("counted_from", None) if isinstance(values, dict) else None
        info = DatasetInfo(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the dataset again") from error
    if earlier:
        raise UserError(
            f"{folder} was made by an earlier version of infty, which wrote down in another way which "
            "tokens count: make it again (infty task sorting)"
        )
    wrong = _wrong_value(info)
    if wrong is not None:
        raise UserError(f"{path} is damaged ({wrong}); prepare the dataset again")
    return info


def _wrong_value(info: DatasetInfo) -> str | None:
    """The first value that no dataset can have, in words."""
    for name in ("documents", "tokens", "vocab_size", "words", "answers"):
        value = getattr(info, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return f"{name} is {value!r}"
    if info.dtype not in ("uint16", "int32"):
        return f"dtype is {info.dtype!r}"
    for name in ("names", "word_counts"):
        values = getattr(info, name)
        kind = str if name == "names" else int
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            return f"{name} is not a list of {'names' if kind is str else 'numbers'}"
        if len(values) != info.documents and (values or name == "names"):
            return f"{name} has {len(values)} entries for {info.documents} documents"
    if not isinstance(info.report, dict):
        return f"report is {info.report!r}"
    for name in ("left_out", "inexact"):
        if not isinstance(info.report.get(name, []), list):
            return f"report.{name} is {info.report[name]!r}"
    return None
