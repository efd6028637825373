"""Training models with random weights, and their twins for transformers."""

from __future__ import annotations

from dataclasses import replace

import torch

from infty.config import ModelConfig
from infty.hf.modeling_infty import InftyForCausalLM
from infty.memory.config import MemoryConfig
from infty.memory.rope_scaling import RopeScaling
from infty.memory.sections import AssociativeConfig
from infty.models.lm import InftyLM
from infty_tools.export.weights import convert_config, convert_weights
from support.small import VARIANTS as TRAINED

MEMORY = MemoryConfig(basis=16, bins=16)
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
    init_std=0.1,
    memory=MEMORY,
)
GPT2 = ModelConfig(
    family="gpt2",
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    segment_length=8,
    vocab_multiple=8,
    init_std=0.1,
    memory=MEMORY,
)
HIDDEN = replace(MEMORY, signal="hidden")
PAPER = replace(
    HIDDEN,
    content="residual",
    gate=True,
    maps="shared",
    map_bias=False,
    contraction=0.5,
    samples=16,
    sigma_clamp=True,
    sigma_floor=1e-2,
)

VARIANTS = {
    "llama": LLAMA,
    "sinks": replace(LLAMA, sinks=3, memory=None),
    "sinks gpt2": replace(GPT2, stm_length=16, sinks=1),
    "llama tied": replace(LLAMA, tie_embeddings=True, stm_length=0),
    "gpt2": GPT2,
    "gpt2 untied": replace(GPT2, tie_embeddings=False, stm_length=16),
    "hidden": replace(LLAMA, memory=HIDDEN),
    "paper": replace(GPT2, memory=PAPER),
    "paper with stm": replace(
        GPT2, stm_length=16, memory=replace(PAPER, sticky="multinomial", sticky_seed=7)
    ),
    "per head": replace(LLAMA, memory=replace(MEMORY, sticky_heads="per_head", output_gate=True)),
    "not sticky": replace(LLAMA, memory=replace(MEMORY, sticky="off")),
    "constant": replace(
        LLAMA, stm_length=0, memory=replace(MEMORY, contraction=0.75, precision="float64")
    ),
    "doubling": replace(LLAMA, positions="none", memory=replace(MEMORY, contraction="doubling")),
    "gibbs": replace(LLAMA, memory=replace(MEMORY, density="gibbs")),
    "gibbs hidden": replace(GPT2, memory=replace(HIDDEN, density="gibbs")),
    "truncated": replace(LLAMA, memory=replace(MEMORY, density="truncated")),
    "sparsemax": replace(GPT2, memory=replace(HIDDEN, density="sparsemax")),
    "some layers": replace(
        LLAMA, layers=3, stm_layers=(1, 2), memory=replace(MEMORY, layers=(0, 2))
    ),
    "learned": replace(
        LLAMA, memory=replace(MEMORY, contraction="learned", overrides={1: {"basis": 24}})
    ),
    "salience": replace(LLAMA, memory=replace(MEMORY, room="salience", contraction="learned")),
    "salience, hidden": replace(
        GPT2, memory=replace(HIDDEN, room="salience", contraction="doubling", sticky=None)
    ),
    "salience, joint": replace(TRAINED["salience, joint"], init_std=0.1),
    "surprise": replace(TRAINED["surprise"], init_std=0.3, tie_embeddings=False),
    "surprise, joint": replace(TRAINED["surprise, joint"], init_std=0.3),
    "unlike layers": replace(
        LLAMA,
        memory=replace(
            MEMORY,
            overrides={
                0: {"basis": 8, "widths": (0.1,), "contraction": 0.75},
                1: {"contraction": "doubling", "bins": 8},
            },
        ),
    ),
    "no memory": replace(LLAMA, memory=None),
    "wide heads": replace(
        TRAINED["wide heads"],
        init_std=LLAMA.init_std,
        rope_scaling=RopeScaling("yarn", 4.0, 32),
        memories={"joint": replace(TRAINED["joint"].memory)},
    ),
    **{
        name: replace(TRAINED[name], init_std=0.1)
        for name in (
            "joint",
            "joint-gpt2",
            "associative",
            "continuation",
            "continuation without stm",
            "continuation untied",
            "continuation wide",
        )
    },
    "gist and facts": replace(TRAINED["gist and facts"], init_std=0.1, memory=MEMORY),
    "joint and facts": replace(
        TRAINED["joint"],
        init_std=0.1,
        memories={
            "facts": AssociativeConfig(layers=(1,)),
            "gist": replace(MEMORY, signal="hidden", layers=(0,)),
        },
    ),
}
SOME = [
    "llama",
    "gpt2",
    "paper with stm",
    "hidden",
    "per head",
    "gibbs",
    "joint",
    "gist and facts",
    "continuation",
]


def pair(config: ModelConfig) -> tuple[InftyLM, InftyForCausalLM]:
    """A training model with random weights everywhere, and its twin."""
    torch.manual_seed(1)
    trained = InftyLM(config)
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if p.dim() == 1 or not p.any():
                p.add_(0.3 * torch.randn_like(p))
            elif name in ("embedding.weight", "head.weight"):
                p[config.vocab_size :] = 7.0  # must not matter
    twin = InftyForCausalLM(convert_config(config)).eval()
    missing, unexpected = twin.load_state_dict(
        convert_weights(trained.named_parameters(), config), strict=False
    )
    assert unexpected == [] and missing in ([], ["lm_head.weight"])
    twin.tie_weights()
    return trained.eval(), twin


def twin(name: str) -> InftyForCausalLM:
    return pair(VARIANTS[name])[1]


def tokens(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (rows, count), generator=torch.Generator().manual_seed(seed))


def training_logits(
    model: InftyLM, ids: torch.Tensor, resets: dict[int, int] | None = None
) -> torch.Tensor:
    """[b, T, V]; `resets`: lane -> the segment that begins a new document there."""
    segments = ids.unflatten(1, (-1, model.config.segment_length))
    reset = torch.zeros(segments.shape[:2], dtype=torch.bool)
    reset[:, 0] = True
    for lane, segment in (resets or {}).items():
        reset[lane, segment] = True
    return model(segments, reset, model.initial_state(len(ids)))[0].flatten(1, 2)[
        ..., : model.config.vocab_size
    ]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * scale)
