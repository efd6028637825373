"""`infty prepare`: the same bytes whoever does the work, and nothing kept or dropped in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from infty.data import build
from infty.data.documents import Documents
from infty.data.prepare import Request, prepare
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from support.small_data import contents, request, run, silent, text, write_books


def left_out(report: dict, part: str = "train") -> dict[str, str]:
    return {d["name"]: d["problem"] for d in report["datasets"][part]["left_out"]}


def test_what_is_made(prepared):
    train, held_out = (Documents.open(prepared / "data" / part) for part in ("train", "validation"))
    assert (len(train), held_out.names) == (7, ["book02.txt", "book06.txt"])
    assert sorted(train.names + held_out.names) == [f"book{i:02d}.txt" for i in range(9)]
    for documents in (train, held_out):
        tokenizer = documents.tokenizer
        for i, name in enumerate(documents.names):
            original = (prepared / "books" / name).read_text()
            ids = documents.read(i, 0, int(documents.lengths[i]))
            assert ids.dtype == np.int64 and ids[-1] == tokenizer.eos_id
            assert tokenizer.decode(ids[:-1]) == original
            assert documents.info.word_counts[i] == len(original.split())
        documents.verify()
    assert train.tokenizer.fingerprint == held_out.tokenizer.fingerprint
    assert {p.name for p in (prepared / "data").iterdir()} == {"train", "validation", "report.json"}
    assert not (prepared / "data.partial").exists()


def test_the_number_of_workers_does_not_matter(prepared, tmp_path):
    again = Request(prepared / "books", tmp_path / "data", validation_documents=2, vocab_size=330)
    run(again, workers=3)
    assert contents(tmp_path / "data") == contents(prepared / "data")


def test_done_already(prepared):
    before = contents(prepared / "data")
    said = []
    prepare(request(prepared, validation_documents=2), 1, silent, said.append)
    assert said == [f"{prepared / 'data'} is already prepared"]
    assert contents(prepared / "data") == before


@pytest.mark.parametrize("options", [{"validation_documents": 3}, {"vocab_size": 340}, {"min_words": 5}])
def test_other_arguments_are_refused(prepared, options):
    with pytest.raises(UserError, match="other input or with other options; give another output, or delete"):
        run(request(prepared, **{"validation_documents": 2} | options))


def test_unusable_documents_are_listed(prepared, tmp_path):
    """Each with its reason; a text that is held out is not trained on."""
    books = tmp_path / "books"
    write_books(books, 3)
    shutil.copy(books / "book00.txt", books / "copy.txt")
    (books / "latin.txt").write_bytes(b"caf\xe9")
    (books / "empty.txt").write_text("")
    (books / "short.txt").write_text("two words")
    (books / "zero.txt").write_bytes(b"\0\1\2")
    (books / "notes.md").write_text("not a book")
    (books / "more.jsonl").write_text(json.dumps({"text": text(50, 300)}) + '\n{"text": 1}\n')
    (tmp_path / "held").mkdir()
    shutil.copy(books / "book01.txt", tmp_path / "held/seen.txt")
    report = run(request(tmp_path, validation=tmp_path / "held", tokenizer=prepared / "data/train", min_words=3))
    assert left_out(report) == {
        "book01.txt": "duplicate of seen.txt", "copy.txt": "duplicate of book00.txt", "latin.txt": "not UTF-8",
        "empty.txt": "empty", "short.txt": "fewer than 3 words", "zero.txt": "binary",
        "more.jsonl:2": "no field 'text'"}
    assert report["ignored"] == ["notes.md"]
    assert Documents.open(tmp_path / "data/train").names == ["book00.txt", "book02.txt", "more.jsonl:1"]
    assert json.loads((tmp_path / "data/report.json").read_text()) == report
    assert Documents.open(tmp_path / "data/train").tokenizer.fingerprint == \
        Tokenizer.load(prepared / "data/train").fingerprint


def test_nothing_usable(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="no usable text to train a tokenizer on"):
        run(request(tmp_path))
    assert not (tmp_path / "data").exists()


def test_too_little_text_for_the_vocabulary(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("a small text")
    with pytest.raises(UserError, match="smaller --vocab-size"):
        run(request(tmp_path, vocab_size=5000))
    assert not (tmp_path / "data").exists()


def test_a_folder_that_is_not_ours_is_left_alone(prepared, tmp_path):
    for name in ("data", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.doc").write_text("precious")
    before = contents(tmp_path)
    (tmp_path / "file").write_text("x")
    books = prepared / "books"
    for output, words in (("data", "was not made by infty prepare"), ("other", "was not made by infty prepare"),
                          ("file", "was not made by infty"), ("file/data", "cannot be made")):
        with pytest.raises(UserError, match=words):
            run(Request(books, tmp_path / output, vocab_size=330))
    (tmp_path / "file").unlink()
    assert contents(tmp_path) == before
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.json").write_text("[]")
    with pytest.raises(UserError, match="not infty's"):
        run(Request(books, tmp_path / "report"))


def test_an_empty_output_folder_is_used(prepared, tmp_path):
    (tmp_path / "data").mkdir()
    run(Request(prepared / "books", tmp_path / "data", tokenizer=prepared / "data/train"))
    assert len(Documents.open(tmp_path / "data/train")) == 9


@pytest.mark.parametrize("options, words", [
    ({"validation_documents": 9}, "only 9 file"),
    ({"validation": Path("/nowhere"), "validation_documents": 2}, "exclude each other"),
    ({"validation": Path("/nowhere")}, "--validation /nowhere does not exist"),
    ({"tokenizer": Path("/nowhere.model")}, "no tokenizer at /nowhere.model")])
def test_arguments_that_cannot_be(prepared, options, words):
    with pytest.raises(UserError, match=words):
        run(request(prepared, name="new", **options))
    assert not (prepared / "new").exists() and not (prepared / "new.partial").exists()


def test_held_out_documents_of_files_of_many(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.jsonl").write_text('{"text": "x"}\n' * 3)
    with pytest.raises(UserError, match="give it with --validation"):
        run(request(tmp_path, validation_documents=1))


def test_lines_of_any_length_train_a_tokenizer(tmp_path):
    """A book in one line, as JSON lines often have them."""
    (tmp_path / "books").mkdir()
    book = text(1, 20_000).replace("\n", " ")
    (tmp_path / "books/a.jsonl").write_text(json.dumps({"text": book}))
    run(request(tmp_path))
    documents = Documents.open(tmp_path / "data/train")
    assert documents.info.tokens < 0.6 * len(book)  # pieces of words, not letters


@pytest.mark.parametrize("vocabulary, kind", [(65_499, "uint16"), (65_500, "int32")])
def test_the_type_of_the_tokens(vocabulary, kind):
    assert build.token_dtype(vocabulary).name == kind


def test_big_vocabularies(tmp_path):
    """Ids beyond 16 bits, and an id beyond the vocabulary."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "</s>": 1, "sea": 70_000, "calm": 3}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("calm sea calm storm")
    run(request(tmp_path, tokenizer=tmp_path / "tokenizer.json"))
    documents = Documents.open(tmp_path / "data/train")
    assert documents.info.dtype == "int32" and documents.vocab_size == 70_001
    assert documents.read(0, 0, 5).tolist() == [3, 70_000, 3, 0, 1]
