"""Transformer-XL's positions and the compressed memory against float64 references written from the papers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.errors import UserError
from infty.layers.memories.base import Inputs
from infty.memory.sections import CompressiveConfig
from infty.tree import Tree
from infty_tools.bench.layout_training import window
from support.small import VARIANTS, build, logits

pytestmark = pytest.mark.usefixtures("single_process")


def sinusoid(distance: int, size: int) -> Tensor:
    angles = [distance / 10_000 ** (2 * i / size) for i in range(size // 2)]
    return torch.tensor(
        [math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64
    )


def attend(
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    distances: list[int],
    W_R: Tensor,
    u: Tensor,
    v: Tensor,
) -> Tensor:
    """One query of one head: softmax over terms a to d of Transformer-XL, section 3.3."""
    scores = []
    for k, distance in zip(keys, distances):
        r = W_R @ sinusoid(distance, W_R.shape[1])
        scores.append((q @ k + q @ r + u @ k + v @ r) / math.sqrt(len(q)))
    share = torch.stack(scores).softmax(0)
    return sum(p * value for p, value in zip(share, values))


def random_inputs(config: ModelConfig, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    T, K, d = segments * config.segment_length, config.kv_heads, config.head_size
    q = torch.randn(1, K, config.heads // K, T, d, generator=g)
    keys, values = (torch.randn(1, K, config.stm_length + T, d, generator=g) for _ in "kv")
    return q, keys, values


@pytest.mark.parametrize(
    "name, read_before", [("transformer-xl", 0), ("transformer-xl", 1), ("relative", 5)]
)
def test_relative_attention_is_that_of_transformer_xl(name, read_before):
    config = VARIANTS[name]
    attention = build(config).blocks[1].attention
    q, keys, values = random_inputs(config, segments=3)
    seen = torch.arange(read_before, read_before + 3)[None]
    got = attention(q, keys, values, seen).double().view(-1, config.heads, config.head_size)
    relative, L, stm = attention.relative, config.segment_length, config.stm_length
    W_R = relative.project.weight.double().view(config.heads, config.head_size, -1)
    u, v = relative.bias_content.double(), relative.bias_position.double()
    group = config.heads // config.kv_heads
    for t in (0, 5, L, 2 * L - 1, 3 * L - 1):
        segment = t // L
        first = max(stm + segment * L - min(stm, (read_before + segment) * L), 0)
        sees = range(first, stm + t + 1)
        for h in (0, config.heads - 1):
            k, x = (y[0, h // group].double() for y in (keys, values))
            expected = attend(
                q[0, h // group, h % group, t].double(),
                [k[j] for j in sees],
                [x[j] for j in sees],
                [stm + t - j for j in sees],
                W_R[h],
                u[h],
                v[h],
            )
            torch.testing.assert_close(got[t, h], expected, rtol=1e-5, atol=1e-6)


class Compressed:
    """A window of three segments that a compressive memory has read, and the same in float64."""

    SEGMENTS = 3

    def __init__(self, name: str, read_before: int) -> None:
        self.config = config = VARIANTS[name]
        self.read_before = read_before
        self.block = block = build(config).blocks[1]
        self.L = config.segment_length
        self.stm = config.stm_length
        self.n = config.memory.length
        self.c = config.memory.ratio
        e, H = config.hidden_size, config.heads
        g = torch.Generator().manual_seed(4)
        hidden = torch.randn(self.stm + self.SEGMENTS * self.L, 1, e, generator=g)
        old = torch.randn(1, H, self.n, e // H, generator=g)
        seen = torch.arange(read_before, read_before + self.SEGMENTS)[None]
        q, keys, values = block.attention.project(hidden)
        q = q[:, :, :, self.stm :]
        memory = block.memories["memory"]
        x = hidden[self.stm :]
        inputs = Inputs(q, keys, values, x, x, x, seen, block.attention, block.region, True, False)
        state = Tree({"compressed": old, "pending": memory.content(hidden[: self.stm])})
        self.reading = memory(inputs, state)
        context = block.attention(q, keys, values, seen, [self.reading.attended])
        self.context = context.double().view(-1, H, config.head_size)

        # The memories: a 1-d convolution over tokens with kernel and stride c, as torch's own.
        self.hidden = hidden[:, 0].double()
        weight = memory.convolution.weight.double().view(e, self.c, e).permute(0, 2, 1)
        bias = memory.convolution.bias.double()
        leaving = self.hidden[: self.SEGMENTS * self.L].t()[None]
        self.new = torch.nn.functional.conv1d(leaving, weight, bias, stride=self.c)[0].t()
        self.memories = torch.cat([rows(old), self.new])  # [n + S*L/c, e]

    def valid(self, segment: int) -> int:
        """Memories that are there before this segment of the window."""
        written = max(self.read_before + segment - self.stm // self.L, 0)
        return min(written * self.L // self.c, self.n)

    def head(self, x: Tensor, h: int, what: str) -> Tensor:
        """The query, key or value of head h of these hidden states."""
        config = self.config
        group = config.heads // config.kv_heads
        kv = h // group
        which = {"query": h % group, "key": group, "value": group + 1}[what]
        shape = config.kv_heads, group + 2, config.head_size
        y = x @ self.block.attention.qkv.weight.double().view(*shape, -1)[kv, which].t()
        if config.bias:
            y = y + self.block.attention.qkv.bias.double().view(shape)[kv, which]
        return y


def rows(memories: Tensor) -> Tensor:
    """[1, H, n, e/H] -> float64 [n, e]"""
    return memories[0].double().transpose(0, 1).flatten(1)


COMPRESSED = pytest.mark.parametrize(
    "name, read_before", [("compressive", 0), ("compressive", 7), ("compressive as published", 1)]
)


@torch.no_grad()
@COMPRESSED
def test_compressed_memories_are_a_convolution_of_what_leaves(name, read_before):
    case = Compressed(name, read_before)
    expected = case.memories[-case.n :].clone()
    expected[: case.n - case.valid(case.SEGMENTS)] = 0
    kept = rows(case.reading.state["compressed"])
    torch.testing.assert_close(kept, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@COMPRESSED
def test_what_is_read_of_compressed_memories_is_what_the_compressive_transformer_reads(
    name, read_before
):
    """[compressed memories | short-term memory | segment], with Transformer-XL's positions."""
    case = Compressed(name, read_before)
    L, stm, n, H = case.L, case.stm, case.n, case.config.heads
    relative = case.block.attention.relative
    W_R = relative.project.weight.double().view(H, case.config.head_size, -1)
    u, v = relative.bias_content.double(), relative.bias_position.double()
    for segment in range(case.SEGMENTS):
        first = segment * L // case.c
        mine = case.memories[first : first + n][n - case.valid(segment) :]
        begin = max(segment * L, segment * L + stm - (read_before + segment) * L)
        local = case.hidden[begin : segment * L + stm + L]
        for i, h in ((0, 0), (L - 1, H - 1)):
            tokens = torch.cat([mine, local])[: len(mine) + len(local) - L + i + 1]
            expected = attend(
                case.head(case.hidden[stm + segment * L + i], h, "query"),
                list(case.head(tokens, h, "key")),
                list(case.head(tokens, h, "value")),
                [len(tokens) - 1 - j for j in range(len(tokens))],
                W_R[h],
                u[h],
                v[h],
            )
            got = case.context[segment * L + i, h]
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@COMPRESSED
def test_the_reconstruction_loss_compares_plain_attention(name, read_before):
    """Of segment 1's last token: to what leaves and to its compression, without positions or biases."""
    case = Compressed(name, read_before)
    L, c = case.L, case.c
    errors = []
    for h in range(case.config.heads):
        query = case.head(case.hidden[case.stm + 2 * L - 1], h, "query")
        reads = []
        for x in (case.hidden[L : 2 * L], case.new[L // c : 2 * L // c]):
            share = (case.head(x, h, "key") @ query / math.sqrt(case.config.head_size)).softmax(0)
            reads.append(share @ case.head(x, h, "value"))
        errors.append((reads[0] - reads[1]).square().mean())
    leaves = read_before + 1 >= case.stm // L
    weight = case.config.memory.reconstruction_weight if leaves else 0.0
    expected = float(weight * torch.stack(errors).mean())
    got = case.reading.penalty[0, 2 * L - 1].item()
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_reconstruction_loss_trains_the_compression_alone():
    """Section 3.2: its gradient stops before everything that the compression is made from or compared with."""
    model, batch = (
        build(VARIANTS["compressive"]),
        window(VARIANTS["compressive"], lanes=2, segments=4, resets=0.0),
    )
    weighted = build(
        replace(
            VARIANTS["compressive"],
            memory=replace(VARIANTS["compressive"].memory, reconstruction_weight=50.0),
        )
    )
    gradients = []
    for m in (model, weighted):
        logits(m, batch, labels=batch["labels"])[0].backward()
        gradients.append({n: p.grad for n, p in m.named_parameters()})
    for name, gradient in gradients[0].items():
        same = torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
        assert same != (".convolution." in name), name


@pytest.mark.parametrize("backprop", [True, False])
def test_the_main_loss_reaches_the_compression_only_with_backprop(backprop):
    config = replace(
        VARIANTS["compressive"],
        memory=CompressiveConfig(length=6, ratio=4, backprop=backprop, reconstruction_weight=1e-12),
    )
    model, batch = build(config), window(config, lanes=2, segments=4, resets=0.0)
    logits(model, batch, labels=batch["labels"])[0].backward()
    size = max(
        p.grad.abs().max().item() for n, p in model.named_parameters() if ".convolution." in n
    )
    assert (size > 1e-3) == backprop


def test_compressed_memories_reach_beyond_the_local_attention():
    config = replace(VARIANTS["compressive"], layers=1)
    model, batch = build(config), window(config, lanes=1, segments=5, resets=0.0)
    changed = dict(batch, tokens=batch["tokens"].clone())
    changed["tokens"][0, 1, 0] = (changed["tokens"][0, 1, 0] + 1) % config.vocab_size
    with torch.no_grad():
        read = [logits(model, x)[0][0] for x in (batch, changed)]
        without = [logits(model, x, memory_enabled=False)[0][0] for x in (batch, changed)]
    assert not torch.equal(
        read[0][4], read[1][4]
    )  # segment 1 leaves the STM after 2; of 6 memories it has 2
    assert torch.equal(without[0][3:], without[1][3:])


@pytest.mark.parametrize(
    "change, key",
    [
        ({"positions": "rotary"}, "compressive needs positions"),
        ({"stm_length": 0}, "stm_length > 0"),
        ({"memory": CompressiveConfig(length=6, ratio=3)}, "model.memory.ratio: 3 does not divide"),
        (
            {"memory": CompressiveConfig(length=7, ratio=4)},
            "model.memory.length: 7 is not a multiple of 2",
        ),
    ],
)
def test_a_compressed_memory_that_cannot_work_names_the_key(change, key):
    with pytest.raises(UserError, match=key):
        replace(VARIANTS["compressive"], **change)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"ratio": 0}, "ratio"),
        ({"reconstruction_weight": -1.0}, "reconstruction_weight"),
        ({"reconstruction_weight": 0.0, "backprop": False}, "nothing trains the compression"),
    ],
)
def test_compression_values_that_cannot_work_name_the_key(values, key):
    with pytest.raises(UserError, match=key):
        CompressiveConfig(**values)
