"""The parameters of a model, by name and shape, without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from infty.config import ModelConfig
from infty.memory.config import MemoryConfig


@dataclass(frozen=True)
class Parameter:
    """One weight of the model, whole."""

    name: str
    shape: tuple[int, ...]
    split: bool
    """Whether tensor-parallel ranks share it out; otherwise each keeps all of it."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def local(self, tensor: int) -> int:
        """Numbers that one of `tensor` ranks holds."""
        return self.size // tensor if self.split else self.size


def parameters(config: ModelConfig) -> list[Parameter]:
    """Every parameter of `InftyLM(config)`, named as `named_parameters` does."""
    return list(_model(config))


def total(config: ModelConfig) -> int:
    return sum(p.size for p in parameters(config))


def _model(config: ModelConfig) -> Iterator[Parameter]:
    e = config.hidden_size
    yield Parameter("embedding.weight", (config.padded_vocab, e), True)
    if config.positions == "learned":
        yield Parameter("position.weight", (config.stm_length + config.segment_length, e), False)
    for i in range(config.layers):
        for p in _block(config, i):
            yield Parameter(f"blocks.{i}.{p.name}", p.shape, p.split)
    yield from _norm("norm", config)
    if not config.tie_embeddings:
        yield Parameter("head.weight", (config.padded_vocab, e), True)


def _block(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    e, ffn, d = config.hidden_size, config.ffn_size, config.head_size
    wide = 2 * ffn if config.activation == "swiglu" else ffn
    yield from _norm("attention_norm", config)
    yield from _column("attention.qkv", (config.heads + 2 * config.kv_heads) * d, e, config.bias)
    yield from _row("attention.out", e, config.heads * d, config.bias)
    if config.positions == "relative":
        yield from _column("attention.relative.project", config.heads * d, e, False)
        for name in ("content", "position"):
            yield Parameter(f"attention.relative.bias_{name}", (config.heads, d), True)
    if config.compressed_of(layer):
        yield from _column("compressed.convolution", e, config.compressed.ratio * e, True)
    if config.has_memory(layer):
        yield from _memory(config, layer)
    yield from _norm("mlp_norm", config)
    yield from _column("mlp.up", wide, e, config.bias)
    yield from _row("mlp.out", e, ffn, config.bias)


def _memory(config: ModelConfig, layer: int) -> Iterator[Parameter]:
    memory, e, d = config.memory_of(layer), config.hidden_size, config.head_size
    if memory.density != "gibbs":  # whose densities are the keys themselves
        yield from _maps(config, memory)
    if memory.signal == "hidden":
        for name in ("key", "value"):
            yield from _column(f"memory.{name}", config.kv_heads * d, e, False)
    if memory.gate:
        yield from _column("memory.gate", e, 3 * e, True)
    if memory.output_gate:
        yield Parameter("memory.output_gate", (config.heads,), True)
    if memory.contraction == "learned":
        yield Parameter("memory.log_rate", (1,), False)
    yield from _row("memory.out", e, config.heads * d, False)


def _maps(config: ModelConfig, memory: MemoryConfig) -> Iterator[Parameter]:
    shared = memory.maps == "shared"
    rows = 1 if shared else config.heads
    for name in ("mu", "sigma"):
        yield Parameter(f"memory.maps.weight_{name}", (rows, memory.basis), not shared)
    if memory.map_bias:
        for name in ("mu", "sigma"):
            yield Parameter(f"memory.maps.bias_{name}", (rows,), not shared)


def _norm(name: str, config: ModelConfig) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (config.hidden_size,), False)
    if config.norm == "layernorm":
        yield Parameter(f"{name}.bias", (config.hidden_size,), False)


def _column(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (outputs, inputs), True)
    if bias:
        yield Parameter(f"{name}.bias", (outputs,), True)


def _row(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[Parameter]:
    yield Parameter(f"{name}.weight", (outputs, inputs), True)
    if bias:  # added after the partial sums have met: whole on every rank
        yield Parameter(f"{name}.bias", (outputs,), False)
