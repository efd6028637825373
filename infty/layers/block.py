"""One pre-norm block: attention and the memories beside it, then the feed-forward branch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infty.config import ModelConfig
from infty.layers.attention import LocalAttention
from infty.layers.memories.base import Inputs, Memory, Reading
from infty.layers.mlp import MLP
from infty.memory_kinds import memory_of
from infty.parallel import collectives, groups
from infty.parallel.region import Region, mark_stream
from infty.parts import ATTENTION, FEED_FORWARD, READ, part
from infty.tree import Tree


@dataclass(frozen=True)
class Pass:
    """How a forward pass is to go: the same for every layer."""

    seen: Tensor
    """int64 [b, S]: segments of its document before each segment."""
    output_rows: Tensor | None
    """[T, b, e]: the tokens' rows of the output matrix, all tokens; see `Inputs.output_rows`."""
    memory_enabled: bool = True
    statistics: bool = False
    losses: Tensor | None = None
    """float32 [b, S, L - 1]: see `Inputs.losses`. Of one layer, where it is `surprised`."""
    pictures: bool = False


def make_norm(config: ModelConfig) -> nn.Module:
    """LayerNorm or RMSNorm; its parameters act on the residual stream."""
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    norm = kind(config.hidden_size, eps=config.norm_eps)
    mark_stream(norm.parameters())
    return norm


class Block(nn.Module):
    """Residual stream in, residual stream out; state in, state out."""

    def __init__(self, config: ModelConfig, layer: int, region: Region) -> None:
        super().__init__()
        self.region = region
        self.dropout = config.dropout
        self.attention_norm = make_norm(config)
        self.attention = LocalAttention(config, layer)
        self.memories = nn.ModuleDict(
            {
                name: memory_of(section)(config, layer, name)
                for name, section in config.memories_of(layer).items()
            }
        )
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config, layer)

    @property
    def predicts(self) -> bool:
        """Whether one of the memories wants the tokens' rows of the output matrix."""
        return any(cast(Memory, memory).predicts for memory in self.memories.values())

    @property
    def surprised(self) -> bool:
        """Whether one of the memories wants the tokens' losses."""
        return any(cast(Memory, memory).surprised for memory in self.memories.values())

    def fields(self, dtype: torch.dtype) -> Tree:
        """What is declared of the layer's state (infty.tree); `dtype` is that of the run."""
        return Tree(
            {
                "attention": self.attention.fields(dtype),
                "memories": {
                    name: cast(Memory, memory).fields(dtype)
                    for name, memory in self.memories.items()
                },
            }
        )

    def forward(self, x: Tensor, state: Tree, how: Pass) -> tuple[Tensor, Tensor | None, tuple]:
        """x [T, b, e] (this rank's tokens under sequence parallelism) -> (x, penalty, (state, figures, pictures)).

        The penalty, float32 [b, T] or None, is what the memories add to every token's loss; figures are scalars, and
        pictures `Picture`s, by the memories' names and their own. The state's gradient ends where the model's window
        does.
        """
        with part(ATTENTION):
            h = self.region.enter(self.attention_norm(x))
            q, keys, values = self.attention.project(h)
            keys, values, sinks, short_term = self.attention.remember(
                keys, values, state["attention"], how.seen
            )
        inputs = Inputs(
            q,
            keys,
            values,
            h,
            x,
            how.output_rows,
            how.seen,
            self.attention,
            self.region,
            how.memory_enabled,
            how.statistics,
            how.losses,
            how.pictures,
        )
        readings = self._read(inputs, state["memories"], attends=True)
        attended = [*sinks, *(reading.attended for reading in readings.values())]
        with part(ATTENTION):
            partial = self.attention.out(self.attention(q, keys, values, how.seen, attended))
        readings |= self._read(inputs, state["memories"], attends=False)
        shares = self._shares(x, partial, readings) if how.pictures else {}
        for reading in readings.values():
            if reading.update is not None:
                partial = partial + reading.update
        x = self._add(x, partial, self.attention.out.bias)
        with part(FEED_FORWARD):
            h = self.region.enter(self.mlp_norm(x))
            x = self._add(x, self.mlp(h), self.mlp.out.bias)
        penalties = [
            reading.penalty for reading in readings.values() if reading.penalty is not None
        ]
        figures = {
            f"{name}.{key}": value
            for name, reading in readings.items()
            for key, value in (reading.figures or {}).items()
        }
        pictures = {
            f"{name}.{key}": picture
            for name, reading in readings.items()
            for key, picture in (reading.pictures or {}).items()
        }
        new = Tree(
            {"attention": short_term, "memories": {name: r.state for name, r in readings.items()}}
        )
        penalty = reduce(torch.add, penalties) if penalties else None
        return x, penalty, (new, figures | shares, pictures)

    def _read(self, inputs: Inputs, states: Tree, attends: bool) -> dict[str, Reading]:
        """What the memories say that local attention sees, or those that it does not see."""
        with part(READ):
            return {
                name: memory(inputs, states[name])
                for name, memory in self.memories.items()
                if memory.attends == attends
            }

    @torch.no_grad()
    def _shares(
        self, x: Tensor, attended: Tensor, readings: dict[str, Reading]
    ) -> dict[str, Tensor]:
        """What attention and each memory add to the residual stream: its size ÷ the stream's (root mean squares)."""
        stream = collectives.sum_(x.float().square().mean()) / groups.tensor_size()
        added = {"attention": attended}
        added |= {name: r.update for name, r in readings.items() if r.update is not None}
        found = {}
        for name, partial in added.items():
            whole = collectives.sum_(partial.float().clone())
            found[f"{name}.share_of_stream"] = (whole.square().mean() / stream).sqrt()
        return found

    def _add(self, x: Tensor, partial: Tensor, bias: Tensor | None) -> Tensor:
        y = self.region.leave(partial)
        if bias is not None:
            y = y + bias
        return x + F.dropout(y, self.dropout, self.training)
