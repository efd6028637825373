"""`mpirun -n 4 infty prepare`: to the same bytes as one process."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.small_data import contents, infty, write_books

beside = Path(sys.executable).parent / "mpirun"
MPIRUN = str(beside) if beside.is_file() else shutil.which("mpirun")

pytestmark = [
    pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed (pip install 'infty[mpi]')"),
    pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None,
        reason="mpi4py is not installed (pip install 'infty[mpi]')",
    ),
]


def mpi(ranks: int, *arguments: object) -> subprocess.CompletedProcess:
    return infty(*arguments, before=(str(MPIRUN), "-n", str(ranks)), timeout=400)


def test_the_same_bytes_from_four_ranks(prepared, tmp_path):
    """The tokenizer, the shards, the merged index and the report; and an interrupted one is taken up."""
    command = [
        "prepare",
        "--input",
        prepared / "books",
        "--validation-documents",
        2,
        "--vocab-size",
        330,
    ]
    done = mpi(4, *command, "--output", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "data") == contents(prepared / "data")
    assert done.stdout.count("7 documents") == 1  # said once
    assert not (tmp_path / "data.partial").exists()
    again = mpi(2, *command, "--output", tmp_path / "data")
    assert again.returncode == 0 and again.stdout.count("already prepared") == 1


def test_a_mistake_is_said_once_and_ends_all_ranks(prepared, tmp_path):
    command = [
        "prepare",
        "--input",
        prepared / "books",
        "--tokenizer",
        prepared / "data/train",
        "--output",
    ]
    done = mpi(3, *command, prepared / "data")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "other input or with other options" in done.stderr


def test_a_mistake_that_one_rank_finds(prepared, tmp_path):
    """In the middle of the work, while the others are busy."""
    books = write_books(tmp_path / "books", 12)
    changed = tmp_path / "wrapper.py"
    changed.write_text(
        "from infty.data import sources\nfrom infty.errors import UserError\nread = sources.read\n"
        "def broken(source, field='text'):\n"
        "    if source.name == 'book03.txt':\n        raise UserError('book03 cannot be read: mend it')\n"
        "    return read(source, field)\n"
        "sources.read = broken\nfrom infty_tools.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [
            str(MPIRUN),
            "-n",
            "3",
            sys.executable,
            str(changed),
            "prepare",
            "--input",
            str(books),
            "--tokenizer",
            str(prepared / "data/train"),
            "--output",
            str(tmp_path / "data"),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 2
    assert re.findall("error: .*", done.stderr) == ["error: book03 cannot be read: mend it"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_taken_up_by_another_number_of_ranks(prepared, tmp_path, number):
    write_books(tmp_path / "books", 150, words=3000)
    command = [
        "prepare",
        "--input",
        tmp_path / "books",
        "--tokenizer",
        prepared / "data/train",
        "--output",
    ]
    line = [
        str(MPIRUN),
        "-n",
        "2",
        sys.executable,
        "-m",
        "infty_tools",
        *map(str, command),
        str(tmp_path / "data"),
    ]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    shards = tmp_path / "data.partial/shards"
    end = time.monotonic() + 120
    while (
        len(list(shards.glob("*.json"))) < 5 and process.poll() is None and time.monotonic() < end
    ):
        time.sleep(0.02)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said, _ = process.communicate(timeout=180)
    assert process.returncode != 0 and "Traceback" not in said
    assert not (tmp_path / "data").exists() and len(list(shards.glob("*.json"))) >= 5
    done = infty(*command, tmp_path / "data", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout
    report = json.loads((tmp_path / "data/report.json").read_text())
    assert report["datasets"]["train"]["documents"] == 150
