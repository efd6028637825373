"""Values from the command line of `prepare`, `inspect` and `books`: checked before any work begins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools.cli import app
from support.small_data import write_books


def said(*arguments: object) -> str:
    """What a command that is refused says, in one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    refused = isinstance(result.exception, UserError) or result.exit_code == 2
    assert refused, (result.output, result.exception)
    return " ".join(f"{result.exception} {result.output}".replace("│", " ").split())


@pytest.fixture
def books(tmp_path):
    return write_books(tmp_path / "books", 3)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--vocab-size", 259], "260 to 2,000,000"),
        (["--vocab-size", 10**10], "260 to 2,000,000"),
        (["--vocab-size", "many"], "many is not a whole number from 260"),
        (["--workers", 0], "1 to 1,024"),
        (["--workers", 10**6], "1 to 1,024"),
        (["--min-words", 0], "1 to 1,000,000,000"),
        (["--validation-documents", -1], "-1 is not a whole number from 0"),
        (["--validation-documents", 3], "only 3 file"),
        (["--validation", ""], "it is empty"),
        (["--tokenizer", ""], "it is empty"),
        (["--field", ""], "it is empty"),
        (["--field", "caf\udce9"], "is not UTF-8"),
        (["--end-token", "\udce9"], "is not UTF-8"),
        (["--field", "body"], "--field body has no effect"),
        (["--end-token", "</s>"], "which is not given"),
        (["--tokenizer", "x.model", "--vocab-size", 300], "leave one of them out"),
        (["--tokenizer", "none.model"], "no tokenizer at none.model"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_prepare(books, tmp_path, options, words, more):
    assert words in said(
        "prepare", "--input", books, "--output", tmp_path / "data", *options, *more
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["books"]


@pytest.mark.parametrize(
    "output, words",
    [
        ("", "it is empty"),
        (".", "is not a name"),
        ("/", "is not a name"),
        ("a/..", "is not a name"),
        ("caf\udce9", "is not UTF-8"),
        ("x" * 300, "cannot be made"),
        ("/proc/none/data", "cannot be made"),
    ],
)
def test_outputs_that_cannot_be(books, output, words):
    assert words in said("prepare", "--input", books, "--output", output)


def test_inputs_that_cannot_be(tmp_path):
    for given, words in (
        ("", "it is empty"),
        ("none", "does not exist"),
        ("x" * 300, "cannot be read"),
    ):
        assert words in said("prepare", "--input", given, "--output", tmp_path / "data")
    assert "it is empty" in said("inspect", "")
    assert "0 to 10,000" in said("inspect", tmp_path, "--samples", 10**9)
    assert "--books" in said("books", "--output", tmp_path / "new", "--books", "")
    assert "1 to 1,000,000,000" in said("books", "--output", tmp_path / "new", "--min-words", 0)
    assert not list(tmp_path.iterdir())


def test_workers_under_mpirun(books, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert "no effect under mpirun" in said(
        "prepare", "--input", books, "--output", tmp_path / "data", "--workers", 2
    )


def test_a_dry_run_says_what_would_be_read(prepared, tmp_path):
    books = write_books(tmp_path / "books", 3)
    (books / "notes.md").write_text("other")
    result = CliRunner().invoke(
        app,
        [
            "prepare",
            "--input",
            str(books),
            "--output",
            str(tmp_path / "data"),
            "--dry-run",
            "--tokenizer",
            str(prepared / "data/train"),
        ],
    )
    assert result.exit_code == 0
    for part in (
        "train: 3 file(s)",
        "end of a document: </s>",
        "not read: 1 (first: notes.md",
        "Nothing was written",
    ):
        assert part in result.output


def test_names_and_texts_that_the_terminal_cannot_write(prepared, tmp_path):
    """A folder and a file whose names are not UTF-8, and a terminal that is not."""
    folder = os.fsencode(tmp_path / "books") + b"\xe9"
    os.mkdir(folder)
    for i in range(2):
        with open(folder + b"/caf\xe9%d.txt" % i, "w") as f:
            f.write(f"so many words in book {i} — ")
    (tmp_path / "books\udce9/\udcff.md").write_text("other")
    command = [sys.executable, "-m", "infty_tools"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [
            *command,
            "prepare",
            "--input",
            folder,
            "--output",
            tmp_path / "data",
            "--workers",
            "1",
            "--tokenizer",
            prepared / "data/train",
        ],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"2 documents" in done.stdout and b"1 of a kind that is not read" in done.stdout
    done = subprocess.run(
        [*command, "inspect", tmp_path / "data/train"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"so many words in book 1 \\u2014" in done.stdout and b"caf" in done.stdout
