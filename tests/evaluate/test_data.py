"""Which documents and tokens are read, and how many bytes their texts have."""

from __future__ import annotations

import numpy as np
import pytest

from infty.data.build import DatasetWriter
from infty.data.documents import Documents
from infty_tools.evaluate import data
from infty_tools.evaluate.run import names


@pytest.mark.parametrize("piece", [1, 2, 3, 1 << 16])
def test_bytes_are_counted_in_pieces(piece, tmp_path, vocabulary, monkeypatch):
    """Characters of several bytes and tokens, spaces at borders, an end token: as if it were all decoded at once."""
    monkeypatch.setattr(data, "PIECE", piece)
    texts = ["Call me Ishmael — é\n 中文 😀 x", " \n  the  sea", "中" * 9, "a"]
    writer = DatasetWriter(tmp_path / "data", vocabulary)
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == text
        ids = [*vocabulary.encode(text).tolist(), vocabulary.eos_id]
        writer.add(text[:3], np.array(ids), 3)
    writer.finish({})
    found = data.text_bytes(Documents.open(tmp_path / "data"))
    assert found.tolist() == [len(text.encode()) for text in texts]


def test_what_is_no_text_has_no_bytes(documents):
    assert data.text_bytes(data.limited(documents, None, 9)) is None
    assert len(data.text_bytes(data.limited(documents, 3, None))) == 3
    assert len(documents) == 4  # the view is another one


def test_models_that_end_alike_keep_their_paths(tmp_path):
    assert names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    alike = [tmp_path / "x" / "export", tmp_path / "y" / "export"]
    assert names([*alike, tmp_path / "z"]) == [*map(str, alike), "z"]
