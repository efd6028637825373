"""The README's commands, run as they stand (training is cut short)."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the king and queen of every distant land shall hear what noble hearts have said before night falls".split()


def commands() -> list[str]:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tests/test_readme.py runs.*?```bash\n(.*?)```", readme, re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.group(1).splitlines()]
    return [line for line in lines if line]


def write_books(folder: Path) -> None:
    """Stand-ins for the books that the first command would download."""
    rng = random.Random(0)
    for i, part in enumerate(("train", "train", "train", "validation")):
        path = folder / part / f"book{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        verses = (" ".join(rng.choices(WORDS, k=8)).capitalize() for _ in range(700))
        names = (f"{rng.randrange(10**6)}: {verse}." for verse in verses)
        path.write_text("\n".join(names))


def test_the_six_steps(tmp_path):
    write_books(tmp_path / "books")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    steps = commands()
    assert [step.split()[1] for step in steps if step.startswith("infty")] == [
        "books",
        "prepare",
        "inspect",
        "evaluate",
        "export",
        "generate",
    ]
    said = {}
    for step in steps:
        short = step.replace("--vocab-size 2048", "--vocab-size 330")
        if "pretrain" in step:
            short += " run.steps=3 model.layers=2 model.hidden_size=64 model.memory.layers=[1]"
        if "generate" in step:
            short += " --max-new-tokens 8"
        done = subprocess.run(
            short,
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
        said[step.split()[1] if step.startswith("infty") else "pretrain"] = done.stdout
    assert "done: 3 steps" in said["pretrain"]
    assert "perplexity" in said["evaluate"]
    assert (tmp_path / "exported/demo/config.json").is_file()
    assert "Once more unto the breach" in said["generate"]


def test_every_relative_link_leads_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
