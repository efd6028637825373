"""`infty chat`, and bookmarks at the command line: a model that has read a book is asked about it."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from test_frameworks import small_tokenizer

from infty.errors import UserError
from infty.hf.cache_infty import InftyCache
from infty_tools.chat import Turns, chat
from infty_tools.cli import app
from infty_tools.generate import generate
from infty_tools.writer import Writer
from support.twins import tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

TEMPLATE = (
    "{% for m in messages %}{{ 'w50 ' if m.role == 'user' else 'w52 ' }}{{ m.content | trim }}"
    "{{ ' w51 ' if m.role == 'user' else ' w02 ' }}{% endfor %}"
    "{% if add_generation_prompt %}w52{% endif %}"
)
PAGE = (Path(__file__).parents[2] / "docs" / "bookmarks.md").read_text()
BOOK = " ".join(f"w{i:02}" for i in tokens(1, 43)[0].tolist())
HOW = {"max_new_tokens": 6, "temperature": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, single_process):
    """A model without a chat template, the same with one, and a book."""
    folder = tmp_path_factory.mktemp("chat")
    model, words = twin("continuation"), small_tokenizer()
    model.config.eos_token_id = model.generation_config.eos_token_id = 2
    for name, template in (("plain", None), ("instruct", TEMPLATE)):
        words.chat_template = template
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    (folder / "book.txt").write_text(BOOK)
    (folder / "other.txt").write_text(BOOK + " w01")
    return folder


class Terminal(io.StringIO):
    def isatty(self):
        return True


def say(monkeypatch, *lines: str, terminal: bool = False) -> None:
    stream = Terminal() if terminal else io.StringIO("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr("sys.stdin", stream)
    if terminal:
        left = list(lines)

        def typed(*_) -> str:
            if not left:
                raise EOFError
            return left.pop(0)

        monkeypatch.setattr("builtins.input", typed)


@torch.no_grad()
def by_hand(folder, turns: list[str]) -> list[str]:
    """The answers of a model that reads the book and each turn's new words, one after the other."""
    writer, answers = Writer(folder, "cpu"), []
    writer.read(writer.encode(BOOK))
    for turn in turns:
        writer.read(writer.encode(turn))
        said = list(writer.write(6, 0.0, 1.0))
        answers.append(writer.tokenizer.decode(said, skip_special_tokens=True))
    return answers


# tests/hf/test_export.py does the same with the code that an export carries.
REPLACED = {
    "from transformers import AutoModelForCausalLM, AutoTokenizer": "from transformers import "
    "PreTrainedTokenizerFast as AutoTokenizer\n"
    "from infty.hf.modeling_infty import InftyForCausalLM as AutoModelForCausalLM",
    ", trust_remote_code=True": "",
    "max_new_tokens=20": "max_new_tokens=3",
}
TURNS = {
    "plain": ["w07 w08\n", "w09\n"],
    "instruct": ["w50 w07 w08 w51 w52", " w02 w50 w09 w51 w52"],
}


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("by", ["read", "memory"])
def test_a_conversation_about_a_book(folders, name, by, monkeypatch, capsys, tmp_path):
    book, mark = folders / "book.txt", tmp_path / "book.safetensors"
    given = {"read": book}
    if by == "memory":
        generate(folders / name, read=book, save_memory=mark)
        assert capsys.readouterr().out == ""
        given = {"memory": [mark]}
    say(monkeypatch, "w07 w08", "   ", "w09")
    chat(folders / name, **given, **HOW)
    said = capsys.readouterr()
    answers = [line.strip() for line in said.out.splitlines()]
    assert answers == by_hand(folders / name, TURNS[name]) and any(answers)
    assert "read: book.txt (43 tokens)" in said.err
    assert said.err.count("tokens read]") == 2


