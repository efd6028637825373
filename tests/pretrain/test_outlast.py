"""A run goes on when nobody can read what it says: a closed terminal, a reader at the other end of a pipe that left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os, sys
from pathlib import Path
from infty_tools.outlast import outlast_readers
outlast_readers()
print("begun", flush=True)
sys.stdin.readline()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("nobody reads this", file=stream, flush=True)
os.write(1, b"nor this of a library's")
Path(sys.argv[1]).touch()
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_output_outlasts_its_reader(tmp_path, kind):
    reading, writing = os.pipe() if kind == "pipe" else os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "done")],
        stdin=subprocess.PIPE,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    ) as process:
        os.close(writing)
        assert os.read(reading, 5) == b"begun"
        os.close(reading)
        process.communicate(b"\n", timeout=60)
    assert process.returncode == 0 and (tmp_path / "done").exists()
