"""The commands of docs/tasks.md, run as they stand (with few documents, and training cut short)."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infty.data.documents import Documents
from infty_pretrain import config as configs
from infty_tools.cli import app
from infty_tools.tasks.command import TASKS
from infty_tools.tasks.facts import Facts
from support.small_data import infty

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tasks.md").read_text()


def commands() -> list[list[str]]:
    block = re.search(r"<!-- tests/tasks/test_tasks_page.py.*?```bash\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line, comments=True)[1:] for line in block.group(1).splitlines()]


@pytest.mark.multiprocess
def test_the_commands(tmp_path, prose_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(prose_folder / "data", "data/books")
    Path("configs").symlink_to(ROOT / "configs")
    said = {}
    for words in commands():
        if words[0] == "pretrain":
            few = (
                "batch.lanes=2",
                "run.steps=2",
                "evaluation.every=2",
                "logging.tensorboard=false",
            )
            done = infty(*words, *few)
            assert done.returncode == 0, done.stderr
            said["pretrain"] = done.stdout
            continue
        few = ["--samples", "4", "--validation-samples", "2"] if words[0] == "task" else []
        result = CliRunner().invoke(app, [*words, *few], env={"COLUMNS": "200"})
        assert result.exit_code == 0, (words, result.output, result.exception)
        said[words[0]] = result.output
        if words[0] == "task":
            folder = Path(words[words.index("--output") + 1])
            assert Documents.open(folder / "train").answers.task == words[1]
    assert "facts (first, repeated)" in said["inspect"]
    assert "of tokens right" in said["pretrain"]


def test_the_config_reads_whole_documents():
    """Its window is the document of 16 facts in a segment and 8 segments that ask."""
    config = configs.load(ROOT / "configs/facts.yaml")
    task = Facts()
    assert task.told == config.model.segment_length == 32
    assert config.batch.window_segments * config.model.segment_length == task.told + task.asked


def test_every_task_and_dial_is_named():
    """No option of the page is unknown; no task is missing."""
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == TASKS.keys()
    for name, dials in rows.items():
        known = CliRunner().invoke(app, ["task", name, "--help"], env={"COLUMNS": "200"}).output
        for dial in re.findall(r"--[\w-]+", dials):
            assert dial in known, (name, dial)
