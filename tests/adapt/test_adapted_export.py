"""The way back: an adapted model exported keeps what its family brought, and says what the original says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from infty.data.tokenizer import Tokenizer
from infty.hf.modeling_infty import InftyForCausalLM
from infty_pretrain import checkpoint as checkpoints
from infty_tools.adapt.adapter import Adapter
from infty_tools.export.exporter import Exporter
from support import originals
from support.runs import TEXT

pytestmark = pytest.mark.usefixtures("single_process")

SILENT = {
    "gpt2": ("continuation", ["model.segment_length=16", "model.stm_length=16"]),
    "llama": ("associative", ["model.segment_length=16", "model.stm_length=48"]),
    "mistral": ("none", ["model.segment_length=32", "model.stm_length=32"]),
    "qwen2": ("associative", ["model.segment_length=32", "model.stm_length=32"]),
    "qwen3 tied": ("continuation", ["model.segment_length=8", "model.stm_length=56"]),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_silent_memory_generates_what_the_original_generates(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested below")
    original = originals.write(tmp_path / "original", name)
    memory, changes = SILENT[name]
    Adapter(tmp_path / "original", memory, changes).write(tmp_path / "adapted")
    Exporter(tmp_path / "adapted").write(tmp_path / "exported")
    twin = InftyForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert all(layer.memories for layer in twin.model.layers) or memory != "associative"
    count = 24 if name != "gpt2" else 20
    ids = originals.tokens(1, 9)
    for how in ({}, {"repetition_penalty": 1.0}):
        expected = original.generate(ids, max_new_tokens=count, min_new_tokens=count, **how)
        assert torch.equal(
            twin.generate(ids, max_new_tokens=count, min_new_tokens=count, **how), expected
        )


def test_what_the_family_brought_comes_along_byte_for_byte(tmp_path):
    """And the export is verified as any other."""
    originals.write(tmp_path / "original", "qwen3 tied")
    (tmp_path / "original" / "LICENSE").write_text("Apache-2.0")
    Adapter(tmp_path / "original", "continuation", ["model.segment_length=8"]).write(
        tmp_path / "adapted"
    )
    _, report = Exporter(tmp_path / "adapted").write(tmp_path / "exported")
    assert report.startswith("Verified")
    kept = {p.name for p in (tmp_path / "original").iterdir()} - {
        "config.json",
        "model.safetensors",
    }
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"} <= kept
    for name in kept:
        original = (tmp_path / "original" / name).read_bytes()
        assert (tmp_path / "adapted" / "original" / name).read_bytes() == original
        assert (tmp_path / "exported" / name).read_bytes() == original
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    [said] = [tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)]
    assert said == "<|im_start|>user\nhi<|im_end|>\n"
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "made of a pretrained qwen3 model" in card and "no bos" not in card


def test_texts_are_prepared_with_the_originals_ids(tmp_path):
    originals.write(tmp_path / "original", "llama")
    Adapter(tmp_path / "original").write(tmp_path / "adapted")
    ours = Tokenizer.load(tmp_path / "adapted")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "original")
    assert ours.encode(TEXT).tolist() == theirs(TEXT, add_special_tokens=False)["input_ids"]
    run = checkpoints.Reader(tmp_path / "adapted").run
    assert run["tokenizer_fingerprint"] == ours.fingerprint
    assert ours.end_token == "<|endoftext|>"
