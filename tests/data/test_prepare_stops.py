"""Stopping a preparation anywhere: nothing looks whole that is not, and the next run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infty import files
from infty.data import prepare as one_process
from infty.data import workplace
from infty.data.documents import Documents
from infty.data.prepare import Request, prepare
from infty.data.workers import Workers
from infty.errors import UserError
from support.small_data import contents, infty, request, run, silent, write_books


class Interruption(Exception):
    pass


def interrupted(wanted, monkeypatch, where: str) -> None:
    """Run until `where` is reached."""

    def stop(what: str, done: int, total: int) -> None:
        if what == where and (where != "tokenizing" or done):
            raise Interruption

    with pytest.raises(Interruption):
        prepare(wanted, 1, stop, silent)


@pytest.mark.parametrize(
    "where", ["training the tokenizer", "tokenizing", "merging validation", "merging train"]
)
def test_interrupted_and_resumed(prepared, tmp_path, monkeypatch, where):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, validation_documents=2)
    interrupted(wanted, monkeypatch, where)
    assert not wanted.output.exists()
    said = []
    prepare(wanted, 2, silent, said.append)
    assert said == [f"going on with {tmp_path / 'data'}.partial"]
    assert contents(tmp_path / "data") == contents(prepared / "data")
    assert not (tmp_path / "data.partial").exists()


def test_shards_are_made_once(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, tokenizer=prepared / "data/train")
    interrupted(wanted, monkeypatch, "merging train")
    shards = tmp_path / "data.partial/shards"
    made = {p.name: p.stat().st_mtime_ns for p in shards.glob("*.tokens")}
    assert len(made) == 9
    interrupted(wanted, monkeypatch, "merging train")
    assert made == {p.name: p.stat().st_mtime_ns for p in shards.glob("*.tokens")}
    book = tmp_path / "books/book04.txt"  # same name, same size, other words
    book.write_text(book.read_text().replace("sea", "bay"))
    os.utime(book, ns=(0, 10**18))
    run(wanted)
    assert "bay" in _decoded(tmp_path / "data/train", "book04.txt")


def test_a_tokenizer_of_texts_that_changed_is_trained_again(prepared, tmp_path, monkeypatch):
    """What an interruption leaves makes no difference to the result."""
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path)
    interrupted(wanted, monkeypatch, "merging train")
    book = tmp_path / "books/book04.txt"
    book.write_text(book.read_text().replace("sea", "bay"))
    run(wanted)
    fresh = request(tmp_path, name="fresh")
    run(fresh)
    assert contents(wanted.output) == contents(fresh.output)
    assert "bay" in _decoded(tmp_path / "data/train", "book04.txt")


def _decoded(folder: Path, name: str) -> str:
    documents = Documents.open(folder)
    index = documents.names.index(name)
    return documents.tokenizer.decode(documents.read(index, 0, int(documents.lengths[index])))


def test_a_record_lost_in_a_crash(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, validation_documents=2)
    interrupted(wanted, monkeypatch, "merging train")
    (tmp_path / "data.partial/shards/000003.json").write_bytes(b"")
    run(wanted)
    assert contents(tmp_path / "data") == contents(prepared / "data")


def test_a_shard_cut_short(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, tokenizer=prepared / "data/train")
    interrupted(wanted, monkeypatch, "merging train")
    shard = tmp_path / "data.partial/shards/000003.tokens"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"delete .* and prepare again"):
        run(wanted)


def test_other_arguments_do_not_go_on(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "books", tmp_path / "books")
    interrupted(request(tmp_path, tokenizer=prepared / "data/train"), monkeypatch, "merging train")
    with pytest.raises(UserError, match="run that one again to finish it, or delete the folder"):
        run(request(tmp_path, tokenizer=prepared / "data/train", min_words=9))
    run(request(tmp_path, tokenizer=prepared / "data/train"))


def test_killed_before_the_plan_was_written(prepared, tmp_path):
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial/plan.json.partial").write_text("{")
    shutil.copytree(prepared / "books", tmp_path / "books")
    run(request(tmp_path, tokenizer=prepared / "data/train"))


def test_only_one_works_on_an_output(prepared, tmp_path):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, tokenizer=prepared / "data/train")
    first = workplace.Workplace(wanted.output)
    first.begin(one_process.Plan.of(wanted).fingerprint, silent)
    with pytest.raises(UserError, match="another infty prepare is working"):
        run(wanted)
    first.close()
    run(wanted)


def test_tokens_that_do_not_read_back(prepared, tmp_path, monkeypatch):
    """A disk that loses a bit is found out before the output gets its name."""
    shutil.copytree(prepared / "books", tmp_path / "books")

    def flip(folder: Path) -> None:
        raw = bytearray((folder / "tokens.bin").read_bytes())
        raw[7] ^= 4
        (folder / "tokens.bin").write_bytes(bytes(raw))

    monkeypatch.setattr(files, "sync_tree", flip)
    with pytest.raises(UserError, match="not the ones that were prepared"):
        run(request(tmp_path, tokenizer=prepared / "data/train"))
    assert not (tmp_path / "data").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=200k", "none", disk],
            check=False,
            capture_output=True,
        ).returncode
    ):
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(prepared, tmp_path, small_disk):
    write_books(tmp_path / "books", 60, words=3000)
    command = (
        "prepare",
        "--input",
        tmp_path / "books",
        "--output",
        small_disk / "data",
        "--workers",
        "1",
        "--tokenizer",
        prepared / "data/train",
    )
    done = infty(*command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [
        line for line in done.stderr.splitlines() if line.startswith("error: the disk is full")
    ] == done.stderr.splitlines()
    assert not (small_disk / "data").exists()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    said = []
    prepare(
        Request(tmp_path / "books", small_disk / "data", tokenizer=prepared / "data/train"),
        1,
        silent,
        said.append,
    )
    assert said == [f"going on with {small_disk / 'data.partial'}"]
    assert len(Documents.open(small_disk / "data/train")) == 60


def test_a_full_disk_while_merging(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "books", tmp_path / "books")
    wanted = request(tmp_path, tokenizer=prepared / "data/train")

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_tree", full)
        with pytest.raises(OSError, match="No space"):
            run(wanted)
    assert not wanted.output.exists()
    run(wanted)


def start(tmp_path: Path, *options: object) -> subprocess.Popen:
    """A preparation that has long to go, in a process group of its own as a terminal makes them."""
    write_books(tmp_path / "books", 200, words=4000)
    command = [
        sys.executable,
        "-m",
        "infty_tools",
        "prepare",
        "--input",
        tmp_path / "books",
        "--output",
        tmp_path / "data",
        "--workers",
        "2",
        *options,
    ]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "number, to, code, said",
    [
        (signal.SIGINT, os.killpg, 130, "error: stopped"),  # Ctrl-C reaches the workers too
        (signal.SIGTERM, os.kill, 85, "rerun the same command to continue"),
        (signal.SIGUSR1, os.killpg, 85, "rerun the same command to continue"),
        (signal.SIGKILL, os.kill, -9, ""),
    ],
)
def test_signals(prepared, tmp_path, number, to, code, said):
    process = start(tmp_path, "--tokenizer", prepared / "data/train")
    shards = tmp_path / "data.partial/shards"
    wait_for(lambda: len(list(shards.glob("*.json"))) >= 3 or process.poll() is not None)
    children = psutil.Process(process.pid).children(recursive=True)
    to(process.pid, number)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == code, errors
    assert "Traceback" not in errors and said in errors
    assert number == signal.SIGKILL or len(errors.splitlines()) == 1
    assert not (tmp_path / "data").exists()
    wait_for(
        lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children)
    )
    for record in shards.glob("*.json"):  # what is there is whole
        entries = json.loads(record.read_text())["documents"]
        assert record.with_suffix(".tokens").stat().st_size == 2 * sum(e["tokens"] for e in entries)


def test_ctrl_c_while_the_tokenizer_is_trained(tmp_path):
    process = start(tmp_path, "--vocab-size", 500)
    assert process.stdout.readline() == "training the tokenizer\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=180)
    assert (process.returncode, errors) == (130, "error: stopped\n")
    assert not (tmp_path / "data").exists()


def test_a_worker_that_dies(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"), Workers(1) as workers:
        list(workers.map(os._exit, [(9,)]))
