"""Small datasets for the tests of data."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from infty.data.answers import Counted
from infty.data.documents import Documents
from infty.data.prepare import Request, prepare

WORDS = "the sea was calm and every house along the street kept its lamps lit while people spoke of ships".split()


def text(seed: int, words: int) -> str:
    """Some words in lines; the same for the same seed."""
    rng = random.Random(seed)
    return "\n".join(
        " ".join(rng.choices(WORDS, k=8)) + f" {seed} {i}." for i in range(max(1, words // 10))
    )


def write_books(folder: Path, count: int, words: int = 400) -> Path:
    """A folder of books of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"book{i:02d}.txt").write_text(text(i, words + 100 * ((7 * i) % 5)))
    return folder


def request(folder: Path, name: str = "data", **options) -> Request:
    return Request(folder / "books", folder / name, **{"vocab_size": 330, **options})


def silent(*_: object) -> None:
    pass


def run(wanted: Request, workers: int = 1) -> dict:
    return prepare(wanted, workers, silent, silent)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but `sources.json`, which has the times of the input's files in it."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "sources.json"
    }


def infty(
    *arguments: object, before: tuple[str, ...] = (), timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run the command as a person does."""
    command = [*before, sys.executable, "-m", "infty_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


class InMemory(Documents):
    """Documents without files: token i of document k is 1000 k + i + 1."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.answers = None
        self.counted = Counted(self.lengths)

    def read(self, document: int, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.lengths[document]:
            raise IndexError(f"{start}..{stop} of a document of {self.lengths[document]} tokens")
        return np.arange(start, stop, dtype=np.int64) + 1000 * document + 1
