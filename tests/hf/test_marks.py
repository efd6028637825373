"""Marks written in the place of values: which tokens a read comes from, of every kind of memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from infty.hf.cache_infty import InftyCache
from infty.hf.memory_infty import InftyMemory
from infty_tools.look.tracing import ATTENTION, Tracer
from support.twins import VARIANTS, close, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

TOKENS = 45
OF_HEADS = [
    "llama",
    "gpt2",
    "per head",
    "not sticky",
    "constant",
    "doubling",
    "gibbs",
    "truncated",
    "learned",
]


class Seen:
    """The attention's values of every token, and what every part of a model gave for the last."""

    def __init__(self, model) -> None:
        self.values: dict[int, list[torch.Tensor]] = {}
        self.reads: dict[tuple[int, str], torch.Tensor] = {}
        for number, layer in enumerate(model.model.layers):
            layer.attention.register_forward_hook(self._attention(number))
            for name, memory in layer.memories.items():
                memory.register_forward_hook(self._memory(number, name))

    def _attention(self, number):
        def hook(module, given, z):
            _, _, values, piece, *_ = given
            # One text; its segments are attended to side by side, as rows.
            new = values[:, :, -piece.tokens :].transpose(0, 1).flatten(1, 2)
            self.values.setdefault(number, []).append(new)
            self.reads[number, ATTENTION] = z[-1, -1]

        return hook

    def _memory(self, number, name):
        def hook(module, given, reading):
            if getattr(reading, "update", None) is not None:
                self.reads[number, name] = reading.update[0, -1]

        return hook

    def of_tokens(self, layer: int, heads: int) -> torch.Tensor:
        """[H, T, d]: the values of the key/value heads that each head reads."""
        values = torch.cat(self.values[layer], 1)
        return values.repeat_interleave(heads // len(values), 0)


@torch.no_grad()
def traced(model, ids) -> tuple[Tracer, Seen]:
    """A mark for every token, and the last token's reads."""
    seen, cache = Seen(model), InftyCache()
    with Tracer(model, ids.shape[1], lambda places: places) as tracer:
        model(ids[:, :-1], past_key_values=cache)
        tracer.recording = True
        model(ids[:, -1:], past_key_values=cache)
    return tracer, seen


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_what_attention_reads_is_the_values_of_tokens_by_these_weights(name):
    model = twin(name)
    tracer, seen = traced(model, tokens(1, TOKENS))
    heads = model.config.num_attention_heads
    for layer in range(model.config.num_hidden_layers):
        [weights] = tracer.sources[layer, ATTENTION].weights
        z = torch.einsum("ht,htd->hd", weights, seen.of_tokens(layer, heads)).flatten()
        close(z, seen.reads[layer, ATTENTION])
    assert tracer.unmeasured() == []


@torch.no_grad()
@pytest.mark.parametrize("name", OF_HEADS)
def test_what_a_continuous_memory_reads_is_the_values_of_tokens_by_these_weights(name):
    model = twin(name)
    tracer, seen = traced(model, tokens(1, TOKENS))
    for (number, memory_name), source in tracer.sources.items():
        if memory_name == ATTENTION:
            continue
        memory = model.model.layers[number].memories[memory_name]
        z = torch.einsum("ht,htd->hd", source.weights[0], seen.of_tokens(number, 4))
        if memory.output_gate is not None:
            z = z * memory.output_gate[:, None]
        torch.testing.assert_close(
            memory.out(z.flatten()), seen.reads[number, memory_name], rtol=1e-3, atol=1e-5
        )
        assert source.weights[0][:, -5:].abs().max() == 0  # what is not written yet
        assert abs(float(source.room.sum()) - 1) < 1e-5


@torch.no_grad()
def test_what_an_associative_memory_reads_is_the_values_of_tokens_by_these_weights():
    model = twin("associative")
    tracer, seen = traced(model, tokens(1, TOKENS))
    for number, layer in enumerate(model.model.layers):
        [(name, memory)] = layer.memories.items()
        z = torch.einsum(
            "ht,htd->hd", tracer.sources[number, name].weights[0], seen.of_tokens(number, 4)
        )
        z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-5)
        z = z * memory.norm_weight.flatten(0, 1) * memory.gate.flatten()[:, None]
        close(memory.out(z.flatten()), seen.reads[number, name])


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["continuation", "continuation without stm", "continuation untied"]
)
def test_what_the_memory_of_what_followed_reads_is_rows_of_the_output_matrix(name):
    model, ids = twin(name), tokens(1, TOKENS)
    tracer, seen = traced(model, ids)
    rows = model.lm_head.weight[ids[0]].unflatten(-1, (4, -1)).transpose(0, 1)  # [H, T, d]
    rows = F.rms_norm(rows, rows.shape[-1:], eps=1e-6)
    for (number, memory_name), source in tracer.sources.items():
        if memory_name != ATTENTION:
            memory = model.model.layers[number].memories[memory_name]
            z = torch.einsum("ht,htd->hd", source.weights[0], rows) * (10 * memory.gate)[:, None]
            close(memory.out(z.flatten()), seen.reads[number, memory_name])


@torch.no_grad()
def test_a_place_of_the_memory_stands_for_the_part_of_the_book_that_contraction_put_there():
    """Twenty segments with even shares: the densities at .425 and .875 are of segments 8 and 17."""
    model = twin("not sticky")
    memory = model.model.layers[0].memories["memory"]
    ids = tokens(1, 22 * 8 + 1)
    with Tracer(model, 23, lambda places: places // 8) as tracer:
        cache = InftyCache()
        model(ids[:, :-1], past_key_values=cache)
        tracer.recording = True
        for place in (8.5 / 21, 17.5 / 21):
            density = memory.family(torch.full((1, 1, 1), place), torch.full((1, 1, 1), 1e-5))
            marks = tracer.sources[0, "memory"].marks[:, 0]
            assert int(density.read(marks, memory.core.basis)[0, 0].argmax()) == int(place * 21)


@torch.no_grad()
def test_a_memory_without_marks_is_said_to_be_unmeasured(monkeypatch):
    model = twin("associative")
    memory = model.model.layers[1].memories["memory"]
    monkeypatch.setattr(memory, "mark_shape", lambda: InftyMemory.mark_shape(memory))
    tracer, _ = traced(model, tokens(1, TOKENS))
    assert [(source.layer, source.name) for source in tracer.unmeasured()] == [(1, "memory")]
