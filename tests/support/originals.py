"""Tiny random models of the families that can be adapted, as Hugging Face folders, with every option they know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from infty.data.documents import INFO
from support import small_run
from support.runs import TEXT

VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY + 5,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY + 5,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 5000.0, **values}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0)

CONFIGS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(**GPT2_SIZES),
    "gpt2 untied": lambda: GPT2Config(
        **GPT2_SIZES,
        tie_word_embeddings=False,
        n_inner=40,
        layer_norm_epsilon=1e-3,
        activation_function="gelu_pytorch_tanh",
        reorder_and_upcast_attn=True,
    ),
    "llama": lambda: LlamaConfig(**SIZES),
    "llama tied": lambda: LlamaConfig(
        **SIZES,
        tie_word_embeddings=True,
        attention_bias=True,
        mlp_bias=True,
        head_dim=12,
        rms_norm_eps=1e-3,
        rope_parameters=LLAMA3,
    ),
    "llama linear": lambda: LlamaConfig(**SIZES, rope_parameters=rope("linear", factor=2.5)),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=10, head_dim=6),
    "qwen2": lambda: Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen2 tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters=YARN),
    "qwen3": lambda: Qwen3Config(
        **SIZES,
        head_dim=16,
        attention_bias=True,
        rope_parameters=rope(
            "yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.5
        ),
    ),
    "qwen3 tied": lambda: Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
}
GENERATION = {"do_sample": False, "repetition_penalty": 1.1, "max_new_tokens": 24}
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with a chat template and special tokens of its own."""
    import tokenizers
    from tokenizers import Tokenizer

    made = tokenizers.ByteLevelBPETokenizer()
    special = ["<unk>", "<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made.train_from_iterator(
        TEXT.splitlines(), vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(made.to_str()),
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[3:],
        chat_template=CHAT,
    )
    fast.save_pretrained(folder)


def write(folder: Path, name: str, **save: Any) -> torch.nn.Module:
    """The model of this name in a folder; `save`: options of save_pretrained. Returns it."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:  # biases are zero and norms one in a fresh model
                p.add_(0.2 * torch.randn_like(p))
    for key, value in GENERATION.items():
        setattr(model.generation_config, key, value)
    model.save_pretrained(folder, **save)
    write_tokenizer(folder)
    return model


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (rows, count), generator=generator)


def write_data(folder: Path, checkpoint: Path) -> Path:
    """A dataset in the tokens of an adapted checkpoint."""
    small_run.write_dataset(folder, vocabulary=VOCABULARY)
    info = json.loads((folder / INFO).read_text())
    run = json.loads((checkpoint / "run.json").read_text())
    info["tokenizer_fingerprint"] = run["tokenizer_fingerprint"]
    (folder / INFO).write_text(json.dumps(info))
    return folder


def run_values(folder: Path, data: Path, origin: Path, **changes: Any) -> dict[str, Any]:
    """A run's config that begins with a checkpoint and says nothing of its model."""
    values: dict[str, Any] = small_run.values(folder, data, **changes)
    given = {key.split("__")[1] for key in changes if key.startswith("model__")}
    values["model"] = {key: value for key, value in values["model"].items() if key in given}
    return values | {"init": {"from": str(origin)}}
