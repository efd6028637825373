"""The commands and the config of docs/adapting.md, run as they stand on a tiny random model (training is cut short)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import originals
from support.runs import TEXT

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adapting.md").read_text()


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def place(tmp_path):
    originals.write(tmp_path / "models" / "pretrained", "qwen3 tied")
    (tmp_path / "adapted.yaml").write_text(block("yaml"))
    for part in ("train", "validation"):
        (tmp_path / "books" / part).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "books" / part / f"{i}.txt").write_text(f"{i}{part}\n{TEXT}")
    return tmp_path


def test_the_pages_commands(place):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for step in block("bash").splitlines():
        short = step
        if "pretrain " in step:
            short += " run.steps=2"
        if "generate" in step:
            short += " --max-new-tokens 8"
        done = subprocess.run(
            short,
            shell=True,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        said[step.split()[1]] = done.stdout
    assert list(said) == ["adapt", "prepare", "pretrain", "evaluate", "export", "generate"]
    assert "local window 32 tokens" in said["adapt"]
    assert (
        "began with" in said["pretrain"] and "of them learning (train: memory)" in said["pretrain"]
    )
    assert "Verified" in said["export"]
    assert "Call me Ishmael" in said["generate"]
    assert (place / "exported/adapted/chat_template.jinja").is_file()
