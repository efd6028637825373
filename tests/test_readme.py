"""The README's commands, run as they stand (training is cut short)."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = "the king and queen of every distant land shall hear what noble hearts have said before night falls".split()


def commands(page: str) -> list[str]:
    """Those of the page's first block that this file says it runs."""
    text = (ROOT / page).read_text()
    block = re.search(r"<!-- tests/test_readme.py runs.*?```bash\n(.*?)```", text, re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in block.group(1).splitlines()]
    return [line for line in lines if line]


def write_books(folder: Path) -> None:
    """Stand-ins for the books that the first command would download."""
    rng = random.Random(0)
    for i, part in enumerate(("train", "train", "train", "validation", "validation")):
        path = folder / part / f"book{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        verses = (" ".join(rng.choices(WORDS, k=8)).capitalize() for _ in range(700))
        names = (f"{rng.randrange(10**6)}: {verse}." for verse in verses)
        path.write_text("\n".join(names))


def write_another_model(folder: Path, vocabulary: int) -> None:
    """Stands in for a model that one would download."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)


def run(step: str, folder: Path) -> str:
    """What a step of the docs says, on a model that is smaller and trained for less long."""
    short = step.replace("--vocab-size 2048", "--vocab-size 330")
    if "pretrain" in step:
        short += " run.steps=3 model.layers=2 model.hidden_size=64"
        short += "" if "model.memory=null" in step else " model.memory.layers=[1]"
    if "generate" in step:
        short += " --max-new-tokens 8"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        short,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_six_steps_and_what_evaluating_says(tmp_path):
    write_books(tmp_path / "books")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    steps = commands("README.md")
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
        name = step.split()[1] if step.startswith("infty") else "pretrain"
        said[name] = run(step, tmp_path)
    assert "done: 3 steps" in said["pretrain"]
    assert "perplexity" in said["evaluate"]
    assert (tmp_path / "exported/demo/config.json").is_file()
    assert "Once more unto the breach" in said["generate"]

    write_another_model(tmp_path / "models" / "gpt2", vocabulary=330)
    _, beside, _, another = (run(s, tmp_path) for s in commands("docs/evaluating.md"))
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [list(m["memory"]) for m in found["models"]] == [["none"], ["on", "off"]]
    assert found["comparisons"][0]["ratio"] > 0 and "WITHOUT WITH" in beside
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["position.png", "ratio.png"]
    [told, *_, tables, _] = (run(s, tmp_path) for s in commands("docs/monitoring.md"))
    assert "written: report.html" in told and "# Run demo" in tables
    assert "without" in (tmp_path / "compared.html").read_text()
    both = json.loads((tmp_path / "compared.json").read_text())["runs"]
    assert [r["state"] for r in both] == ["finished: 3 of 3 steps"] * 2
    assert list(both[0]["evaluations"]) == ["validation.json"] and both[0]["figures"]
    modes = json.loads((tmp_path / "modes.json").read_text())["models"][0]["memory"]
    assert list(modes) == ["on", "off", "emptied", "other"]
    assert "window of 256 tokens, stride 128" in another


def test_every_relative_link_leads_somewhere():
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
