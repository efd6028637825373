"""The continuous memory of a layer (the ∞-former's): what it writes, how its heads read, and the loop over the
segments of a window."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infty.config import ModelConfig
from infty.layers.linear import ColumnParallelLinear, RowParallelLinear, normal, sharded_parameter
from infty.layers.memories import continuous_costs
from infty.layers.memories.base import Costs, Inputs, Layout, Memory, Reading
from infty.layers.memories.continuous_joint import JointContinuous
from infty.memory import densities, density, reading, sticky
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty.parallel import collectives, groups
from infty.parallel.zero3 import touch
from infty.tree import Field, Tree


class DensityMaps(nn.Module):
    """From a memory's keys to a head's pooled keys: mu = sigmoid(w_mu . s + b) with s = K q / sqrt(d)."""

    def __init__(self, memory: MemoryConfig, heads: int, name: str) -> None:
        """`heads` of the whole layer; weights are drawn from streams that begin with `name`."""
        super().__init__()
        self.weight_mu: nn.Parameter
        self.weight_sigma: nn.Parameter
        self.shared = memory.maps == "shared"
        self.scale = reading.map_scale(memory)
        rows = reading.map_rows(memory, heads)
        for part in ("mu", "sigma"):
            full = normal(f"{name}.{part}", reading.map_std(memory))(
                torch.empty(rows, memory.basis)
            )
            self.register_parameter(f"weight_{part}", self._parameter(full))
        self.bias_mu: nn.Parameter | None = None
        self.bias_sigma: nn.Parameter | None = None
        if memory.map_bias:
            self.bias_mu, self.bias_sigma = (
                self._parameter(full) for full in reading.map_biases(rows)
            )

    def _parameter(self, full: Tensor) -> nn.Parameter:
        return nn.Parameter(full) if self.shared else sharded_parameter(full)

    def forward(self, heads: int) -> dict[str, Tensor | None]:
        """float32 weights [H/tp, N] and biases [H/tp] (or None) of this rank's `heads`."""
        return {
            name: self._expand(p, heads)
            for name, p in (
                ("mu", self.weight_mu),
                ("sigma", self.weight_sigma),
                ("bias_mu", self.bias_mu),
                ("bias_sigma", self.bias_sigma),
            )
        }

    def _expand(self, p: Tensor | None, heads: int) -> Tensor | None:
        if p is None:
            return None
        p = p.float() * (self.scale if p.dim() == 2 else 1.0)
        return collectives.copy(p).expand(heads, *p.shape[1:]) if self.shared else p


