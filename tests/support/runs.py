"""A run's folder with a checkpoint in it, as training leaves one, made without training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from infty.config import ModelConfig
from infty.data.tokenizer import Tokenizer
from infty.data.vocabulary import train_sentencepiece
from infty.models.lm import InftyLM
from infty_pretrain import checkpoint as checkpoints
from infty_pretrain.config import Config, RunConfig

TEXT = (
    "Call me Ishmael. Some years ago — never mind how long precisely — having little or no money in my purse, and "
    "nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of "
    "the world.\n"
) * 3 + "".join(f"Chapter {i}. {chr(97 + i % 26) * (i % 7)} {i * i}\n" for i in range(300))


def tokenizer(folder: Path, text: str = TEXT) -> Tokenizer:
    train_sentencepiece([text], 400, folder / "tokenizer.model")
    return Tokenizer.load(folder / "tokenizer.model")


def make_run(
    folder: Path, model: ModelConfig, vocabulary: Tokenizer, noise: float = 0.0
) -> tuple[Path, InftyLM]:
    """A run's folder with one checkpoint in two weight files, and the model it holds.

    `noise` is added to what begins as a constant, so that everything has an effect: gates begin at zero.
    """
    torch.manual_seed(0)
    trained = InftyLM(replace(model, vocab_size=vocabulary.vocab_size))
    with torch.no_grad():
        for p in trained.parameters():
            if noise and (p.dim() == 1 or not p.any()):
                p.add_(noise * torch.randn_like(p))
    checkpoint = folder / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    weights = {n: p.detach().clone().contiguous() for n, p in trained.named_parameters()}
    names = sorted(weights)
    for rank in range(2):
        save_file(
            {n: weights[n] for n in names[rank::2]}, checkpoint / f"weights-{rank:05d}.safetensors"
        )
    run = {
        "step": 7,
        "tokens": 1234,
        "tokenizer": str(vocabulary.path),
        "format": checkpoints.FORMAT,
        "tokenizer_fingerprint": vocabulary.fingerprint,
    }
    (checkpoint / checkpoints.RUN).write_text(json.dumps(run))
    config = Config(run=RunConfig(folder=folder, steps=7), model=trained.config)
    (checkpoint / checkpoints.CONFIG).write_text(config.to_yaml())
    files = {
        p.name: {"size": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in checkpoint.iterdir()
    }
    (checkpoint / checkpoints.MANIFEST).write_text(
        json.dumps({"format": checkpoints.FORMAT, "files": files})
    )
    return checkpoint, trained.eval()
