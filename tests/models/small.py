"""Small models and random windows for the tests of the model and of its parallel layouts."""

from __future__ import annotations

from dataclasses import replace

import torch

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig

LLAMA = ModelConfig(
    family="llama", vocab_size=61, hidden_size=32, layers=2, heads=4, kv_heads=2, segment_length=8, stm_length=8,
    vocab_multiple=8, init_std=0.2, memory=MemoryConfig(basis=16, widths=(0.05, 0.1), bins=16, kl_weight=1e-2))
GPT2 = replace(
    LLAMA, family="gpt2", norm=None, activation=None, positions=None, bias=None, tie_embeddings=None, ffn_size=None,
    norm_eps=1e-5, kv_heads=4, stm_length=0)
HIDDEN = replace(LLAMA.memory, signal="hidden", content="residual", gate=True, maps="shared")

VARIANTS = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "hidden": replace(LLAMA, memory=HIDDEN),
    "hidden-gpt2": replace(GPT2, stm_length=16, memory=HIDDEN),
    "per-head sticky": replace(LLAMA, memory=replace(LLAMA.memory, sticky_heads="per_head", output_gate=True)),
    "constant": replace(GPT2, memory=replace(GPT2.memory, contraction=0.5, sticky="off", density="gaussian")),
    "truncated": replace(LLAMA, memory=replace(LLAMA.memory, density="truncated", sticky="multinomial")),
    "sparsemax": replace(GPT2, memory=replace(GPT2.memory, density="sparsemax", sigma_clamp=True)),
    "gibbs": replace(LLAMA, memory=replace(LLAMA.memory, density="gibbs", kl_weight=0.0)),
    "gibbs-hidden": replace(GPT2, memory=replace(HIDDEN, density="gibbs", kl_weight=0.0)),
    "some layers": replace(LLAMA, stm_layers=(1,), memory=replace(LLAMA.memory, layers=(0,), kl_weight=0.0)),
    "no memory": replace(LLAMA, memory=None),
}


def window(config: ModelConfig, lanes: int, segments: int, seed: int = 0, resets: float = 0.2) -> dict:
    """Random tokens, labels, weights and resets for one window; every lane begins a document in segment 0 of seed 0."""
    g = torch.Generator().manual_seed(seed)
    shape = (lanes, segments, config.segment_length)
    reset = torch.rand(lanes, segments, generator=g) < resets
    if seed == 0:
        reset[:, 0] = True
    tokens = torch.randint(0, config.vocab_size, shape, generator=g)
    return {
        "tokens": tokens,
        "labels": (5 * tokens + 3) % config.vocab_size,  # something that can be learnt in a few steps
        "weights": (torch.rand(shape, generator=g) < 0.9).float(),
        "reset": reset,
    }
