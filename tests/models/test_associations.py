"""The layers of the associative memory and of the memory of what followed, against loops over tokens in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.layers.memories.associative import Associative
from infty.layers.memories.base import Inputs
from infty.layers.memories.continuation import Continuation
from infty.memory.associative import GATE_SCALE
from infty.memory.sections import AssociativeConfig, ContinuationConfig
from infty.models.lm import InftyLM
from infty.parallel.region import Region
from infty.tree import fresh

pytestmark = pytest.mark.usefixtures("single_process")

L, S, LANES = 6, 5, 2
SEEN = torch.tensor(
    [[0, 1, 2, 3, 4], [3, 4, 0, 1, 2]]
)  # the second lane begins a document in the middle


def config(section, stm: int, **changes) -> ModelConfig:
    return ModelConfig(
        vocab_size=16,
        hidden_size=16,
        heads=4,
        kv_heads=changes.pop("kv_heads", 2),
        layers=1,
        segment_length=L,
        stm_length=stm,
        memory=section,
        **changes,
    )


def inputs(model: ModelConfig, seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    T, K, d, e = S * L, model.kv_heads, model.head_size, model.hidden_size
    keys, values = (torch.randn(LANES, K, model.stm_length + T, d, generator=g) for _ in range(2))
    q = torch.randn(LANES, K, model.heads // K, T, d, generator=g)
    normed, rows = (torch.randn(T, LANES, e, generator=g) for _ in range(2))
    return Inputs(q, keys, values, normed, normed, rows, SEEN, None, Region(), True, False)


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return layer


def recurrent(M: Tensor, key: Tensor, value: Tensor, told: Tensor, layer, head: int) -> Tensor:
    """One token's write: equation 10 of arXiv 2412.06464, transposed."""
    beta = torch.sigmoid(
        told @ layer.strength_weight[head].double() + layer.strength_bias[head].double()
    )
    alpha = torch.exp(
        -torch.nn.functional.softplus(
            told @ layer.decay_weight[head].double() + layer.decay_bias[head].double()
        )
    )
    return alpha * (M - beta * torch.outer(key, key @ M)) + beta * torch.outer(key, value)


def unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("stm", [0, L, 2 * L])
def test_the_associative_layer(stm):
    model = config(AssociativeConfig(), stm)
    layer = randomised(Associative(model, 0, "memory"))
    given = inputs(model)
    reading = layer(given, fresh(layer.fields(torch.float32), LANES))
    keys, values, q = (x.double() for x in (given.keys, given.values, given.q))
    delay = stm // L
    for lane in range(LANES):
        z = torch.zeros(S * L, model.heads, model.head_size, dtype=torch.float64)
        for k in range(model.kv_heads):
            M = torch.zeros(model.head_size, model.head_size, dtype=torch.float64)
            for s in range(S):
                if SEEN[lane, s] == 0:
                    M.zero_()
                for t in range(s * L, s * L + L):
                    for g in range(2):
                        read = unit(q[lane, k, g, t]) @ M
                        norm = (read.square().mean() + 1e-5).sqrt()
                        size = layer.norm_weight[k, g].double() * layer.gate[k, g].double()
                        z[t, 2 * k + g] = read / norm * size
                if SEEN[lane, s] >= delay:
                    for t in range(s * L, s * L + L):  # the STM comes first in keys and values
                        key = unit(keys[lane, k, t])
                        M = recurrent(
                            M,
                            key,
                            values[lane, k, t],
                            torch.cat([key, values[lane, k, t]]),
                            layer,
                            k,
                        )
            torch.testing.assert_close(
                reading.state["matrix"][lane, k].double(), M, rtol=1e-4, atol=1e-5
            )
        expected = z.flatten(1) @ layer.out.weight.double().t()
        torch.testing.assert_close(reading.update[:, lane].double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stm", [0, L, 2 * L])
def test_the_layer_of_what_followed(stm):
    """Two windows, so that what is in the short-term memory and the key before it cross from one to the next."""
    model = config(ContinuationConfig(key_size=7), stm, kv_heads=4)
    layer = randomised(Continuation(model, 0, "memory"))
    given = inputs(model)
    state = fresh(layer.fields(torch.float32), LANES)
    updates = []
    for part in (slice(0, 2), slice(2, S)):
        tokens = slice(part.start * L, part.stop * L)
        window = given._replace(
            normed=given.normed[tokens], output_rows=given.output_rows[tokens], seen=SEEN[:, part]
        )
        reading = layer(window, state)
        state = reading.state
        updates.append(reading.update)
    update = torch.cat(updates)
    delay, d, n = stm // L, model.head_size, 7
    keys = given.normed.double() @ layer.key.weight.double().t()
    # Lane 1 begins in the middle of a document whose earlier segments are not given: its state says they are empty.
    for lane in range(LANES):
        z = torch.zeros(S * L, model.heads, d, dtype=torch.float64)
        for h in range(model.heads):
            M = torch.zeros(n, d, dtype=torch.float64)
            for s in range(S):
                if SEEN[lane, s] == 0:
                    M.zero_()
                for t in range(s * L, s * L + L):
                    z[t, h] = (
                        GATE_SCALE
                        * layer.gate[h].double()
                        * (unit(keys[t, lane, h * n : h * n + n]) @ M)
                    )
                if SEEN[lane, s] < delay:
                    continue
                for t in range((s - delay) * L, (s - delay) * L + L):
                    first = t % L == 0 and SEEN[lane, s] == delay
                    before = torch.zeros(n, dtype=torch.float64)
                    value = torch.zeros(d, dtype=torch.float64)
                    if t > 0 and not first:
                        before = unit(keys[t - 1, lane, h * n : h * n + n])
                    if t >= 0:
                        row = given.output_rows[t, lane, h * d : h * d + d].double()
                        value = row / (row.square().mean() + 1e-6).sqrt()
                    M = recurrent(M, before, value, torch.cat([before, value]), layer, h)
            torch.testing.assert_close(state["matrix"][lane, h].double(), M, rtol=1e-4, atol=1e-5)
        expected = z.flatten(1) @ layer.out.weight.double().t()
        torch.testing.assert_close(update[:, lane].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_memory_changes_nothing():
    """Both start at zero: a model with one is the model without."""
    for section, kind, heads in (
        (AssociativeConfig(), Associative, 2),
        (ContinuationConfig(), Continuation, 4),
    ):
        model = config(section, L, kv_heads=heads)
        layer = kind(model, 0, "memory")
        assert not layer(inputs(model), fresh(layer.fields(torch.float32), LANES)).update.any()


def test_what_followed_is_predicted():
    """A text that repeats itself: after a context, the memory answers with the embedding of what came next then."""
    model = config(ContinuationConfig(key_size=32), 0, kv_heads=4)
    layer = Continuation(model, 0, "memory")
    g = torch.Generator().manual_seed(3)
    embeddings = torch.randn(12, 16, generator=g)
    segments = 20
    text = torch.randperm(12, generator=g).repeat(10)
    with torch.no_grad():
        layer.gate.fill_(1 / GATE_SCALE)
        x = embeddings[text][:, None]
        seen = torch.arange(segments)[None]
        q = torch.zeros(1, 4, 1, len(text), 4)
        given = Inputs(q, q[:, :, 0], q[:, :, 0], x, x, x, seen, None, Region(), True, False)
        update = layer(given, fresh(layer.fields(torch.float32), 1)).update[:, 0]
    guesses = (update @ embeddings.t()).argmax(-1)
    known = range(len(text) // 2, len(text) - 1)  # every context has come several times
    assert math.fsum(guesses[t] == text[t + 1] for t in known) / len(known) > 0.7


@pytest.mark.parametrize("tied", [True, False])
def test_what_followed_is_stored_as_it_is_predicted(single_process, tied):
    """Every memory is given the tokens' rows of the output matrix, and pulls no gradient at them."""
    model = InftyLM(
        replace(config(ContinuationConfig(key_size=8), L), vocab_size=11, tie_embeddings=tied)
    )
    given = []
    model.blocks[0].memories["memory"].register_forward_pre_hook(
        lambda _, arguments: given.append(arguments[0].output_rows)
    )
    tokens = torch.randint(0, 11, (LANES, S, L))
    reset = SEEN == 0
    model(tokens, reset, model.initial_state(LANES))
    output = model.embedding if tied else model.head
    assert not given[0].requires_grad
    torch.testing.assert_close(given[0], output.weight[tokens.flatten(1).t()], rtol=0, atol=0)