class Continuous(Memory):
    """The continuous memory of one layer, its heads split over tensor-parallel ranks.

    `signal: heads`: a head's signal is its attention keys and values (c = 2d), written as they are; reading and
    writing need no communication. `signal: hidden`: the layer's hidden state (c = d for each head's slice), projected
    to keys and values when read, which gathers the slices first.
    """

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.config = config
        self.memory: MemoryConfig = config.memories_of(layer)[name]
        self.hidden = self.memory.signal == "hidden"
        self.stm = config.stm_of(layer)
        self.delay = self.stm // config.segment_length
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.signal_heads = signal_heads(config, self.memory) // groups.tensor_size()
        self.group = config.heads // config.kv_heads
        self.layer = layer
        self.core = ContinuousMemory(self.memory, config.segment_length)
        stream = f"{layer}.{name}"
        self.maps = (
            None
            if self.memory.density == "gibbs"
            else DensityMaps(self.memory, config.heads, stream)
        )
        e, d, init = config.hidden_size, config.head_size, config.init_std
        if self.hidden:
            self.key = ColumnParallelLinear(e, config.kv_heads * d, normal(f"{stream}.key", init))
            self.value = ColumnParallelLinear(
                e, config.kv_heads * d, normal(f"{stream}.value", init)
            )
        if self.memory.gate:
            self.gate = ColumnParallelLinear(3 * e, e, normal(f"{stream}.gate", init), bias=True)
        if self.memory.output_gate:
            self.output_gate = sharded_parameter(torch.zeros(config.heads))
        # The logarithm of a learned contraction's rate: at zero it is the uniform one.
        self.log_rate = (
            nn.Parameter(torch.zeros(1)) if self.memory.contraction == "learned" else None
        )
        self.out = RowParallelLinear(
            config.heads * d, e, normal(f"{stream}.out", init / math.sqrt(2 * config.layers))
        )

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal, in float32; with `signal: hidden` also the tokens in the STM, which are not written yet."""
        channels = signal_channels(self.config, self.memory)
        fields: dict[str, Tree | Field] = {"signal": self.core.fields(self.signal_heads, channels)}
        if self.hidden and self.stm:
            fields["pending"] = Field((self.signal_heads, self.stm, channels), dtype, split=True)
        return Tree(fields)

    @classmethod
    def variant(cls, memory: MemoryConfig) -> type[Memory]:
        return JointContinuous if memory.density == "joint" else cls

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
            x = x * torch.sigmoid(self.gate(reading.neighbours(segments).flatten(0, 1)))
        return x.unflatten(-1, (self.signal_heads, -1)).permute(1, 2, 0, 3)

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`.

        The penalty is the weighted divergence of the read densities from their prior, mean over all heads.
        """
        q = inputs.q.unflatten(3, (inputs.seen.shape[1], -1))  # [b, K, G, S, L, d]
        stream = self._stream(inputs, state)
        signal = MemoryState(**state["signal"])
        place, values, signal = self._segments(q, stream, signal, inputs.seen, inputs.enabled)
        context = self._read(place, values) + touch(*self._of_writing())
        new: dict[str, Tree | Tensor] = {"signal": Tree(vars(signal))}
        if "pending" in state:
            new["pending"] = stream[:, :, stream.shape[2] - self.stm :].detach().clone()
        return Reading(
            Tree(new),
            update=self.out(context.to(inputs.q.dtype)),
            penalty=self._divergence(place),
            figures=self._statistics(place, signal) if inputs.statistics else None,
        )

    def _stream(self, inputs: Inputs, state: Tree) -> Tensor:
        """What the window will write, in order: [b, h, stm + T, c]; it begins with the tokens in the STM, which are not
        written yet."""
        if not self.hidden:
            stream = torch.cat([inputs.keys, inputs.values], -1)
            return stream if self.memory.backprop else stream.detach()
        normed = self.memory.content == "normed"
        new = self.content(inputs.normed if normed else inputs.region.enter(inputs.residual))
        return torch.cat([state["pending"].to(new.dtype), new], 2) if "pending" in state else new

    def _segments(
        self, q: Tensor, stream: Tensor, signal: MemoryState, seen: Tensor, enabled: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor, MemoryState]:
        """The recurrence: before each segment, write what has left the short-term memory.

        Reads are only planned here and made for all segments at once afterwards. Returns what their densities are
        made of [b, S, ...], the values [b, S, K, N, d] that each segment finds, and the new signal.
        """
        L = self.config.segment_length
        maps = self._maps()
        rate = None if self.log_rate is None else collectives.copy(self.log_rate.float()).exp()
        places = []
        values = []
        for s in range(seen.shape[1]):
            signal = self.core.reset(signal, (seen[:, s] == 0) | (not enabled))
            keys, value = self._keys_and_values(signal, maps, q.dtype)
            place = self._place(q[:, :, :, s], keys, maps)
            places.append(place)
            values.append(value)
            if self.memory.sticky != "off":
                signal = self.core.with_histogram(
                    signal, self._histogram(place), signal.written > 0
                )
            ready = (seen[:, s] >= self.delay) & enabled
            signal = self.core.write(
                signal, stream[:, :, s * L : (s + 1) * L], ready, self._seeds(signal), rate
            )
        first, second = zip(*places)
        place = torch.stack(first, 1), torch.stack(second, 1)
        return place, torch.stack(values, 1), signal

    def _maps(self) -> dict[str, Tensor | None] | None:
        """What a window's reads share: `pool`, float32 [2, K, G, N], the maps of mu and sigma; their biases; with
        `signal: hidden` also the `projection` of keys, float32 [K, d, e]. None for a gibbs density."""
        if self.maps is None:
            return None
        maps = self.maps(self.kv_heads * self.group)
        maps["pool"] = torch.stack([maps["mu"], maps["sigma"]]).unflatten(
            1, (self.kv_heads, self.group)
        )
        if self.hidden:
            maps["projection"] = self.key.weight.float().unflatten(
                0, (self.kv_heads, self.config.head_size)
            )
        return maps

    def _of_writing(self) -> list[Tensor]:
        """Parameters that only a later read can train."""
        late = [self.gate.weight, self.gate.bias] if self.memory.gate else []
        return late if self.log_rate is None else [*late, self.log_rate]

    def _seeds(self, state: MemoryState) -> Tensor | None:
        """int64 [b]: what a multinomial warp draws from, equal on every rank of a layout."""
        if self.memory.sticky != "multinomial":
            return None
        return sticky.seed(self.memory.sticky_seed, state.written, self.layer)

    def _keys_and_values(
        self, state: MemoryState, maps: dict | None, dtype: torch.dtype
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Keys and values of a segment's reads; values [b, K, N, d] in the compute dtype, as attention's are.

        Keys are pooled for mu and for sigma, float32 [b, K, G, d] each; for a gibbs density all of them, [b, K, N, d].
        """
        B, d = state.coefficients, self.config.head_size
        if not self.hidden:
            return (self._pool(B[..., :d], maps) if maps else (B[..., :d],)), B[..., d:].to(dtype)
        whole = collectives.gather(B.transpose(1, 2).flatten(2), -1)  # [b, N, e]
        value = self._projected(self.value, whole, dtype)
        return (
            self._pool_hidden(whole, maps) if maps else (self._projected(self.key, whole, dtype),)
        ), value

    def _projected(
        self, projection: ColumnParallelLinear, whole: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """[b, N, e] -> [b, K, N, d] in the compute dtype, which is that of activations."""
        y = projection(whole.to(dtype))
        return y.unflatten(-1, (self.kv_heads, self.config.head_size)).transpose(1, 2)

    def _pool(self, keys: Tensor, maps: dict) -> tuple[Tensor, ...]:
        return reading.pooled(maps["pool"], keys).unbind(0)

    def _pool_hidden(self, whole: Tensor, maps: dict) -> tuple[Tensor, ...]:
        """Pool the hidden signal first, then project: O(e^2) a head instead of O(N e^2)."""
        pooled = reading.pooled_hidden(maps["pool"], whole)
        return torch.einsum("pbkge,kde->pbkgd", pooled, maps["projection"]).unbind(0)

    def _place(
        self, q: Tensor, keys: tuple[Tensor, ...], maps: dict | None
    ) -> tuple[Tensor, Tensor]:
        """What a segment's densities are made from; q is [b, K, G, L, d].

        Mean and variance, float32 [b, K, G*L] each; for a gibbs density queries [b, K, G*L, d] and keys [b, K, N, d].
        """
        if maps is None:
            return q.flatten(2, 3), keys[0]
        key_mu, key_sigma = keys
        return reading.place(self.memory, q, key_mu, key_sigma, maps["bias_mu"], maps["bias_sigma"])

    def _density(self, place: tuple[Tensor, Tensor]) -> densities.Density:
        """The family of read densities that the config names."""
        return reading.density_of(self.memory, place, self.core.basis)

    def _histogram(self, place: tuple[Tensor, Tensor]) -> Tensor:
        """Where a segment's reads fell: [b, 1, D] for all heads of the layer, or [b, h, D] for each signal head."""
        return reading.histogram(
            self.memory, self._density(place), self.config.kv_heads, collectives.sum_
        )

    def _read(self, place: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
        """One read for all segments: values [b, S, K, N, d] -> [T, b, H/tp * d]."""
        z = self._density(place).read(values, self.core.basis)  # [b, S, K, G*L, d]
        z = z.unflatten(3, (self.group, -1)).flatten(2, 3)
        if self.memory.output_gate:
            z = z * self.output_gate.float()[:, None, None]
        b, S, H, L, d = z.shape
        return z.permute(1, 3, 0, 2, 4).reshape(S * L, b, H * d)

    def _divergence(self, place: tuple[Tensor, Tensor]) -> Tensor | None:
        if self.memory.kl_weight == 0:
            return None
        variance = place[1].unflatten(-1, (self.group, -1))  # [b, S, K, G, L]
        total = (
            density.kl(place[0].view_as(variance), variance, self.memory.kl_sigma)
            .sum((2, 3))
            .flatten(1)
        )
        return self.memory.kl_weight * collectives.reduce(total) / self.config.heads

    @torch.no_grad()
    def _statistics(self, place: tuple[Tensor, Tensor], state: MemoryState) -> dict[str, Tensor]:
        """Means over all heads of the layer, and the mean norm of a lane's coefficients."""
        norms = collectives.sum_(state.coefficients.square().sum((1, 2, 3))).sqrt().mean()
        together = self._density((place[0].flatten(0, 1), place[1].flatten(0, 1)))
        figures = densities.statistics(together, self.memory.bins)
        return {"coefficient_norm": norms} | {
            k: collectives.sum_(v.detach().float().clone()) / groups.tensor_size()
            for k, v in figures.items()
        }


def signal_heads(config: ModelConfig, memory: MemoryConfig) -> int:
    """Heads of the stored signal: one for each key/value head, or one for each slice of the hidden state."""
    return config.kv_heads if memory.signal == "heads" else config.heads


def signal_channels(config: ModelConfig, memory: MemoryConfig) -> int:
    """Channels of a head's stored signal: its key and its value, or its slice of the hidden state."""
    return 2 * config.head_size if memory.signal == "heads" else config.head_size
