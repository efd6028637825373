"""`infty task`: whole or absent, the same from the same seed, and on from where it was stopped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from infty import files
from infty.data.documents import Documents
from infty.data.workplace import Workplace
from infty.errors import UserError
from infty_tools.cli import app
from infty_tools.tasks import making
from infty_tools.tasks.command import TASKS
from infty_tools.tasks.copying import Copy
from infty_tools.tasks.facts import Facts
from infty_tools.tasks.making import Plan, make, sample
from infty_tools.tasks.needle import Needle
from infty_tools.tasks.prose import open_prose
from infty_tools.tasks.sorting import Sorting
from infty_tools.tasks.stories import Stories
from support.small_data import contents, infty

SMALL = Facts(facts=2, told=8, asked=16, asks=4, validation_asks=2, keys=4, values=4, fillers=2)


@pytest.fixture
def few(monkeypatch):
    """Shards of five documents."""
    monkeypatch.setattr(making, "SHARD_DOCUMENTS", 5)


@pytest.fixture
def tasks(prose_folder):
    prose = open_prose(prose_folder / "data", None)
    return {
        "sorting": Sorting(64),
        "facts": SMALL,
        "needle": Needle(prose, lengths=(900,)),
        "stories": Stories(prose=prose, lengths=(500,)),
        "copy": Copy(prose, lengths=(200,)),
    }


@pytest.mark.parametrize("name", TASKS)
def test_a_dataset_holds_its_samples(tasks, tmp_path, few, name):
    task = tasks[name]
    assert task.name == name
    report = make(task, tmp_path / "out", 11, 3, seed=5)
    for part, count in (("train", 11), ("validation", 3)):
        documents = Documents.open(tmp_path / "out" / part)
        documents.verify()
        assert len(documents) == count == report["datasets"][part]["documents"]
        assert (documents.answers.task, documents.answers.seed) == (name, 5)
        assert documents.answers.kinds == task.kinds
        for index in range(count):
            one = sample(task, 5, part == "validation", index)
            got = documents.read(index, 0, int(documents.lengths[index]))
            assert got.tolist() == one.ids.tolist()
            assert documents.answers.of(index)[:, 1:].tolist() == one.answers.tolist()
    assert not list(tmp_path.glob("*.partial"))


def test_a_sample_does_not_depend_on_how_many_there_are(tmp_path, few):
    make(SMALL, tmp_path / "few", 3, 1)
    make(SMALL, tmp_path / "many", 17, 9)
    some, more = (Documents.open(tmp_path / n / "train") for n in ("few", "many"))
    assert all(np.array_equal(some.read(i, 0, 25), more.read(i, 0, 25)) for i in range(3))
    make(SMALL, tmp_path / "other", 3, 1, seed=1)
    assert Documents.open(tmp_path / "other/train").fingerprint != some.fingerprint


@pytest.mark.parametrize("task", [Facts(1, 2, 2, 0, 1, 1, 3, 4, 1), Stories(("one-fact",), 2)])
def test_no_document_is_in_both_sets(task):
    """Of tasks with so few documents that chance alone would repeat many."""
    drawn = [
        {sample(task, seed, held_out, i).ids.tobytes() for seed in (0, 1) for i in range(100)}
        for held_out in (False, True)
    ]
    assert all(len(part) > 1 for part in drawn) and not drawn[0] & drawn[1]


def test_prose_of_both_sets_differs(tasks):
    """Training prose comes from training books alone: they number their lines by their own name."""
    tokenizer = tasks["needle"].prose.tokenizer
    for held_out, books in ((False, "012"), (True, "3")):
        for i in range(10):
            text = tokenizer.decode(sample(tasks["needle"], 0, held_out, i).ids[:-1])
            lines = [line for line in text.split("\n") if line.startswith("the sea")]
            assert all(line.split()[-2] in books for line in lines)


class Interruption(Exception):
    pass


def interrupted(output, where: str, at: int) -> None:
    def stop(what: str, done: int, _total: int) -> None:
        if what == where and done >= at:
            raise Interruption

    with pytest.raises(Interruption):
        make(SMALL, output, 17, 9, progress=stop)


@pytest.mark.parametrize(
    ("where", "at"), [("making train", 8), ("making validation", 1), ("merging train", 5)]
)
def test_interrupted_and_resumed(tmp_path, few, where, at):
    make(SMALL, tmp_path / "whole", 17, 9)
    output = tmp_path / "out"
    interrupted(output, where, at)
    assert not output.exists()
    shards = output.with_name("out.partial") / "shards"
    before = {p.name: p.stat().st_mtime_ns for p in shards.glob("*.json")}
    assert len(before) == {"making train": 1, "making validation": 4, "merging train": 6}[where]
    with pytest.raises(UserError, match="with other arguments"):
        make(SMALL, output, 18, 9)
    interrupted(output, "merging validation", 0)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in shards.glob("*.json")}.items()
    said: list[str] = []
    make(SMALL, output, 17, 9, tell=said.append)
    assert said == [f"going on with {output}.partial"]
    assert contents(output) == contents(tmp_path / "whole")


def test_a_second_run(tmp_path, few):
    output = tmp_path / "out"
    first = make(SMALL, output, 6, 2)
    said: list[str] = []
    assert make(SMALL, output, 6, 2, tell=said.append) == first
    assert said == [f"{output} is already made"]
    for options, words in (
        ((SMALL, output, 7, 2), "samples was 6 and is 7 now"),
        ((SMALL, output, 6, 2, 1), "seed was 0 and is 1 now"),
        ((Sorting(64), output, 6, 2), "task was 'facts' and is 'sorting' now"),
    ):
        with pytest.raises(UserError, match=words):
            make(*options)
    with pytest.raises(UserError, match="not made by infty prepare"):
        other = tmp_path / "books"
        other.mkdir()
        (other / "book.txt").write_text("Some words.")
        from infty.data.prepare import Request, prepare

        (tmp_path / "foreign").mkdir()
        (tmp_path / "foreign/x").touch()
        prepare(
            Request(other, tmp_path / "foreign", tokenizer=output / "train"), 1, lambda *_: None
        )


def test_one_at_a_time(tmp_path):
    place = Workplace(tmp_path / "out", "infty task")
    place.begin(Plan(SMALL, 6, 2, 0).fingerprint, lambda _: None)
    with pytest.raises(UserError, match="another infty task is working"):
        make(SMALL, tmp_path / "out", 6, 2)
    place.close()
    make(SMALL, tmp_path / "out", 6, 2)


def test_a_shard_cut_short(tmp_path, few):
    interrupted(tmp_path / "out", "merging train", 0)
    shard = tmp_path / "out.partial/shards/train-000000005.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"cut short; delete .*shards"):
        make(SMALL, tmp_path / "out", 17, 9)


def test_a_full_disk(tmp_path, few, monkeypatch):
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(OSError, match="No space"):
            make(SMALL, tmp_path / "out", 6, 2)
    assert not (tmp_path / "out").exists()
    make(SMALL, tmp_path / "out", 6, 2)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "error: stopped"),
        (signal.SIGTERM, 85, "rerun the same command to continue"),
    ],
)
def test_signals(tmp_path, number, code, said):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "infty_tools", "task", "facts", "--output", output]
    process = subprocess.Popen(
        [*map(str, command), "--samples", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shards = tmp_path / "out.partial/shards"
    end = time.monotonic() + 180
    while not list(shards.glob("*.json")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == code, errors
    assert said in errors and len(errors.splitlines()) == 1
    assert not output.exists() and not list(shards.glob("*.partial*"))


@pytest.mark.multiprocess
def test_the_verb_says_what_it_made(tmp_path):
    command = ("task", "facts", "--output", tmp_path / "out", "--samples", 3)
    first = infty(*command, "--facts", 4, "--segments", 2, "--segment-length", 16, "--asks", 8)
    assert first.returncode == 0, first.stderr
    for part, counts in (
        ("train", "3 documents, 147 tokens, 24 answers"),
        ("validation", "160 documents, 7,840 tokens, 640 answers"),
    ):
        assert f"{tmp_path / 'out' / part}: {counts}" in first.stdout
    assert set(Documents.open(tmp_path / "out/train").lengths) == {3 * 16 + 1}


def said(*arguments: object) -> str:
    """What a command that is refused says."""
    result = CliRunner().invoke(app, ["task", *map(str, arguments)], env={"COLUMNS": "200"})
    assert isinstance(result.exception, UserError) or result.exit_code == 2, result.output
    return " ".join(f"{result.exception} {result.output}".replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["facts", "--facts", 0], "from 1"),
        (["facts", "--asks", 3, "--filler", 50], "give one"),
        (["facts", "--filler", 100], "from 0"),
        (["facts", "--told-segments", 1, "--facts", 17], "give 2 or more"),
        (["facts", "--segments", 10**8], "is the most"),
        (["sorting", "--length", 30], "30 is not a"),
        (["stories", "--length", 100], "--text gives"),
        (["stories", "--kind", "one-fact,four-facts"], "four-facts is not one of"),
        (["needle", "--text", "none", "--form", "passkey"], "not a prepared dataset"),
        (["needle", "--text", "none", "--length", "100,x"], "x is not a whole number"),
        (["needle", "--text", "none", "--depth", "50,101"], "101 is not a whole number"),
        (["copy"], "--text"),
        (["copy", "--text", "none", "--tokenizer", "none.model"], "no tokenizer at none.model"),
        (["riddles"], "No such command"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path, options, words):
    name, *rest = options
    assert words in said(name, "--output", tmp_path / "out", *rest)
    assert not list(tmp_path.iterdir())


def test_lengths_that_hold_no_document(tmp_path, prose_folder):
    text = prose_folder / "data"
    for words in (("needle", "--length", "2000,500"), ("stories", "--length", 100)):
        assert "alone has" in said(*words, "--text", text, "--output", tmp_path / "out")
    words = ("copy", "--length", 10**6, "--text", text)
    assert "the longest has" in said(*words, "--output", tmp_path / "out")
    words = ("stories", "--kind", "three-facts", "--statements", 2)
    assert "almost no story" in said(*words, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_prose_that_is_none(tmp_path, prose_folder):
    make(SMALL, tmp_path / "facts", 6, 2)
    for given, words in (
        (tmp_path / "facts", "is a dataset of the task facts"),
        (prose_folder / "data/train/tokenizer", "is not a prepared dataset"),
    ):
        assert words in said("copy", "--output", tmp_path / "out", "--text", given)
    books = tmp_path / "books"
    books.mkdir()
    (books / "empty.txt").touch()
    tokenizer = prose_folder / "data/train"
    assert "no usable text" in said(
        "copy", "--output", tmp_path / "out", "--text", books, "--tokenizer", tokenizer
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["books", "facts"]
