"""The count of operations, which utilisation and `infty plan` rest on, beside torch's own count of a forward pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.sections import CompressiveConfig
from infty.models.lm import InftyLM
from infty_pretrain import flops

LANES, SEGMENTS, L = 2, 4, 64
SMALL = {"vocab_size": 128, "hidden_size": 128, "layers": 2, "heads": 4, "segment_length": L, "stm_length": L,
         "memory": None}
# The second figure: what may be missing from either count, as a share. Exact where all work is matrix products;
# distances are projected once a window; a CPU's sparse write and the weights of a read are no matrix products.
MODELS = {
    "plain": ({}, 1e-9),
    "grouped heads, no short-term memory": ({"kv_heads": 2, "stm_length": 0}, 1e-9),
    "gpt2, relative": ({"family": "gpt2", "positions": "relative"}, 0.02),
    "relative": ({"positions": "relative"}, 0.02),
    "compressive": ({"positions": "relative", "memory": CompressiveConfig(length=32, ratio=4)}, 0.05),
    "heads": ({"memory": MemoryConfig(basis=64)}, 0.06),
    "hidden": ({"memory": MemoryConfig(basis=64, signal="hidden", gate=True)}, 0.06),
    "gibbs": ({"memory": MemoryConfig(basis=64, density="gibbs")}, 0.06),
}


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name):
    changes, tolerance = MODELS[name]
    config = ModelConfig(**SMALL | changes)
    model = InftyLM(config)
    tokens = torch.randint(0, 128, (LANES, SEGMENTS, L))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, torch.zeros(LANES, SEGMENTS, dtype=torch.bool), model.initial_state(LANES), labels=tokens)
    # Plain attention computes the half of a segment's scores that a causal mask then hides.
    hidden_half = config.layers * 4 * config.heads * config.head_size * L / 2
    counted = counter.get_total_flops() / tokens.numel() - hidden_half
    assert sum(flops.forward_per_token(config).values()) == pytest.approx(counted, rel=tolerance)
