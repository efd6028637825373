"""Prose for tasks."""

from __future__ import annotations

import pytest

from support.small_data import request, run, write_books


@pytest.fixture(scope="session")
def prose_folder(tmp_path_factory):
    """A prepared output with training and held-out books, and the books themselves."""
    folder = tmp_path_factory.mktemp("prose")
    write_books(folder / "books", 4, words=3000)
    run(request(folder, validation_documents=1, vocab_size=400))
    return folder
