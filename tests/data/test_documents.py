"""Datasets that were changed, and tokenizers."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from support.small_data import infty


@pytest.fixture
def copy(prepared, tmp_path):
    """A dataset to be damaged."""
    return shutil.copytree(prepared / "data/train", tmp_path / "train")


def cut(path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def change(folder, **values) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda f: cut(f / "tokens.bin", 2), "was cut short or changed"),
        (
            lambda f: (f / "tokens.bin").write_bytes((f / "tokens.bin").read_bytes() + b"xx"),
            "was cut short or changed",
        ),
        (lambda f: (f / "tokens.bin").unlink(), "tokens.bin is missing"),
        (lambda f: (f / "tokens.idx").unlink(), "tokens.idx is missing"),
        (lambda f: cut(f / "tokens.idx", 20), "prepare the dataset again"),
        (lambda f: (f / "tokens.idx").write_bytes(b"nonsense" * 20), "cannot be read"),
        (lambda f: (f / "dataset.json").unlink(), "is not a prepared dataset"),
        (lambda f: cut(f / "dataset.json", 30), "is damaged"),
        (lambda f: (f / "dataset.json").write_text("{}"), "is damaged"),
        (lambda f: (f / "dataset.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (
            lambda f: (f / "dataset.json").write_text('{"tokens": 1, "tokens": 2}'),
            "is damaged .the key 'tokens' is given twice",
        ),
        (
            lambda f: (f / "dataset.json").write_text("[" * 100_000),
            "is damaged .*nested too deeply",
        ),
        (lambda f: change(f, dtype="float99"), "is damaged .dtype is 'float99'"),
        (lambda f: change(f, tokens="7"), "is damaged .tokens is '7'"),
        (lambda f: change(f, documents=-1), "is damaged .documents is -1"),
        (lambda f: change(f, report={"left_out": 1}), "is damaged .report.left_out is 1"),
        (lambda f: change(f, later=1), "is damaged .*later"),
        (lambda f: change(f, names=["a"]), "names has 1 entries for 7"),
        (lambda f: change(f, word_counts=[1, 2]), "word_counts has 2 entries for 7"),
    ],
)
def test_a_damaged_dataset_is_refused(copy, damage, words):
    damage(copy)
    with pytest.raises(UserError, match=words):
        Documents.open(copy)


def test_one_flipped_bit_is_found(copy):
    raw = bytearray((copy / "tokens.bin").read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / "tokens.bin").write_bytes(bytes(raw))
    documents = Documents.open(copy)
    with pytest.raises(UserError, match="not the ones that were prepared"):
        documents.verify()


def test_another_tokenizer_is_refused(copy):
    model = copy / "tokenizer/tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\xa2\x06\x01x")  # one more field
    with pytest.raises(UserError, match="not the tokenizer this dataset was made with"):
        _ = Documents.open(copy).tokenizer


def test_a_folder_too_high_or_missing(prepared, tmp_path):
    with pytest.raises(UserError, match=r"did you mean .*data/train"):
        Documents.open(prepared / "data")
    with pytest.raises(UserError, match="prepare a dataset first"):
        Documents.open(tmp_path / "none")


def test_lanes_over_a_real_dataset(prepared):
    """Put together again, the windows of a lane are the books."""
    documents = Documents.open(prepared / "data/train")
    reader = LaneReader(documents, LaneSchedule(documents.lengths, 2, 64, seed=1), [1])
    window = reader.next_window(60)
    book = int(window.document[0, 0])
    mine = window.document[0] == book
    read = window.labels[0][mine][window.weights[0][mine] > 0]
    expected = documents.read(book, 1, int(documents.lengths[book]))
    assert read.tolist() == expected[: len(read)].tolist() and len(read) > 500


TEXTS = [
    "plain words",
    "two\nlines\n\n",
    "  indented\ttab  ",
    "naïve café — “quoted” 漢字 😀",
    "",
    "\n",
    "1234567",
]


@pytest.mark.parametrize("words", TEXTS)
def test_every_text_survives(prepared, words):
    tokenizer = Tokenizer.load(prepared / "data/train")
    ids = tokenizer.encode(words)
    assert ids.dtype == np.int64 and tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == words


def test_where_tokenizers_are_found(prepared, tmp_path):
    model = prepared / "data/train/tokenizer/tokenizer.model"
    prints = {Tokenizer.load(p).fingerprint for p in (model, model.parent, prepared / "data/train")}
    assert len(prints) == 1
    (tmp_path / "x.model").write_text("no model")
    with pytest.raises(UserError, match="not a sentencepiece model"):
        Tokenizer.load(tmp_path / "x.model")
    whole = model.read_bytes()
    piece = whole.index("▁".encode())  # becomes what is no text
    (tmp_path / "x.model").write_bytes(whole[:piece] + b"\xff" + whole[piece + 1 :])
    with pytest.raises(UserError, match="not a sentencepiece model: 'utf-8' codec"):
        Tokenizer.load(tmp_path / "x.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a Hugging Face tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(prepared / "books")


def test_a_tokenizer_that_cuts_pads_and_reads_ends(tmp_path):
    """As public tokenizers' files do: a book must come through whole, whatever words are in it."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, [])
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["</s>"])
    model.enable_truncation(8)
    model.enable_padding(length=16)
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    words = "the end is written </s> in some books"
    ids = tokenizer.encode(words)
    assert len(ids) == len(words) and tokenizer.eos_id == 256 and 256 not in ids
    assert tokenizer.decode(ids) == words


def test_a_tokenizer_without_an_end(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(UserError, match="needs a token that ends it"):
        Tokenizer.load(tmp_path)


def test_inspect(prepared, copy):
    done = infty("inspect", prepared / "data/train", "--samples", 2, "--verify")
    assert done.returncode == 0, done.stderr
    info = json.loads((prepared / "data/train/dataset.json").read_text())
    for part in (
        "verified",
        f"{info['documents']}",
        f"{info['tokens']:,}",
        "documents by length",
        "book00.txt",
    ):
        assert part in done.stdout
    first = (prepared / "books/book00.txt").read_text().split("\n")[0]
    assert first[:20] in done.stdout
    cut(copy / "tokens.bin", 2)
    done = infty("inspect", copy)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: ")
        and "Traceback" not in done.stderr
    )
