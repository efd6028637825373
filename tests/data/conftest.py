from __future__ import annotations

import pytest

from support.small_data import request, run, write_books


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with 9 books in `books/` and what was made of them in `data/`; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    write_books(folder / "books", 9)
    run(request(folder, validation_documents=2))
    return folder