def test_a_template_that_forgets_answers_and_one_that_fails_are_refused(folders):
    words = small_tokenizer()
    words.chat_template = "{{ messages[-1].content }}"
    turns = Turns(words)
    assert turns.text("w01") == "w01"
    with pytest.raises(UserError, match="leaves earlier answers out"):
        turns.text("w01")
    words.chat_template = "{{ raise_exception('user and assistant must take turns') }}"
    with pytest.raises(UserError, match=r"template fails: user and assistant must take turns$"):
        Turns(words).text("w01")


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C comes after two tokens of every answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    write = Writer.write

    def stops(self, *how):
        for i, token in enumerate(write(self, *how)):
            yield token
            if i == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Writer, "write", stops)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_ends_an_answer_and_in_a_pipe_the_chat(folders, monkeypatch, capsys):
    say(monkeypatch, "w07", "w09", terminal=True)
    chat(folders / "plain", **HOW)
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(words) for words in said] == [3, 3]
    say(monkeypatch, "w07", "w09")
    with pytest.raises(KeyboardInterrupt):
        chat(folders / "plain", **HOW)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_questions_from_a_bookmark_are_those_after_the_book(folders, tmp_path, capsys):
    """To the bit: two samples and what they say of a prompt, from one bookmark and from two readings."""
    model, mark = folders / "plain", tmp_path / "book.safetensors"
    generate(model, read=folders / "book.txt", save_memory=mark)
    for prompt in ("w03 w04", "w05"):
        said = []
        for given in ({"memory": [mark]}, {"read": folders / "book.txt"}):
            generate(model, prompt, seed=3, max_new_tokens=30, **given)
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] and said[0].startswith(prompt)
    readings = [Writer(model, "cpu"), Writer(model, "cpu")]
    readings[0].go_on_from(mark)
    readings[1].read_book(folders / "book.txt", BOOK)
    for reading in readings:
        reading.read(reading.encode("w03 w04"))
    assert torch.equal(readings[0].logits, readings[1].logits)


def test_a_bookmark_is_gone_on_from_with_more_books(folders, tmp_path, capsys):
    model, mark, more = folders / "plain", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    generate(model, read=folders / "book.txt", save_memory=mark)
    generate(model, read=folders / "other.txt", memory=[mark], save_memory=more)
    assert "87 tokens" in capsys.readouterr().err
    cache = InftyCache.load(more, Writer(model, "cpu").model)
    assert [text.name for text in cache.texts] == ["book.txt", "other.txt"]
    with pytest.raises(UserError, match=r"holds this text already \(book\.txt\)"):
        generate(model, read=folders / "book.txt", memory=[more])


def test_what_cannot_be_is_refused_in_one_sentence(folders, tmp_path):
    model, book, mark = folders / "plain", folders / "book.txt", tmp_path / "a.safetensors"
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\x80\x81")
    generate(model, read=book, save_memory=mark)
    other = twin("no memory")
    other.save_pretrained(tmp_path / "other")
    small_tokenizer().save_pretrained(tmp_path / "other")
    for words, how in {
        "is empty": {"read": tmp_path / "empty.txt"},
        "not UTF-8": {"read": tmp_path / "binary"},
        "give --prompt TEXT or --read BOOK .a bookmark": {"memory": [mark]},
        "cannot be merged": {"memory": [mark, mark], "prompt": "w01"},
        "there is no bookmark": {"memory": [tmp_path / "none"], "prompt": "w01"},
        "cut short or no safetensors": {"memory": [book], "prompt": "w01"},
        "is a folder": {"read": book, "save_memory": tmp_path},
        "exists and is not a bookmark; leaving it alone": {"read": book, "save_memory": book},
        "name a text with --read": {"prompt": "w01", "save_memory": mark},
        "of another model": {"memory": [mark], "prompt": "w01", "model": tmp_path / "other"},
    }.items():
        with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
            generate(**({"model": model} | how))
    assert book.read_text() == BOOK
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_the_page_is_what_happens(folders, tmp_path, monkeypatch, capsys):
    """The commands and the Python of docs/bookmarks.md, as they stand (but for the number of tokens)."""
    (tmp_path / "exported").mkdir()
    shutil.copytree(folders / "instruct", tmp_path / "exported" / "demo")
    shutil.copy(folders / "book.txt", tmp_path / "moby_dick.txt")
    shutil.copy(folders / "other.txt", tmp_path / "typee.txt")
    monkeypatch.chdir(tmp_path)
    say(monkeypatch, "w01")
    block, program = (
        re.search(rf"```{kind}\n(.*?)```", PAGE, re.S)[1] for kind in ("bash", "python")
    )
    for line in block.splitlines():
        short = ["--max-new-tokens", "3"] * ("--prompt" in line or "chat" in line)
        app([*shlex.split(line)[1:], *short], standalone_mode=False)
    said = capsys.readouterr()
    assert said.out.startswith("The white whale")
    assert "read: moby_dick.txt (43 tokens), typee.txt (44 tokens)" in said.err
    for old, new in REPLACED.items():
        program = program.replace(old, new)
    exec(program, {})
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert InftyCache.load("more.safetensors", Writer(Path("exported/demo")).model).rows == 1
