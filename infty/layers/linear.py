"""megatron-core's parallel layers, dressed for this project.

All communication of a block happens where it enters and leaves its shards (`infty.parallel.region`), so the linear
layers here are local: a column-parallel layer maps whole activations to this rank's outputs, a row-parallel layer
maps this rank's inputs to a partial sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.megatron import ModelParallelConfig, layers, tensor_parallel
from infty.parallel import collectives, groups, region

Initializer = Callable[[Tensor], Tensor]


def normal(name: str, std: float, rows: int | None = None) -> Initializer:
    """Fill the whole, unsplit weight from a stream of its own, derived from torch's seed and its name.

    So the same seed gives the same weights in every layout and however much the vocabulary is padded (`rows`: only
    these first rows are drawn, the others are zero).
    """

    def fill(weight: Tensor) -> Tensor:
        if weight.is_meta:  # a model that is only counted
            return weight
        generator = torch.Generator().manual_seed(
            (torch.initial_seed() + zlib.crc32(name.encode())) % 2**63
        )
        drawn = torch.zeros(weight.shape, device="cpu", dtype=torch.float32)
        drawn[:rows].normal_(0.0, std, generator=generator)
        with torch.no_grad():
            weight.copy_(drawn)
        return weight

    return fill


def zeros(weight: Tensor) -> Tensor:
    """Fill with zeros: the output of what a fresh model does without."""
    return nn.init.zeros_(weight)


def eye(weight: Tensor) -> Tensor:
    """Fill with the identity: an output that begins as what it is given."""
    return weight if weight.is_meta else nn.init.eye_(weight)


def _settings() -> ModelParallelConfig:
    return ModelParallelConfig(
        tensor_model_parallel_size=groups.tensor_size(),
        use_cpu_initialization=True,  # draws the whole weight on every rank and keeps a slice
        perform_initialization=True,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float32,  # the engine casts for bf16 and keeps fp32 masters
    )


class Lora(NamedTuple):
    """The low-rank update of one projection: x -> scale * B A x.

    A [rank, in] is random at first, B [out, rank] zero: a fresh update changes nothing.
    """

    rank: int
    scale: float
    initial: Initializer
    """Of A."""


def lora_of(config: ModelConfig, layer: int, projection: str, inputs: int) -> Lora | None:
    """That of a projection with so many inputs; None where the config gives it none."""
    lora = config.lora_of(layer, projection)
    if lora is None:
        return None
    initial = normal(f"{layer}.{projection}.lora", inputs**-0.5)
    return Lora(lora.rank, lora.alpha / lora.rank, initial)


class ColumnParallelLinear(tensor_parallel.ColumnParallelLinear):
    """[..., in] (whole) -> [..., out / tp]. Enter the shards first: this layer does not reduce gradients."""

    # Without this, state_dict carries a None entry for each layer that DeepSpeed's tools choke on.
    get_extra_state = nn.Module.get_extra_state

    def __init__(
        self,
        inputs: int,
        outputs: int,
        init: Initializer,
        bias: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            config=_settings(),
            init_method=init,
            bias=bias,
            gather_output=False,
            disable_grad_reduce=True,
        )
        self.lora = lora
        if lora is not None:
            self.lora_a = nn.Parameter(lora.initial(torch.empty(lora.rank, inputs)))
            self.lora_b = sharded_parameter(torch.zeros(outputs, lora.rank))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """`frozen`: without gradients for the weights."""
        y = self._plain(x, frozen)
        if self.lora is None:
            return y
        # A is whole on every rank and feeds this rank's rows of B: its gradients are summed.
        a = self.lora_a.detach() if frozen else collectives.copy(self.lora_a)
        b = self.lora_b.detach() if frozen else self.lora_b
        return y + self.lora.scale * F.linear(F.linear(x, a), b)

    def _plain(self, x: Tensor, frozen: bool) -> Tensor:
        if not self.weight.requires_grad:  # megatron's own form for this is another product
            return F.linear(x, self.weight, self.bias)
        if frozen:
            return F.linear(
                x, self.weight.detach(), None if self.bias is None else self.bias.detach()
            )
        return super().forward(x)[0]


class RowParallelLinear(tensor_parallel.RowParallelLinear):
    """[..., in / tp] -> [..., out], a partial sum: leave the shards afterwards, then add `bias`."""

    get_extra_state = nn.Module.get_extra_state

    def __init__(
        self,
        inputs: int,
        outputs: int,
        init: Initializer,
        bias: bool = False,
        lora: Lora | None = None,
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            config=_settings(),
            init_method=init,
            bias=bias,
            input_is_parallel=True,
            skip_bias_add=True,
        )
        region.mark_stream([self.bias])
        self.lora = lora
        if lora is not None:
            self.lora_a = sharded_parameter(lora.initial(torch.empty(lora.rank, inputs)), dim=1)
            self.lora_b = nn.Parameter(torch.zeros(outputs, lora.rank))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        if self.lora is None:
            return y
        # B is whole on every rank and sees this rank's part of A x: its gradients are summed.
        b = collectives.copy(self.lora_b)
        return y + self.lora.scale * F.linear(F.linear(x, self.lora_a), b)


class VocabParallelEmbedding(tensor_parallel.VocabParallelEmbedding):
    """Token ids [...] -> [..., e], the vocabulary split over ranks, the result whole on each.

    Its weight, float [V/tp, e], is an output matrix, too: a row predicts a token."""

    def __init__(self, rows: int, size: int, init: Initializer) -> None:
        super().__init__(rows, size, init_method=init, config=_settings())


class PositionEmbedding(nn.Module):
    """int64 places [...] -> [..., e]. Drawn before it is a parameter: ZeRO-3 may split it as soon as it is made."""

    def __init__(self, rows: int, size: int, init: Initializer) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(init(torch.empty(rows, size)))

    def forward(self, place: Tensor) -> Tensor:
        return F.embedding(place, self.weight)


def sharded_parameter(full: Tensor, dim: int = 0) -> nn.Parameter:
    """This rank's part of a parameter that is split along a dimension, with the marks DeepSpeed's norm reads."""
    part = nn.Parameter(full.chunk(groups.tensor_size(), dim)[groups.tensor_rank()].clone())
    layers.set_tensor_model_parallel_attributes(part, True, dim, 1)
    return part
