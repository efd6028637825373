"""Real prose for tasks: stretches of books, some of which only held-out documents are made of.

A prepared output gives training prose from `train` and held-out prose from `validation`. Of
anything else, the last tenth of every text is held out.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infty.errors import UserError

if TYPE_CHECKING:
    from infty.data.documents import Documents
    from infty.data.sources import Source
    from infty.data.tokenizer import Tokenizer

HELD_OUT = 0.1
"""The share at the end of every text, where there are no held-out texts."""
SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]”’]*\s+|\n\s*\n\s*""")
SAMPLE = 20_000
"""Characters that tell how many of them a token has."""


class Texts(ABC):
    """Some texts, of which stretches are read."""

    sizes: np.ndarray
    """int64 [texts]: about how many tokens each has."""

    @abstractmethod
    def text(self, number: int, start: int, stop: int) -> str:
        """About the tokens start..stop-1 of a text, 0 <= start < stop <= its size."""

    def ids(self, number: int, start: int, count: int, limit: int, made: Tokenizer) -> np.ndarray:
        """int64 [count]: ids of a text from about its token `start` on, made by a tokenizer.

        Nothing from about the token `limit` on is read; there may be fewer.
        """
        stop = min(start + 4 * count, limit)  # its tokens may be longer than those of the text
        return made.encode(self.text(number, start, stop))[:count]


