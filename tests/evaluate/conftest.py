"""A prepared dataset of small texts, and a process that is a run of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infty.data.build import DatasetWriter
from infty.data.documents import Documents
from infty.data.words import count_words
from infty_pretrain.launch import Launch
from infty_tools.evaluate.run import Request, run
from support.runs import TEXT, tokenizer


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Of different lengths; the last is a few tokens long."""
    lines = TEXT.splitlines(keepends=True)
    return ["".join(lines[i : i + n]) for i, n in ((0, 5), (40, 30), (120, 14), (200, 1))]


@pytest.fixture(scope="session")
def data(tmp_path_factory, vocabulary, texts) -> Path:
    folder = tmp_path_factory.mktemp("data") / "validation"
    writer = DatasetWriter(folder, vocabulary)
    for i, text in enumerate(texts):
        ids = [*vocabulary.encode(text).tolist(), vocabulary.eos_id]
        writer.add(f"text {i}", np.array(ids, dtype=np.int64), count_words(text))
    writer.finish({})
    return folder


@pytest.fixture
def evaluated(monkeypatch, data):
    """A function that evaluates models on the dataset, as `infty evaluate` does, and returns what it found."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)

    def evaluate(*models: Path, modes=("on",), lanes=3, data=data, **options):
        request = Request(models, data, modes, lanes, **options)
        return run(request, Launch(0, 1, 0, "env"))

    return evaluate


@pytest.fixture
def documents(data) -> Documents:
    return Documents.open(data)
