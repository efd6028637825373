"""A run, its checkpoint and its export give the same figures; so do they in every mode of their memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from infty.data.build import DatasetWriter
from infty.data.documents import Documents
from infty_pretrain import evaluation, memory_modes
from infty_tools.evaluate.results import NO_MEMORY
from infty_tools.export.exporter import Exporter
from support.runs import make_run
from support.twins import VARIANTS

pytestmark = pytest.mark.usefixtures("single_process")
MODES = tuple(memory_modes.MODES)


@pytest.fixture(params=["paper with stm", "gist and facts", "continuation", "no memory"])
def places(request, tmp_path, vocabulary, monkeypatch):
    """A run's folder, its checkpoint, and its export."""
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested elsewhere")
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS[request.param], vocabulary, 0.3)
    Exporter(checkpoint).write(tmp_path / "export")
    return tmp_path / "run", checkpoint, tmp_path / "export"


def values(figures, prefix="") -> dict[str, float]:
    """Every number of nested figures by its place."""
    if isinstance(figures, dict):
        return {k: v for n, x in figures.items() for k, v in values(x, f"{prefix}.{n}").items()}
    if isinstance(figures, list):
        return {k: v for n, x in enumerate(figures) for k, v in values(x, f"{prefix}.{n}").items()}
    return {prefix: figures} if isinstance(figures, int | float) else {}


def test_a_run_its_checkpoint_and_its_export(places, evaluated, texts):
    found = evaluated(*places, modes=MODES)
    run, checkpoint, export = (model["memory"] for model in found["models"])
    assert run == checkpoint
    assert tuple(run) in (MODES, (NO_MEMORY,))
    got, expected = values(export), values(run)
    assert got.keys() == expected.keys() and len(expected) > 20
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name
    for figures in run.values():
        total = figures["nll"] * figures["tokens"]
        for unit, count in (
            ("word", sum(len(text.split()) for text in texts)),
            ("byte", sum(len(text.encode()) for text in texts)),
        ):
            assert figures[f"{unit}s"] == count
            assert figures[f"{unit}_perplexity"] == pytest.approx(math.exp(total / count))
    first, second = found["comparisons"]
    assert first["ratio"] == 1 and first["interval"] == [1, 1]
    assert second["ratio"] == pytest.approx(1, rel=1e-5)


def test_figures_are_those_of_one_reading_by_hand(tmp_path, vocabulary, evaluated, documents):
    """One document after the other, all of it at once, nothing else of the program."""
    checkpoint, model = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary)
    nll = []
    with torch.no_grad():
        for d, length in enumerate(documents.lengths.tolist()):
            ids = torch.from_numpy(documents.read(d, 0, length))
            padded = F.pad(ids[:-1], (0, -(length - 1) % 8)).view(1, -1, 8)
            begins = torch.arange(padded.shape[1])[None] == 0
            logits = model(padded, begins, model.initial_state(1))[0]
            logits = logits.flatten(0, 2)[: length - 1, : model.config.vocab_size]
            nll.append(F.cross_entropy(logits, ids[1:], reduction="none").double())
    [figures] = evaluated(checkpoint)["models"][0]["memory"].values()
    assert figures["nll"] == pytest.approx(torch.cat(nll).mean().item(), rel=1e-6)
    for row in figures["by_position"]:
        there = torch.cat([x[row["from"] : row["to"]] for x in nll])
        assert (row["tokens"], row["nll"]) == (len(there), pytest.approx(there.mean().item()))
        reached = sum(len(x) > row["from"] for x in nll)
        assert row["documents"] == reached and ("interval" in row) == (reached > 1)


@pytest.mark.parametrize("name", ["continuation", "gist and facts", "paper with stm"])
def test_the_memory_of_another_reading_of_the_same_text_is_the_own_one(
    name, tmp_path, vocabulary, evaluated, documents
):
    """And what the others read is never the own document, and goes on where one of them ends."""
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS[name], vocabulary, 0.3)
    twice = DatasetWriter(tmp_path / "twice", vocabulary)
    ids = documents.read(1, 0, int(documents.lengths[1]))
    for copy in ("one", "two"):
        twice.add(copy, ids, 10)
    twice.finish({})
    modes = evaluated(checkpoint, modes=MODES, data=tmp_path / "twice")["models"][0]["memory"]
    assert modes["other"]["nll"] == pytest.approx(modes["on"]["nll"], rel=1e-6)
    modes = evaluated(checkpoint, modes=MODES)["models"][0]["memory"]
    assert abs(modes["other"]["nll"] - modes["on"]["nll"]) > 1e-5


def test_what_a_donor_reads(documents):
    model = evaluation.Trained.__new__(evaluation.Trained)
    model.segment_length, model.window_segments, model.device = 8, 1, "cpu"
    other = memory_modes.Other(model, documents)
    whole = [documents.read(d, 0, int(n)).tolist() for d, n in enumerate(documents.lengths)]
    everything = whole[2] + whole[3] + whole[0]  # the donor of document 1
    again = (everything * 2)[: len(everything) + 50]
    assert other.text(1, 0, len(again)).tolist() == again
    assert other.text(1, len(everything) - 3, 8).tolist() == again[len(everything) - 3 :][:8]


def test_one_document_alone_has_no_other(tmp_path, vocabulary, evaluated):
    from infty.errors import UserError

    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary)
    with pytest.raises(UserError, match="no second document"):
        evaluated(checkpoint, modes=("other",), documents=1)


def test_reading_takes_a_window_at_a_time(tmp_path, vocabulary, evaluated, monkeypatch):
    """However long a document is, no more than a segment and the token after it is fetched at once."""
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary)
    fetched = []
    plain = Documents.read

    def read(self, document, start, stop):
        fetched.append(stop - start)
        return plain(self, document, start, stop)

    monkeypatch.setattr(Documents, "read", read)
    monkeypatch.setattr("infty_tools.evaluate.run.text_bytes", lambda documents: None)
    evaluated(checkpoint, modes=("on", "other"))
    assert max(fetched) == 9


def test_limits(tmp_path, vocabulary, evaluated, documents):
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary)
    [some] = evaluated(checkpoint, documents=2)["models"][0]["memory"].values()
    assert some["tokens"] == documents.lengths[:2].sum() - 2 and some["documents"] == 2
    assert some["words"] == sum(documents.info.word_counts[:2]) and "byte_perplexity" in some
    [short] = evaluated(checkpoint, tokens=20)["models"][0]["memory"].values()
    assert short["tokens"] == sum(min(20, n) - 1 for n in documents.lengths)
    assert not {"words", "bytes"} & short.keys()
