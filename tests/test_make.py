"""`make` says what is missing and leaves what it did not make alone. Nothing is installed here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path):
    """What `make` needs of a clone."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_foreign_environment_is_left_alone(clone):
    (clone / "mine").mkdir()
    (clone / "mine" / "keep").write_text("x")
    done = make(clone, "demo", "VENV=mine", f"PYTHON={sys.executable}")
    assert done.returncode != 0 and "leaving it alone" in done.stdout + done.stderr
    assert [p.name for p in (clone / "mine").iterdir()] == ["keep"]


def test_a_missing_python_is_named(clone):
    done = make(clone, "test", "PYTHON=python-that-is-not-there")
    assert (
        done.returncode != 0 and "python-that-is-not-there is missing" in done.stdout + done.stderr
    )
    assert not (clone / ".venv-infty").exists()


def test_an_old_python_is_refused(clone):
    old = clone / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    done = make(clone, "test", f"PYTHON={old}")
    assert done.returncode != 0 and "needs Python 3.10 or newer" in done.stdout + done.stderr


def test_clean_removes_only_what_make_made(clone):
    for name, marker in ((".venv-infty", ".infty"), ("demo", "notes.txt")):
        (clone / name).mkdir()
        (clone / name / marker).touch()
    assert make(clone, "clean").returncode == 0
    assert not (clone / ".venv-infty").exists()
    assert (clone / "demo" / "notes.txt").exists()


def demo(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "infty_tools.demo", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_demo_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("x")
    done = demo("--folder", tmp_path)
    assert done.returncode == 2 and "leaving it alone" in " ".join(done.stdout.split())
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_the_demo_names_a_missing_books_folder(tmp_path):
    done = demo("--folder", tmp_path / "demo", "--books", tmp_path / "none")
    assert done.returncode == 2 and "is not a folder" in " ".join(done.stdout.split())
    assert not (tmp_path / "demo").exists()


def test_the_demo_stops_with_one_message_when_a_station_fails(tmp_path):
    books = tmp_path / "books"
    books.mkdir()
    (books / "empty.txt").write_text("")
    done = demo("--folder", tmp_path / "demo", "--books", books)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2 and "Traceback" not in said and "empty" in said
