"""Prose for tasks."""

from __future__ import annotations

import numpy as np
import pytest

from infty.data.build import DatasetWriter
from infty.data.tokenizer import Tokenizer
from infty.data.vocabulary import train_sentencepiece
from support.small_data import text, write_books


@pytest.fixture(scope="session")
def prose_folder(tmp_path_factory):
    """A prepared output in `data/`, with training and held-out books, and the books in `books/`."""
    folder = tmp_path_factory.mktemp("prose")
    books = sorted(write_books(folder / "books", 4, words=3000).iterdir())
    train_sentencepiece([text(9, 3000)], 400, folder / "tokenizer.model")
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    for part, some in (("train", books[:3]), ("validation", books[3:])):
        writer = DatasetWriter(folder / "data" / part, tokenizer)
        for book in some:
            ids = tokenizer.encode(book.read_text()).tolist()
            writer.add(book.name, np.array([*ids, tokenizer.eos_id]), 3000)
        writer.finish({})
    return folder
