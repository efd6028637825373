"""A continuous memory in the softmax of local attention, beside the short-term memory and the segment."""

from __future__ import annotations

import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.layers.linear import sharded_parameter
from infty.layers.memories import continuous_costs as writing
from infty.layers.memories import continuous_pictures, continuous_room
from infty.layers.memories.base import Attended, Costs, Inputs, Layout, Memory, Reading
from infty.memory import attending, room, tiles
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty.memory.writing import samples_of
from infty.parallel import collectives, groups
from infty.parallel.zero3 import touch
from infty.parts import WRITE, part
from infty.tree import Tree


class JointContinuous(Memory):
    """`density: joint`. A head's signal is its attention's keys and values, and each segment attends to it at the
    centres of its N functions, beside the tokens in sight: a content density that shares its normaliser, its values
    and its output matrix with local attention, so that a model with a fresh memory is nearly the model without.

    All the points together weigh as much as one token whose score is 0, until the model scores them higher. With rotary
    positions they stand where the oldest token in sight stands.
    """

    attends = True

    def __init__(self, config: ModelConfig, layer: int, name: str) -> None:
        super().__init__(config, layer, name)
        self.memory: MemoryConfig = config.memories_of(layer)[name]
        self.segment_length = config.segment_length
        self.stm = config.stm_of(layer)
        self.delay = self.stm // config.segment_length
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.head_size = config.head_size
        self.core = ContinuousMemory(self.memory, config.segment_length)
        self.room = continuous_room.Room(self.memory, config.hidden_size)
        self.surprised = self.memory.room == "surprise"
        # The logarithm of how much sharper than to a token a head looks at the signal, whose keys are averages.
        self.log_sharpness = sharded_parameter(torch.zeros(config.kv_heads))

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal, in float32, and the weights of the tokens in the STM."""
        signal = self.core.fields(self.kv_heads, 2 * self.head_size)
        return Tree({"signal": signal, **room.pending(self.memory, self.stm)})

    @classmethod
    def costs(cls, config: ModelConfig, layer: int, memory: MemoryConfig, layout: Layout) -> Costs:
        d, L, N = config.head_size, config.segment_length, memory.basis
        stored = writing.stored(config, memory)
        centers = tiles.at_centers(N, memory.widths)[0]
        b, S, w = layout.lanes, layout.segments, layout.width
        kv = config.kv_heads / layout.tensor
        stm = config.stm_of(layer)
        mask = N + (0 if stm else L)
        room = writing.weighing(config, memory, layout)
        # The signal at its centres, and from it keys and values; the mask; what is written.
        kept = S * b * N * kv * d * 4 * w + w * b * S * L * mask
        return Costs(
            products=room.products,
            reads=4.0 * config.heads * d * N,
            exact=2.0 * centers.operations * stored / L
            + writing.writes(config, memory, layout)
            + room.exact,
            moved=4.0 * 6 * samples_of(memory) * stored / L,
            launches=writing.SEGMENT_LAUNCHES / 2,
            saved=kept + writing.kept_of_writes(config, memory, layout, stm) + room.saved,
            constants={memory: writing.operators_of(memory, L)},
        )

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`."""
        stream = torch.cat([inputs.keys, inputs.values], -1)
        if not self.memory.backprop:
            stream = stream.detach()
        weights = self.room(inputs, state)
        found, signal = self._segments(
            stream, weights, MemoryState(**state["signal"]), inputs.seen, inputs.enabled
        )
        keys, values = attending.points(
            found.flatten(2, 3), self.log_sharpness, inputs.q.dtype
        )  # [b, K, S*N, d]
        values = values + touch(self.room.weight)
        written = (inputs.seen > self.delay) & inputs.enabled
        points = self.memory.basis
        return Reading(
            Tree({"signal": signal.tree(), **continuous_room.kept(weights, state)}),
            attended=Attended(
                keys, values, points * written, points, points, attending.prior(points)
            ),
            figures=self._figures(signal) | continuous_room.figures(weights)
            if inputs.statistics
            else None,
            pictures=continuous_pictures.of_signal(
                self.core, stream, signal, inputs.seen, self.delay
            )
            if inputs.pictures
            else None,
        )

    def _segments(
        self,
        stream: Tensor,
        weights: Tensor | None,
        signal: MemoryState,
        seen: Tensor,
        enabled: bool,
    ) -> tuple[Tensor, MemoryState]:
        """The recurrence. Returns the signal at the centres that each segment finds [b, K, S, N, 2d], and the last."""
        L = self.segment_length
        found = []
        for s in range(seen.shape[1]):
            signal = self.core.reset(signal, (seen[:, s] == 0) | (not enabled))
            found.append(signal.coefficients)
            ready = (seen[:, s] >= self.delay) & enabled
            tokens = slice(s * L, (s + 1) * L)
            share = None if weights is None else weights[:, tokens]
            with part(WRITE):
                signal = self.core.write(signal, stream[:, :, tokens], ready, weights=share)
        return self.core.at_centers(torch.stack(found, 2)), signal

    @torch.no_grad()
    def _figures(self, signal: MemoryState) -> dict[str, Tensor]:
        """Means over the heads of the layer: how sharply they look, and the norm of a lane's coefficients."""
        norm = collectives.sum_(signal.coefficients.square().sum((1, 2, 3))).sqrt().mean()
        sharpness = (
            collectives.sum_(self.log_sharpness.detach().float().exp().mean())
            / groups.tensor_size()
        )
        return {"sharpness": sharpness, "coefficient_norm": norm}