class DatasetTexts(Texts):
    """The documents of a prepared dataset, without their end tokens."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self.sizes = documents.lengths - 1

    def text(self, number: int, start: int, stop: int) -> str:
        return self._documents.tokenizer.decode(self._documents.read(number, start, stop))

    def ids(self, number: int, start: int, count: int, limit: int, made: Tokenizer) -> np.ndarray:
        if made.fingerprint == self._documents.info.tokenizer_fingerprint:
            return self._documents.read(number, start, min(start + count, limit))
        return super().ids(number, start, count, limit, made)


class FileTexts(Texts):
    """Text files, read when they are needed."""

    def __init__(self, found: list[Source], tokenizer: Tokenizer) -> None:
        self._sources = found
        self._read = lru_cache(maxsize=64)(self._text_of)
        usable = [i for i in range(len(found)) if self._read(i).strip()]
        if not usable:
            raise UserError("--text holds no usable text: every file is empty, binary or not UTF-8")
        self._usable = usable
        start = self._read(usable[0])[:SAMPLE]
        self._characters = len(start) / max(1, len(tokenizer.encode(start)))  # of a token
        lengths = np.array([len(self._read(i)) for i in usable])
        self.sizes = (lengths / self._characters).astype(np.int64)

    def _text_of(self, i: int) -> str:
        from infty.data import sources

        texts = sources.read(self._sources[i])
        return "\n".join(text.text for text in texts if text.text is not None)

    def text(self, number: int, start: int, stop: int) -> str:
        text = self._read(self._usable[number])
        return text[int(start * self._characters) : int(stop * self._characters)]


@dataclass(frozen=True)
class Prose:
    """Where tasks take their prose from."""

    train: Texts
    validation: Texts
    shares: tuple[tuple[float, float], tuple[float, float]]
    """Which part of every text is for training documents, and which for held-out ones."""
    tokenizer: Tokenizer
    fingerprint: str

    def sentences(
        self,
        random: np.random.Generator,
        held_out: bool,
        tokens: int,
        avoid: re.Pattern[str],
    ) -> list[str]:
        """Sentences in their order, each with the white space behind it: about `tokens` tokens.

        Those in which `avoid` is found are left out. Stretches of several texts follow each other
        where one does not suffice. Raises UserError.
        """
        found: list[str] = []
        wanted = tokens
        for _ in range(10_000):
            texts, number, start, size = self._place(random, held_out, wanted)
            stretch = texts.text(number, start, start + min(size, wanted + 64))
            kept = [s for s in split_sentences(stretch) if not avoid.search(s)]
            found += kept
            characters = sum(map(len, kept))
            wanted -= round(min(size, wanted + 64) * characters / max(1, len(stretch)))
            if wanted <= 0:
                return found
        raise UserError("--text has too few whole sentences: give other texts")

    def ids(self, random: np.random.Generator, held_out: bool, tokens: int) -> np.ndarray:
        """int64 [tokens]: a stretch of one text. Raises UserError when none is as long."""
        for _ in range(100):
            texts, number, start, size = self._place(random, held_out, tokens, whole=True)
            ids = texts.ids(number, start, tokens, start + size, self.tokenizer)
            if len(ids) == tokens:
                return ids
        raise UserError(
            f"almost no text of --text has {tokens:,} tokens in a row: give longer texts or a "
            "smaller --length"
        )

    def _place(
        self, random: np.random.Generator, held_out: bool, tokens: int, whole: bool = False
    ) -> tuple[Texts, int, int, int]:
        """Where a stretch may be taken: texts, number, first token, tokens from there to the end."""
        texts = self.validation if held_out else self.train
        low, high = self.shares[held_out]
        first = np.ceil(low * texts.sizes).astype(np.int64)
        rooms = (high * texts.sizes).astype(np.int64) - first
        weights = (rooms - tokens + 1).clip(0) if whole else rooms.clip(0)
        if not weights.sum():
            part = "held-out" if held_out else "training"
            raise UserError(
                f"--text has no {part} text with {tokens:,} tokens in a row (the longest has "
                f"{int(rooms.max()):,}): give longer texts or a smaller --length"
                if whole
                else f"--text has almost no {part} text: give more"
            )
        number = int(random.choice(len(weights), p=weights / weights.sum()))
        start = int(first[number] + random.integers(0, max(1, rooms[number] - tokens + 1)))
        return texts, number, start, int(first[number] + rooms[number] - start)


def split_sentences(text: str) -> list[str]:
    """The whole sentences of a stretch of text, each with the white space behind it."""
    borders = [match.end() for match in SENTENCE_END.finditer(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def open_prose(path: Path, tokenizer: Path | None) -> Prose:
    """The prose of a prepared output, a dataset, or text files. Raises UserError."""
    from infty.data.documents import INFO
    from infty.data.tokenizer import Tokenizer

    given = None
    if tokenizer is not None:
        given = Tokenizer.load(tokenizer)
        given.check_end()
    parts = [path / name for name in ("train", "validation")]
    held = [part for part in parts if (part / INFO).is_file()]
    if held:
        return _of_datasets(held, given)
    if (path / INFO).is_file():
        return _of_datasets([path], given)
    if given is None:
        raise UserError(
            f"--text {path} is not a prepared dataset: prepare one (infty prepare), or name a "
            "tokenizer for these texts with --tokenizer"
        )
    return _of_files(path, given)


def _of_datasets(folders: list[Path], given: Tokenizer | None) -> Prose:
    from infty.data.documents import Documents

    datasets = [Documents.open(folder) for folder in folders]
    for folder, documents in zip(folders, datasets):
        if documents.answers is not None:
            raise UserError(
                f"--text {folder} is a dataset of the task {documents.answers.task}, not prose: give "
                "one that infty prepare made"
            )
    tokenizer = given or datasets[0].tokenizer
    texts = [DatasetTexts(documents) for documents in datasets]
    return Prose(
        texts[0],
        texts[-1],
        _shares(separate=len(texts) == 2),
        tokenizer,
        _digest([documents.fingerprint for documents in datasets]),
    )


def _of_files(path: Path, tokenizer: Tokenizer) -> Prose:
    from infty.data import sources

    found = sources.find(path, "--text")
    texts = FileTexts(found, tokenizer)
    facts = [[source.name, source.size, source.modified] for source in found]
    return Prose(texts, texts, _shares(separate=False), tokenizer, _digest(facts))


def _shares(separate: bool) -> tuple[tuple[float, float], tuple[float, float]]:
    if separate:
        return (0.0, 1.0), (0.0, 1.0)
    return (0.0, 1 - HELD_OUT), (1 - HELD_OUT, 1.0)


def _digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
