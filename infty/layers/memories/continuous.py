"""The continuous memory of a layer (the ∞-former's): what it writes, how its heads read, and the loop over the
segments of a window."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor, nn

from infty import parts
from infty.config import ModelConfig
from infty.layers.linear import ColumnParallelLinear, RowParallelLinear, normal, sharded_parameter
from infty.layers.memories import continuous_costs, continuous_pictures, continuous_room
from infty.layers.memories.base import Costs, Inputs, Layout, Memory, Picture, Reading
from infty.layers.memories.continuous_joint import JointContinuous
from infty.memory import reading, room, signals
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.reading import Density
from infty.memory.state import MemoryState
from infty.parallel import collectives, groups
from infty.parallel.zero3 import touch
from infty.tree import Tree


class DensityMaps(nn.Module):
    """What a layer learns to read with: the parameters that its family of densities declares."""

    def __init__(self, memory: MemoryConfig, heads: int, name: str) -> None:
        """`heads` of the whole layer; weights are drawn from streams that begin with `name`."""
        super().__init__()
        self.shared = memory.maps == "shared"
        for key, p in reading.parameters(memory, heads).items():
            full = p.value
            if full is None:
                full = normal(f"{name}.{p.stream}", p.std)(torch.empty(p.shape))
            self.register_parameter(
                key, nn.Parameter(full) if self.shared else sharded_parameter(full)
            )

    def forward(self, heads: int) -> dict[str, Tensor]:
        """The parameters, float32, with a row for each of this rank's `heads`."""
        parameters = {name: p.float() for name, p in self.named_parameters()}
        if not self.shared:
            return parameters
        return {
            name: collectives.copy(p).expand(heads, *p.shape[1:]) for name, p in parameters.items()
        }


class WindowProjections(signals.Projections):
    """A hidden signal's way to keys and values during one window, its slices split over ranks."""

    def whole(self, slices: Tensor) -> Tensor:
        return collectives.gather(slices, -1)

    def project_pooled(self, pooled: Tensor) -> Tensor:
        return torch.einsum("pbkge,kde->pbkgd", pooled, self._of_heads)

    @cached_property
    def _of_heads(self) -> Tensor:
        """float32 [K, d, e], made once for all segments."""
        heads = self.layer.kv_heads, self.layer.head_size
        return self.layer.key.weight.float().unflatten(0, heads)


