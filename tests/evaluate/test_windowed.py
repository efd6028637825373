"""Causal language models of transformers, with a window that moves on by a stride, beside plain forward passes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaForCausalLM

from infty.errors import UserError
from infty_tools.evaluate.models import open_models
from infty_tools.export.tokenizer import fast_tokenizer
from support.runs import TEXT, make_run, tokenizer
from support.twins import VARIANTS

pytestmark = pytest.mark.usefixtures("single_process")
SMALL = {"vocab_size": 400, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 2}


def model_of(kind: str, positions: int):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(n_positions=positions, n_embd=32, n_layer=2, n_head=4, **SMALL)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        max_position_embeddings=positions,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **SMALL,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def by_hand(model, documents, window: int | None = None, stride: int = 0) -> list[torch.Tensor]:
    """nll of every token of each document but its first: a forward pass for every token, or one for all."""
    found = []
    for d, length in enumerate(documents.lengths.tolist()):
        ids = torch.from_numpy(documents.read(d, 0, length))
        if window is None:
            logits = model(ids[None, :-1]).logits[0]
        else:
            ends = [min(length - 1, (i // stride + 1) * stride) for i in range(length - 1)]
            logits = torch.stack(
                [
                    # Read up to the end of the stride, which changes nothing: attention looks back.
                    model(ids[None, max(0, i // stride * stride + stride - window) : end]).logits[
                        0, i - end
                    ]
                    for i, end in enumerate(ends)
                ]
            )
        found.append(F.cross_entropy(logits, ids[1:], reduction="none").double())
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_window_as_long_as_the_documents_is_a_plain_forward_pass(
    kind, tmp_path, evaluated, documents
):
    model = model_of(kind, 1024)
    model.save_pretrained(tmp_path / "model")
    assert documents.lengths.max() < 1024
    expected = torch.cat(by_hand(model, documents))
    found = evaluated(tmp_path / "model")["models"][0]
    assert found["what"] == "window of 1,024 tokens, stride 512"
    figures = found["memory"]["none"]
    assert figures["nll"] == pytest.approx(expected.mean().item(), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(expected.mean().exp().item(), rel=1e-5)


@pytest.mark.parametrize("window, stride", [(32, 16), (30, 9), (24, 24)])
def test_windows_and_blocks(window, stride, tmp_path, evaluated, documents):
    model = model_of("llama", 64)
    model.save_pretrained(tmp_path / "model")
    expected = by_hand(model, documents, window, stride)
    for lanes in (1, 4):
        found = evaluated(tmp_path / "model", window=window, stride=stride, lanes=lanes)
        [model_figures] = found["models"]
        figures = model_figures["memory"]["none"]
        assert figures["nll"] == pytest.approx(torch.cat(expected).mean().item(), rel=1e-6)
        for row in figures["by_position"]:
            there = torch.cat([x[row["from"] : row["to"]] for x in expected])
            assert row["nll"] == pytest.approx(there.mean().item(), rel=1e-5)
    assert model_figures["what"].startswith("blocks of" if window == stride else "window of")


def test_it_stands_beside_a_run(tmp_path, vocabulary, evaluated):
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary, 0.3)
    model_of("gpt2", 64).save_pretrained(tmp_path / "model")
    fast_tokenizer(vocabulary).save_pretrained(tmp_path / "model")
    found = evaluated(tmp_path / "model", checkpoint)
    [comparison] = found["comparisons"]
    without, trained = (next(iter(m["memory"].values())) for m in found["models"])
    assert comparison["ratio"] == pytest.approx(trained["perplexity"] / without["perplexity"])
    low, high = comparison["interval"]
    assert low < comparison["ratio"] < high
    assert (comparison["memory"], comparison["beside_memory"]) == ("on", "none")
    for row, a, b in zip(
        comparison["by_position"], without["by_position"], trained["by_position"], strict=True
    ):
        assert row["ratio"] == pytest.approx(torch.tensor(b["nll"] - a["nll"]).exp().item())


def test_what_does_not_fit_is_refused_before_anything_is_loaded(tmp_path, vocabulary, documents):
    folder = tmp_path / "model"
    model_of("llama", 64).save_pretrained(folder)
    (folder / "model.safetensors").unlink()

    def said(path=folder, **options) -> str:
        with pytest.raises(UserError) as caught:
            open_models([path], documents, options.get("window"), options.get("stride"))
        return str(caught.value)

    assert "the positions of" in said(window=65) and "end at 64" in said(window=65)
    assert "--stride 33 is longer than the window of 32 tokens" in said(window=32, stride=33)
    other = tmp_path / "other"
    other.mkdir()
    fast_tokenizer(tokenizer(other, TEXT.replace("e", "o"))).save_pretrained(folder)
    assert "prepared with another tokenizer than" in said()
    assert "infty prepare --tokenizer" in said()
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in said()
    small = tmp_path / "small"
    config = model_of("gpt2", 64).config
    config.vocab_size = 399
    config.save_pretrained(small)
    assert "a vocabulary of 399 tokens" in said(small)
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary)
    assert "none of the models has a window to choose" in said(checkpoint, window=9)
    assert "none of the models has a window to choose" in said(checkpoint, stride=9)


def test_a_model_without_positions_needs_a_window(tmp_path, evaluated):
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, **SMALL)
    MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="give --window"):
        evaluated(tmp_path / "model")
    assert (
        evaluated(tmp_path / "model", window=16, tokens=20)["models"][0]["memory"]["none"]["nll"]
        > 0
    )


def test_weights_that_cannot_be_loaded_are_one_sentence(tmp_path, evaluated):
    model_of("gpt2", 64).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot be loaded"):
        evaluated(tmp_path / "model")
