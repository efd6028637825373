"""The feed-forward branch: GELU (GPT-2) or SwiGLU (Llama), its width split over tensor-parallel ranks."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.linear import ColumnParallelLinear, RowParallelLinear, lora_of, normal


class MLP(nn.Module):
    """[T, b, e] (whole) -> [T, b, e] (a partial sum; `out.bias` is added after leaving the shards)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        e, ffn = config.hidden_size, config.ffn_size
        # Gated: gate and value of a channel lie side by side, so that any slice by channels is whole.
        self.up = ColumnParallelLinear(
            e,
            ffn * (2 if self.gated else 1),
            normal(f"{layer}.mlp.up", config.init_std),
            bias=config.mlp_bias,
            lora=lora_of(config, layer, "mlp_up", e),
        )
        self.out = RowParallelLinear(
            ffn,
            e,
            normal(f"{layer}.mlp.out", config.init_std / math.sqrt(2 * config.layers)),
            bias=config.mlp_bias,
            lora=lora_of(config, layer, "mlp_out", ffn),
        )

    def forward(self, h: Tensor) -> Tensor:
        h = self.up(h)
        if not self.gated:
            return self.out(F.gelu(h, approximate="tanh"))
        gate, value = h.unflatten(-1, (-1, 2)).unbind(-1)
        return self.out(F.silu(gate) * value)
