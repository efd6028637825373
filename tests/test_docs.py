"""The commands and Python blocks of README.md and docs/: run at small sizes here or in a test of their own, or where
they need a cluster, a download or days, parsed as the command line would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from infty.data.documents import Documents
from infty_pretrain import config as configs
from infty_tools.cli import app
from support.runs import TEXT
from support.small_data import infty

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "srun", "nohup")
BLOCK = re.compile(r"^(<!--[^\n]*-->\n)?```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """The comment before each block, its language and its text."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """The words of every infty command in a block, without what launches it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.split()[:1] not in [[name] for name in (*LAUNCHERS, "infty")]:
            continue
        words = shlex.split(line, comments=True)
        if words[0] in LAUNCHERS:
            begin = words.index("infty") if "infty" in words else words.index("infty_tools")
            found.append(words[begin + 1 :])
        else:
            found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """As the command line does, without running it. Raises a usage error."""
    command, name = typer.main.get_command(app), "infty"
    while hasattr(command, "commands"):
        name = words[0]
        command, words = command.commands[name], words[1:]
    command.make_context(name, list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_the_command_line_takes(page):
    for _, language, text in blocks(page):
        if language in ("bash", "sh", ""):
            for words in commands(text):
                parse(words)
                if "--config" in words and words[words.index("--config") + 1].startswith(
                    "configs/"
                ):
                    config = words[words.index("--config") + 1]
                    configs.load(ROOT / config, [w for w in words[1:] if re.match(r"\w[\w.]*=", w)])


def test_every_block_of_python_is_run_by_a_test_that_says_so():
    """What docs/README.md promises."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        if any(language == "python" for _, language, _ in blocks(page)):
            assert page.name in tests, f"{page.name} has Python that no test names"


def steps(page: str, language: str) -> str:
    """The blocks of a page that it says are run here."""
    found = [
        text
        for said, kind, text in blocks(ROOT / "docs" / page)
        if kind == language and (language == "python" or "tests/test_docs.py" in said)
    ]
    assert found, page
    return "\n".join(found)


SHORT = (
    "run.steps=2",
    "model.layers=1",
    "model.hidden_size=32",
    "model.heads=2",
    "model.kv_heads=2",
    "model.memory.layers=[0]",
    "logging.tensorboard=false",
)
ALONE = ("pretrain", "evaluate", "export")
"""Verbs that set up process groups."""


def run(words: list[str]) -> str:
    """What a command says, shortened."""
    words = [word.replace("2048", "330").replace("32000", "400") for word in words]
    if words[0] in ALONE:
        done = infty(*words, *(SHORT if words[0] == "pretrain" else ()))
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout
    result = CliRunner().invoke(app, words, env={"COLUMNS": "150"})
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_the_quickstart_and_the_page_about_hugging_face(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    Path("my-books").mkdir()
    for i in range(4):
        Path("my-books", f"{i}.txt").write_text(f"Book {i}.\n{TEXT}")
    said = {words[0]: run(words) for words in commands(steps("quickstart.md", "bash"))}
    assert list(said) == [
        "prepare",
        "inspect",
        "pretrain",
        "evaluate",
        "export",
        "generate",
        "look",
    ]
    assert "done: 2 steps" in said["pretrain"] and "perplexity" in said["evaluate"]
    assert Path("look.html").is_file()
    again = [words for words in commands(steps("huggingface.md", "bash")) if words[0] not in said]
    assert again == []  # run above
    exec(steps("huggingface.md", "python"), {})
    assert capsys.readouterr().out


def test_wikitext_becomes_a_dataset_of_articles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wikitext-103-raw").mkdir()
    article = " = Title {} = \n \n {} \n \n = = Part = = \n \n {} \n"
    for part in ("train", "valid"):
        text = "".join(article.format(i, f"{part} {i}. {TEXT}", TEXT) for i in range(3))
        Path(f"wikitext-103-raw/wiki.{part}.raw").write_text(" \n" + text)
    exec(steps("data.md", "python"), {})
    [prepare] = commands(steps("data.md", "bash"))
    run(prepare)
    train = Documents.open(Path("data/wikitext/train"))
    assert len(train.lengths) == 3
    assert train.tokenizer.decode(train.read(1, 0, 12).tolist()).startswith(" = Title 1 =")


def test_every_message_of_the_page_about_errors_is_one_of_the_code():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", page[page.index("| message |") :], re.MULTILINE)
    code = "".join(
        path.read_text(encoding="utf-8")
        for part in ("infty", "pretrain", "tools")
        for path in sorted((ROOT / part).rglob("*.py"))
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", code)  # a sentence that runs over several lines
    assert len(messages) > 10
    assert [message for message in messages if message not in joined] == []
