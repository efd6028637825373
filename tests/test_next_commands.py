"""What a command prints to be typed next can be pasted into a shell, whatever a folder is called."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from infty.errors import UserError
from infty_pretrain import launch
from infty_tools import demo
from infty_tools.adapt import adapter
from infty_tools.adapt.command import adapt
from infty_tools.evaluate import folders
from infty_tools.export import exporter
from infty_tools.export.command import export

NAME = "Ann's [bold] model"


def arguments(text: str, verb: str) -> list[str]:
    """The words of the command with this verb that a text shows."""
    [line] = [line for line in text.splitlines() if f" {verb} " in line and "  " in line]
    return shlex.split(line)


def test_export_says_how_to_generate(monkeypatch, capsys):
    made = SimpleNamespace(write=lambda *_: ("1 MB", "verified"))
    monkeypatch.setattr(exporter, "Exporter", lambda *_: made)
    monkeypatch.setattr(exporter, "check_free", lambda *_: None)
    monkeypatch.setattr(launch, "connect", lambda *_, **__: None)
    monkeypatch.setattr(launch, "leave", lambda *_: None)
    export(Path("run"), Path("out") / NAME)
    words = arguments(capsys.readouterr().out, "generate")
    assert words[:4] == ["infty", "generate", "--model", f"out/{NAME}"]


def test_adapt_says_how_to_prepare_and_pretrain(monkeypatch, capsys):
    made = SimpleNamespace(write=lambda *_: 10, audible=[])
    monkeypatch.setattr(adapter, "Adapter", lambda *_: made)
    monkeypatch.setattr(adapter, "check_free", lambda *_: None)
    monkeypatch.setattr(adapter, "describe", lambda *_: "a model")
    adapt(Path("gpt2"), output=Path("out") / NAME)
    said = capsys.readouterr().out
    assert f"out/{NAME}" in arguments(said, "prepare")
    assert f"init.from=out/{NAME}" in arguments(said, "pretrain")


def test_the_demo_says_how_to_look_and_generate(tmp_path, capsys):
    folder = tmp_path / NAME
    made = demo.Demo(folder, None, demo.CONFIG, [])
    made.run_folder.mkdir()
    row = {"step": 1, "loss": 2.0, "tokens_per_second": 10.0}
    (made.run_folder / "metrics.jsonl").write_text(json.dumps(row))
    models = [{"memory": {"none": {"perplexity": 9.0}}}, {"memory": {"on": {"perplexity": 8.0}}}]
    figures = {"models": models, "comparisons": [{"ratio": 0.9}]}
    (folder / demo.EVALUATION).write_text(json.dumps(figures))
    made.summary()
    assert str(made.export) in arguments(capsys.readouterr().out, "generate")


def test_evaluate_says_how_to_prepare_with_the_models_tokenizer():
    documents = SimpleNamespace(folder=Path("data"), vocab_size=20)
    with pytest.raises(UserError) as error:
        folders.check_tokens(Path(NAME), 10, documents)
    shown = str(error.value).partition("(")[2].rstrip(")")
    assert shlex.split(shown)[-1] == f"{NAME}/tokenizer.json"
