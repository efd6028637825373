"""Small models for the tests of the model and of its parallel layouts."""

from __future__ import annotations

from dataclasses import replace

import torch

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.rope_scaling import RopeScaling
from infty.memory.sections import AssociativeConfig, CompressiveConfig, ContinuationConfig
from infty.models.lm import InftyLM

LLAMA = ModelConfig(
    family="llama",
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    segment_length=8,
    stm_length=8,
    vocab_multiple=8,
    init_std=0.2,
    memory=MemoryConfig(basis=16, widths=(0.05, 0.1), bins=16, kl_weight=1e-2),
)
GPT2 = replace(
    LLAMA,
    family="gpt2",
    norm=None,
    activation=None,
    positions=None,
    bias=None,
    qkv_bias=None,
    attention_out_bias=None,
    mlp_bias=None,
    tie_embeddings=None,
    ffn_size=None,
    norm_eps=1e-5,
    kv_heads=4,
    stm_length=0,
)
HIDDEN = replace(LLAMA.memory, signal="hidden", content="residual", gate=True, maps="shared")

JOINT = MemoryConfig(basis=16, bins=16, density="joint", sticky="off")

VARIANTS = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "hidden": replace(LLAMA, memory=HIDDEN),
    "hidden-gpt2": replace(GPT2, stm_length=16, memory=HIDDEN),
    "per-head sticky": replace(
        LLAMA, memory=replace(LLAMA.memory, sticky_heads="per_head", output_gate=True)
    ),
    "constant": replace(
        GPT2, memory=replace(GPT2.memory, contraction=0.5, sticky="off", density="gaussian")
    ),
    "truncated": replace(
        LLAMA,
        memory=replace(LLAMA.memory, density="truncated", sticky="multinomial", contraction=0.5),
    ),
    "sparsemax": replace(GPT2, memory=replace(GPT2.memory, density="sparsemax", sigma_clamp=True)),
    "gibbs": replace(LLAMA, memory=replace(LLAMA.memory, density="gibbs", kl_weight=0.0)),
    "gibbs-hidden": replace(GPT2, memory=replace(HIDDEN, density="gibbs", kl_weight=0.0)),
    "some layers": replace(
        LLAMA, stm_layers=(1,), memory=replace(LLAMA.memory, layers=(0,), kl_weight=0.0)
    ),
    "no memory": replace(LLAMA, memory=None),
    "sinks": replace(LLAMA, sinks=2, memory=None),
    "wide heads": replace(
        LLAMA,
        head_size=12,
        qkv_bias=True,
        mlp_bias=True,
        qk_norm=True,
        window=11,
        window_layers=(1,),
        rope_scaling=RopeScaling("llama3", 4.0, 32),
        memory=AssociativeConfig(),
    ),
    "relative": replace(LLAMA, positions="relative"),
    "transformer-xl": replace(GPT2, positions="relative", stm_length=16, memory=None),
    "compressive": replace(
        LLAMA, positions="relative", memory=CompressiveConfig(length=6, ratio=4)
    ),
    "learned": replace(
        LLAMA,
        memory=replace(
            LLAMA.memory,
            contraction="learned",
            overrides={1: {"basis": 8, "widths": (0.1,), "sticky": "off"}},
        ),
    ),
    "salience": replace(LLAMA, memory=replace(LLAMA.memory, room="salience")),
    "surprise": replace(LLAMA, memory=replace(LLAMA.memory, room="surprise", sticky="off")),
    "surprise, joint": replace(GPT2, memory=replace(JOINT, room="surprise"), stm_length=8),
    "salience, doubling": replace(
        LLAMA,
        memory=replace(HIDDEN, room="salience", contraction="doubling", sticky=None),
    ),
    "salience, joint": replace(GPT2, memory=replace(JOINT, room="salience"), stm_length=8),
    "unlike layers": replace(
        GPT2,
        memory=replace(
            GPT2.memory,
            overrides={
                0: {"basis": 24, "widths": (0.05, 0.1, 0.2), "contraction": 0.75},
                1: {"contraction": "doubling", "bins": 8},
            },
        ),
    ),
    "joint": replace(LLAMA, memory=JOINT),
    "joint-gpt2": replace(GPT2, memory=replace(JOINT, contraction="doubling", basis=24)),
    "associative": replace(LLAMA, memory=AssociativeConfig()),
    "gist and facts": replace(GPT2, stm_length=8, memories={"facts": AssociativeConfig()}),
    "continuation": replace(
        LLAMA,
        tie_embeddings=True,
        memory=None,
        memories={"next": ContinuationConfig(key_size=12, layers=(1,))},
    ),
    "continuation without stm": replace(GPT2, memory=ContinuationConfig(key_size=8)),
    "continuation wide": replace(
        LLAMA, head_size=12, memory=ContinuationConfig(key_size=8, layers=(1,))
    ),
    "continuation untied": replace(LLAMA, memory=ContinuationConfig(key_size=12, layers=(1,))),
    "compressive as published": replace(
        GPT2,
        positions="relative",
        stm_length=16,
        memory=CompressiveConfig(length=8, ratio=2, backprop=False, reconstruction_weight=0.5),
    ),
}


def build(config: ModelConfig, seed: int = 1, **options) -> InftyLM:
    torch.manual_seed(seed)
    model = InftyLM(config, **options)
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        for p in block.memories.parameters():  # what starts at zero would hide its memory
            if not p.any():
                with torch.no_grad():
                    p.normal_(0.0, 0.2, generator=generator)
    return model


def logits(model: InftyLM, batch: dict, state=None, **options):
    state = model.initial_state(len(batch["tokens"])) if state is None else state
    return model(batch["tokens"], batch["reset"], state, **options)
