"""Quantised weights: the memory computes in the dtype of activations, whatever a weight's own dtype is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from infty.config import ModelConfig
from infty.hf.cache_infty import InftyCache
from infty.hf.modeling_infty import InftyForCausalLM
from support.twins import VARIANTS, pair, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

MEMORIES = [
    "llama",
    "hidden",
    "paper with stm",
    "gibbs",
    "gibbs hidden",
    "learned",
    "joint",
    "gist and facts",
]


class Int8Linear(nn.Module):
    """A stand-in for a quantised layer: its weight is int8, it takes and gives what activations are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1) / 127
        self.weight = nn.Parameter(
            (weight / self.scale[:, None]).round().to(torch.int8), requires_grad=False
        )
        self.bias = linear.bias
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.dtypes.add(x.dtype)
        y = x @ (self.weight.float() * self.scale[:, None]).T.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def dense(self) -> nn.Linear:
        """The same in floating point."""
        linear = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        linear.weight.data = self.weight.float() * self.scale[:, None]
        if self.bias is not None:
            linear.bias.data = self.bias.detach().clone()
        return linear


def replaced(model: InftyForCausalLM, kind: type, by) -> InftyForCausalLM:
    """A copy with every layer of a kind but the head replaced."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, kind) and name != "lm_head":
            model.set_submodule(name, by(module))
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_change_nothing_but_the_weights(name, dtype):
    model, ids = twin(name), tokens(2, 40)
    quantised = replaced(model, nn.Linear, Int8Linear)
    expected = replaced(quantised, Int8Linear, Int8Linear.dense).to(dtype)(ids).logits.float()
    for module in quantised.modules():
        if not isinstance(
            module, Int8Linear
        ):  # as a quantised model is loaded: all else is in the compute dtype
            for p in module.parameters(recurse=False):
                p.data = p.data.to(dtype)
    got = quantised(ids).logits.float()
    # As a whole: a read that is normed and small lifts bf16's rounding in single logits.
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert (got - expected).norm() < tolerance * expected.norm()
    assert all(m.dtypes == {dtype} for m in quantised.modules() if isinstance(m, Int8Linear))


@torch.no_grad()
def test_a_quantised_model_goes_on_from_its_bookmark_and_from_no_other(tmp_path):
    model, cache = replaced(twin("gist and facts"), nn.Linear, Int8Linear), InftyCache()
    model(tokens(1, 45), cache=cache)
    cache.save(tmp_path / "book.safetensors")
    expected = model(tokens(1, 9), cache=cache).logits
    again = model.load_cache(tmp_path / "book.safetensors")
    assert torch.equal(model(tokens(1, 9), cache=again).logits, expected)
    with pytest.raises(ValueError, match="with other weights"):
        twin("gist and facts").load_cache(tmp_path / "book.safetensors")


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MEMORIES)
def test_dynamic_quantisation_keeps_the_memory(name):
    model, ids = not_sticky(VARIANTS[name]), tokens(2, 64)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    keeps_the_memory(model, quantised, ids)
    assert quantised.generate(ids, max_new_tokens=5, do_sample=False).shape == (2, 69)


def by_segments(model: InftyForCausalLM, ids: torch.Tensor, memory_enabled: bool) -> torch.Tensor:
    """Logits of a text that is read a segment at a time: some quantisation has one scale for all that a call reads."""
    cache, parts = InftyCache(), ids.split(model.config.segment_length, 1)
    read = [model(part, cache=cache, memory_enabled=memory_enabled).logits for part in parts]
    return torch.cat(read, 1)


def keeps_the_memory(
    model: InftyForCausalLM, quantised: InftyForCausalLM, ids: torch.Tensor
) -> None:
    """What the memory adds to the logits is what it adds in float32, to the rounding of 8 or 4 bits."""
    adds = by_segments(model, ids, True) - by_segments(model, ids, False)
    got = (by_segments(quantised, ids, True) - by_segments(quantised, ids, False)).float()
    assert torch.isfinite(got).all()
    similarity = torch.nn.functional.cosine_similarity(got.flatten(), adds.flatten(), 0)
    assert similarity > 0.6 and 0.6 < got.norm() / adds.norm() < 1.6


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "hidden"])
@pytest.mark.parametrize(
    "how",
    [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}],
    ids=["8bit", "4bit"],
)
def test_bitsandbytes_keeps_the_memory(name, how, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from transformers import BitsAndBytesConfig

    model = not_sticky(replace(VARIANTS[name], hidden_size=128, head_size=32, ffn_size=256))
    model.save_pretrained(tmp_path)
    quantised = InftyForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**how),
        device_map="cpu",
        dtype=torch.float32,
    ).eval()
    assert quantised.model.layers[0].memories["memory"].out.weight.dtype in (
        torch.int8,
        torch.uint8,
    )
    keeps_the_memory(model, quantised, tokens(2, 64))


def not_sticky(config: ModelConfig) -> InftyForCausalLM:
    """A sticky memory follows attention, and so makes much of a small difference."""
    return pair(replace(config, memory=replace(config.memory, sticky="off")))[1]
