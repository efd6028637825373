"""`infty prepare`: the same bytes whoever does the work, and nothing kept or dropped in silence."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infty.data import build, sources
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
    assert {p.name for p in (prepared / "data").iterdir()} == {
        "train",
        "validation",
        "report.json",
        "sources.json",
    }
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


@pytest.mark.parametrize(
    "options, words",
    [
        ({"validation_documents": 3}, "are new in train"),
        ({"vocab_size": 340}, "vocab_size was 330 and is 340 now"),
        ({"min_words": 5}, "min_words was 1 and is 5 now"),
    ],
)
def test_other_arguments_are_refused(prepared, options, words):
    with pytest.raises(
        UserError, match=rf"with other options \(.*({words}).*\); give another output, or"
    ):
        run(request(prepared, **{"validation_documents": 2} | options))


@pytest.fixture
def made(prepared, tmp_path):
    """Books and what was made of them, to be changed."""
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, tokenizer=prepared / "data/train", validation_documents=2)
    run(wanted)
    return wanted


def edit(path: Path, keep_time: bool) -> None:
    """Other words of the same length."""
    before = path.stat()
    path.write_text(path.read_text().replace("sea", "bay"))
    assert path.stat().st_size == before.st_size
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("book", ["book02.txt", "book04.txt"])  # held out, and not
def test_an_edited_book_is_noticed(made, book, keep_time):
    before = contents(made.output)
    edit(made.input / book, keep_time)
    with pytest.raises(
        UserError, match=rf"\({book} has changed since\); give another output, or delete it first"
    ):
        run(made)
    assert contents(made.output) == before


def test_books_that_only_look_changed_are_read_and_found_the_same(made):
    """Copied anew, packed anew, or edited and mended again."""
    for path in made.input.iterdir():
        os.utime(path, ns=(0, 10**18))
    said = []
    prepare(made, 1, silent, said.append)
    assert said == [f"{made.output} is already prepared"]


def test_books_that_are_new_or_gone_are_named(made):
    made = replace(made, output=made.output.with_name("all"), validation_documents=0)
    run(made)
    (made.input / "book99.txt").write_text("one more")
    with pytest.raises(UserError, match=r"book99\.txt is new in train"):
        run(made)
    (made.input / "book99.txt").unlink()
    (made.input / "book04.txt").rename(made.input.parent / "elsewhere.txt")
    with pytest.raises(UserError, match=r"book04\.txt is no longer in train"):
        run(made)
    (made.output / "sources.json").write_text("{")
    with pytest.raises(UserError, match="earlier version of infty"):
        run(made)


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
    (tmp_path / "held/held.pdf").write_text("not a book")
    report = run(
        request(
            tmp_path, validation=tmp_path / "held", tokenizer=prepared / "data/train", min_words=3
        )
    )
    assert left_out(report) == {
        "book01.txt": "duplicate of seen.txt",
        "copy.txt": "duplicate of book00.txt",
        "latin.txt": "not UTF-8",
        "empty.txt": "empty",
        "short.txt": "fewer than 3 words",
        "zero.txt": "binary",
        "more.jsonl:2": "field 'text' is a number",
    }
    assert report["ignored"] == [
        {"name": "notes.md", "problem": "of a kind that is not read"},
        {"name": "held.pdf", "problem": "of a kind that is not read"},
    ]
    assert Documents.open(tmp_path / "data/train").names == [
        "book00.txt",
        "book02.txt",
        "more.jsonl:1",
    ]
    assert json.loads((tmp_path / "data/report.json").read_text()) == report
    assert (
        Documents.open(tmp_path / "data/train").tokenizer.fingerprint
        == Tokenizer.load(prepared / "data/train").fingerprint
    )


def test_nothing_usable(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_bytes(b"\0\0")
    with pytest.raises(UserError, match="no usable text to train a tokenizer on"):
        run(request(tmp_path))
    assert not (tmp_path / "data").exists()


def test_too_little_text_for_the_vocabulary(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("a small text")
    with pytest.raises(UserError, match=r"too large for so little text.* Give more text"):
        run(request(tmp_path, vocab_size=5000))
    assert not (tmp_path / "data").exists()
    with pytest.raises(
        UserError, match="so little text"
    ):  # the advice can be followed: nothing is in its way
        run(request(tmp_path, vocab_size=2000))
    run(request(tmp_path, vocab_size=280))


def test_a_folder_that_is_not_ours_is_left_alone(prepared, tmp_path):
    for name in ("data", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.doc").write_text("precious")
    before = contents(tmp_path)
    (tmp_path / "file").write_text("x")
    books = prepared / "books"
    for output, words in (
        ("data", "was not made by infty prepare"),
        ("other", "was not made by infty prepare"),
        ("file", "was not made by infty"),
        ("file/data", "cannot be made"),
    ):
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


@pytest.mark.parametrize(
    "options, words",
    [
        ({"validation_documents": 9}, "only 9 file"),
        ({"validation": Path("/nowhere"), "validation_documents": 2}, "are mutually exclusive"),
        ({"validation": Path("/nowhere")}, "--validation /nowhere does not exist"),
        ({"tokenizer": Path("/nowhere.model")}, "no tokenizer at /nowhere.model"),
    ],
)
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
    model.add_special_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "books").mkdir()
    (tmp_path / "books/a.txt").write_text("calm sea calm storm")
    report = run(request(tmp_path, tokenizer=tmp_path / "tokenizer.json"))
    assert report["datasets"]["train"]["inexact"] == ["a.txt"]  # nobody knows the storm
    documents = Documents.open(tmp_path / "data/train")
    assert documents.info.dtype == "int32" and documents.vocab_size == 70_001
    assert documents.read(0, 0, 5).tolist() == [3, 70_000, 3, 0, 1]


def test_short_books_without_spaces(prepared, tmp_path):
    """A Chinese character counts as a word, or every book in Chinese would have one."""
    (tmp_path / "books").mkdir()
    (tmp_path / "books/long.txt").write_text("山" * 300 + "。\n" + "水" * 300)
    (tmp_path / "books/short.txt").write_text("山" * 300)
    report = run(request(tmp_path, tokenizer=prepared / "data/train", min_words=500))
    assert left_out(report) == {"short.txt": "fewer than 500 words"}
    assert report["datasets"]["train"]["words"] == 600


def test_the_end_of_a_document_is_chosen(tmp_path):
    """Read in the tokenizer's files, or named; never a token that a text gives."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, [])
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<eos>", "<stop>"])
    model.add_tokens(["</s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<eos>"}')
    write_books(tmp_path / "books", 2)
    for name, given, end in (("a", None, 256), ("b", "<stop>", 257)):
        report = run(
            request(tmp_path, name, tokenizer=tmp_path / "tokenizer.json", end_token=given)
        )
        documents = Documents.open(tmp_path / name / "train")
        assert [
            documents.read(i, n - 1, n).tolist() for i, n in enumerate(documents.lengths.tolist())
        ] == [[end]] * 2
        assert documents.tokenizer.eos_id == end and report["datasets"]["train"]["inexact"] == []
        run(request(tmp_path, name + "2", tokenizer=tmp_path / name / "train"))
        assert (
            Documents.open(tmp_path / (name + "2") / "train").fingerprint == documents.fingerprint
        )
    with pytest.raises(UserError, match=r"'</s>' cannot end documents .*\(it has <eos>, <stop>\)"):
        run(request(tmp_path, "c", tokenizer=tmp_path / "tokenizer.json", end_token="</s>"))
    with pytest.raises(UserError, match="end_token was '<eos>' and is '<stop>' now"):
        run(request(tmp_path, "a", tokenizer=tmp_path / "tokenizer.json", end_token="<stop>"))
    assert not (tmp_path / "c.partial").exists()


def test_the_output_may_lie_in_the_input(tmp_path):
    """What is made is no input, and nothing that is left out either."""
    books = write_books(tmp_path / "books", 3)
    wanted = Request(books, books / "made/data", vocab_size=330)
    for _ in range(2):
        assert run(wanted)["ignored"] == []
    with pytest.raises(UserError, match="is not a name for a new folder"):
        run(Request(books, Path("."), vocab_size=330))


def test_a_document_longer_than_the_index_can_count(prepared, tmp_path, monkeypatch):
    """In 32 bits; a smaller limit stands in for that one. Named, where it would become a negative length."""
    write_books(tmp_path / "books", 2)
    (tmp_path / "books/short.txt").write_text("a short book")
    monkeypatch.setattr(build, "LONGEST", 50)
    job = build.Job(tmp_path / "shards", prepared / "data/train")
    (tmp_path / "shards").mkdir()
    tokenizer = Tokenizer.load(prepared / "data/train")
    for i, source in enumerate(sources.find(tmp_path / "books")):
        build.make_shard(job, tokenizer, i, source)
    info = build.merge(job, tokenizer, range(3), tmp_path / "merged", {})
    assert info.names == ["short.txt"]
    assert [entry["problem"] for entry in info.report["left_out"]] == ["more than 50 tokens"] * 2
