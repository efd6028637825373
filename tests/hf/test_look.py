"""`infty look`: a model whose memory can only look at one known passage of a book."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from infty.errors import UserError
from infty.hf.memory_infty import InftyMemory
from infty.hf.modeling_infty import InftyForCausalLM
from infty.memory.sections import ContinuationConfig
from infty_tools.cli import app
from infty_tools.export.exporter import Exporter
from infty_tools.look import page
from infty_tools.look.reading import look
from infty_tools.writer import Writer
from support.runs import make_run, tokenizer
from support.small import GPT2

LINES = [f"Line {i}: the sea was calm and the wind was fair." for i in range(120)]
LINES[40] = "Here stands the quay, and the Xanthippe lies at it."
BOOK = "\n".join(LINES) + "\n"
ASK = "Then they boarded the X"
MODEL = replace(
    GPT2,
    hidden_size=64,
    layers=1,
    heads=1,
    kv_heads=1,
    positions="none",
    init_std=1.0,
    memory=ContinuationConfig(key_size=64),
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, single_process):
    """A model whose only head keeps, for ever and under every token, the one that came after it."""
    folder = tmp_path_factory.mktemp("look")
    make_run(folder / "run", MODEL, tokenizer(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exporter, "verify", lambda *_: "skipped")
        Exporter(folder / "run").write(folder / "model")
    model = InftyForCausalLM.from_pretrained(folder / "model")
    memory = model.model.layers[0].memories["memory"]
    with torch.no_grad():
        memory.key.weight.copy_(torch.eye(64))
        memory.strength_bias.fill_(3.0)
        memory.decay_bias.fill_(-20.0)
        memory.gate.fill_(0.1)
    model.save_pretrained(folder / "model")
    (folder / "book.txt").write_text(BOOK)
    return folder


def looked(folder, *more: str, ask: str = ASK):
    words = ["look", str(folder / "model"), "--read", str(folder / "book.txt"), "--ask", ask]
    return CliRunner().invoke(app, [*words, "--max-new-tokens", "3", *more], terminal_width=150)


def test_the_passage_after_the_only_place_where_the_question_ends_is_looked_at(exported):
    found = look(Writer(exported / "model", "cpu"), BOOK, ASK, 4, 3, exported / "book.txt")
    [memory] = [source for source in found.sources if source.name == "memory"]
    weights = memory.weights[0][0]
    passage = int(weights[:-1].argmax())
    assert found.passages.lines[passage] == 41
    assert "X" in found.passages.texts[passage - 1] + found.passages.texts[passage]
    assert weights[passage] > 0.5 > weights[:-1].abs().topk(2).values[1]
    assert len(found.written) == 3 and len(memory.weights) == 3 == len(memory.share)
    assert (
        "".join(found.passages.texts).replace(" ", "") == BOOK.strip("\n").replace(" ", "") + "\n"
    )


def test_the_terminal_and_the_page_name_that_passage(exported, tmp_path):
    done = looked(exported, "--html", str(tmp_path / "look.html"), "--passage", "4", "--top", "1")
    assert done.exit_code == 0, done.output
    first = next(line for line in done.stdout.splitlines() if re.match(r'"\S', line.strip()))
    assert re.search(r"\b0 +memory +0 +\+0?\.?\d+.* 41 ", first), done.stdout
    text = (tmp_path / "look.html").read_text()
    assert not re.search(r"(src|href)=|https?://|@import|fetch\(", text)
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])
    assert [source["name"] for source in data["sources"]] == ["attention", "memory"]
    assert data["question"] == ASK and len(data["written"]) == 3


def test_what_a_page_holds_is_the_weights_to_a_step(exported):
    import base64

    found = look(Writer(exported / "model", "cpu"), BOOK, ASK, 4, 3, exported / "book.txt")
    for source, row in zip(found.sources, page.plain(found)["sources"]):
        whole = torch.frombuffer(bytearray(base64.b64decode(row["weights"])), dtype=torch.int8)
        steps = torch.tensor(row["steps"])
        exact = torch.stack(source.weights)
        back = whole.view(exact.shape) * steps[..., None]
        assert ((back - exact).abs() <= 0.6 * steps[..., None] + 1e-9).all()


def test_a_memory_that_cannot_tell_is_named(exported, monkeypatch):
    kind = type(Writer(exported / "model", "cpu").model.model.layers[0].memories["memory"])
    monkeypatch.setattr(kind, "mark_shape", InftyMemory.mark_shape)
    assert "layer 0, memory: this kind of memory has no measure" in looked(exported).stdout


@pytest.mark.parametrize(
    "problem, how",
    [
        ("is empty", {"book": " \n"}),
        ("no file", {"book": None}),
        ("4,096 can be told apart", {"book": BOOK * 4, "more": ("--passage", "1")}),
    ],
)
def test_mistakes(exported, tmp_path, problem, how):
    (tmp_path / "model").symlink_to(exported / "model")
    if how["book"] is not None:
        (tmp_path / "book.txt").write_text(how["book"])
    done = looked(tmp_path, *how.get("more", ()))
    assert isinstance(done.exception, UserError) and problem in str(done.exception)