class Continuous(Memory):
    """The continuous memory of one layer, its heads split over tensor-parallel ranks.

    What its signal stores is `memory.signal_kind` (`infty.memory.signals`), how queries read it `memory.family`
    (`infty.memory.reading`).
    """

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.config = config
        self.memory: MemoryConfig = config.memories_of(layer)[name]
        self.family, self.kind = self.memory.family, self.memory.signal_kind
        self.stm = config.stm_of(layer)
        self.delay = self.stm // config.segment_length
        self.head_size = config.head_size
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.group = config.heads // config.kv_heads
        heads, channels = self.kind.shape(config.heads, config.kv_heads, config.head_size)
        self.shape = heads // groups.tensor_size(), channels
        self.layer = layer
        self.core = ContinuousMemory(self.memory, config.segment_length)
        stream = f"{layer}.{name}"
        self.maps = DensityMaps(self.memory, config.heads, stream)
        self.room = continuous_room.Room(self.memory, config.hidden_size)
        self.surprised = self.memory.room == "surprise"
        e, d, init = config.hidden_size, config.head_size, config.init_std
        for part in self.kind.projections:
            draw = normal(f"{stream}.{part}", init)
            self.add_module(part, ColumnParallelLinear(e, config.kv_heads * d, draw))
        if self.memory.gate:
            self.gate = ColumnParallelLinear(3 * e, e, normal(f"{stream}.gate", init), bias=True)
        if self.memory.output_gate:
            self.output_gate = sharded_parameter(torch.zeros(config.heads))
        self.log_rate = nn.Parameter(torch.zeros(1)) if self.memory.policy.learned else None
        self.out = RowParallelLinear(
            config.heads * d, e, normal(f"{stream}.out", init / math.sqrt(2 * config.layers))
        )

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal, in float32; of hidden states also those of the tokens in the STM, which are not written yet."""
        fields = self.kind.fields(self.core.fields(*self.shape), self.shape, self.stm, dtype)
        return fields.replace(**room.pending(self.memory, self.stm))

    @classmethod
    def variant(cls, memory: MemoryConfig) -> type[Memory]:
        return JointContinuous if memory.family.attends else cls

    @classmethod
    def costs(cls, config: ModelConfig, layer: int, memory: MemoryConfig, layout: Layout) -> Costs:
        return continuous_costs.costs(config, layer, memory, layout)

    def content(self, h: Tensor) -> Tensor:
        """`signal: hidden`: this rank's slices of the hidden state h [T, b, e] (whole), gated: [b, h, T, c].

        Without `backprop` no gradient reaches h. The gate is trained all the same, as in the paper, by the reads of the
        segment that follows a write.
        """
        if not self.memory.backprop:
            h = h.detach()
        x = collectives.split(h, -1)
        if self.memory.gate:
            segments = h.unflatten(0, (-1, self.config.segment_length))
            x = x * torch.sigmoid(self.gate(signals.neighbours(segments).flatten(0, 1)))
        return x.unflatten(-1, self.shape).permute(1, 2, 0, 3)

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`.

        The penalty is the weighted divergence of the read densities from their prior, mean over all heads.
        """
        q = inputs.q.unflatten(3, (inputs.seen.shape[1], -1))  # [b, K, G, S, L, d]
        stream = self._stream(inputs, state)
        weights = self.room(inputs, state)
        signal = MemoryState(**state["signal"])
        place, values, signal = self._segments(
            q, stream, weights, signal, inputs.seen, inputs.enabled
        )
        context = self._read(place, values) + touch(*self._of_writing())
        new: dict[str, Tree | Tensor] = {"signal": signal.tree()}
        new |= continuous_room.kept(weights, state)
        if "pending" in state:
            new["pending"] = stream[:, :, stream.shape[2] - self.stm :].clone()
        return Reading(
            Tree(new),
            update=self.out(context.to(inputs.q.dtype)),
            penalty=self._divergence(place),
            figures=self._statistics(place, signal) | continuous_room.figures(weights)
            if inputs.statistics
            else None,
            pictures=self._pictures(place, stream, signal, inputs) if inputs.pictures else None,
        )

    def _stream(self, inputs: Inputs, state: Tree) -> Tensor:
        """What the window will write, in order: [b, h, stm + T, c]; it begins with the tokens in the STM, which are not
        written yet."""
        if self.kind.of_attention:
            stream = torch.cat([inputs.keys, inputs.values], -1)
            return stream if self.memory.backprop else stream.detach()
        normed = self.memory.content == "normed"
        new = self.content(inputs.normed if normed else inputs.region.enter(inputs.residual))
        return torch.cat([state["pending"].to(new.dtype), new], 2) if "pending" in state else new

    def _segments(
        self,
        q: Tensor,
        stream: Tensor,
        weights: Tensor | None,
        signal: MemoryState,
        seen: Tensor,
        enabled: bool,
    ) -> tuple[Density, Tensor, MemoryState]:
        """The recurrence: before each segment, write what has left the short-term memory.

        Reads are only planned here and made for all segments at once afterwards. Returns their densities [b, S, ...],
        the values [b, S, K, N, d] that each segment finds, and the new signal.
        """
        L = self.config.segment_length
        maps = self.maps(self.kv_heads * self.group)
        pool = self.family.pool(self.memory, maps)
        through = WindowProjections(self, q.dtype)
        rate = None if self.log_rate is None else collectives.copy(self.log_rate.float()).exp()
        places = []
        values = []
        for s in range(seen.shape[1]):
            signal = self.core.reset(signal, (seen[:, s] == 0) | (not enabled))
            keys, value = self.kind.read(signal.coefficients, pool, through, q.dtype)
            made = self.family.place(self.memory, q[:, :, :, s], keys, maps)
            place = self.family.of(self.memory, self.core.basis, keys, **made)
            places.append(place)
            values.append(value)
            if self.memory.sticky != "off":
                with parts.part(parts.HISTOGRAM):
                    fell = reading.histogram(
                        self.memory, place, self.config.kv_heads, collectives.sum_
                    )
                    signal = self.core.with_histogram(signal, fell, signal.written > 0)
            ready = (seen[:, s] >= self.delay) & enabled
            seeds = self.core.seeds(signal, self.layer)
            tokens = slice(s * L, (s + 1) * L)
            share = None if weights is None else weights[:, tokens]
            with parts.part(parts.WRITE):
                signal = self.core.write(signal, stream[:, :, tokens], ready, seeds, rate, share)
        return reading.joined(places, lambda x: torch.stack(x, 1)), torch.stack(values, 1), signal

    def _of_writing(self) -> list[Tensor]:
        """Parameters that only a later read can train."""
        late = [self.gate.weight, self.gate.bias] if self.memory.gate else []
        return [*late, *(p for p in (self.log_rate, self.room.weight) if p is not None)]

    def _read(self, place: Density, values: Tensor) -> Tensor:
        """One read for all segments: values [b, S, K, N, d] -> [T, b, H/tp * d]."""
        z = place.read(values, self.core.basis)  # [b, S, K, G*L, d]
        z = z.unflatten(3, (self.group, -1)).flatten(2, 3)
        if self.memory.output_gate:
            z = z * self.output_gate.float()[:, None, None]
        b, S, H, L, d = z.shape
        return z.permute(1, 3, 0, 2, 4).reshape(S * L, b, H * d)

    def _divergence(self, place: Density) -> Tensor | None:
        if self.memory.kl_weight == 0:
            return None
        of_heads = place.divergence(self.memory.kl_sigma).unflatten(-1, (self.group, -1))
        total = of_heads.sum((2, 3)).flatten(1)  # [b, S, K, G, L] -> [b, T]
        return self.memory.kl_weight * collectives.reduce(total) / self.config.heads

    def _pictures(
        self, place: Density, stream: Tensor, signal: MemoryState, inputs: Inputs
    ) -> dict[str, Picture]:
        rate = None if self.log_rate is None else self.log_rate.detach().float().exp()
        read = continuous_pictures.of_reads(self.core, place, signal, inputs.seen, self.delay)
        return read | continuous_pictures.of_signal(
            self.core, stream, signal, inputs.seen, self.delay, rate
        )

    @torch.no_grad()
    def _statistics(self, place: Density, state: MemoryState) -> dict[str, Tensor]:
        """Means over all heads of the layer, and the mean norm of a lane's coefficients."""
        norms = collectives.sum_(state.coefficients.square().sum((1, 2, 3))).sqrt().mean()
        together = reading.joined([place], lambda x: x[0].flatten(0, 1))
        figures = reading.statistics(together, self.memory.bins)
        if self.memory.output_gate:
            figures["gate"] = self.output_gate.detach().abs().mean()
        return {"coefficient_norm": norms} | {
            k: collectives.sum_(v.detach().float().clone()) / groups.tensor_size()
            for k, v in figures.items()
        }
