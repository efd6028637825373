"""A continuous memory in the softmax of local attention, beside the short-term memory and the segment."""

from __future__ import annotations

import torch
from torch import Tensor

from infty.config import ModelConfig
from infty.layers.linear import sharded_parameter
from infty.layers.memories import continuous_costs as writing
from infty.layers.memories import continuous_pictures
from infty.layers.memories.base import Attended, Costs, Inputs, Layout, Memory, Reading
from infty.memory import attending
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.resample import band_of
from infty.memory.state import MemoryState
from infty.memory.writing import samples_of
from infty.parallel import collectives, groups
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
        self.delay = config.stm_of(layer) // config.segment_length
        self.kv_heads = config.kv_heads // groups.tensor_size()
        self.head_size = config.head_size
        self.core = ContinuousMemory(self.memory, config.segment_length)
        # The logarithm of how much sharper than to a token a head looks at the signal, whose keys are averages.
        self.log_sharpness = sharded_parameter(torch.zeros(config.kv_heads))

    def fields(self, dtype: torch.dtype) -> Tree:
        """The signal, in float32."""
        return Tree({"signal": self.core.fields(self.kv_heads, 2 * self.head_size)})

    @classmethod
    def costs(cls, config: ModelConfig, layer: int, memory: MemoryConfig, layout: Layout) -> Costs:
        d, L, N = config.head_size, config.segment_length, memory.basis
        stored = writing.stored(config, memory)
        band = band_of(N, memory.widths) or N
        b, S, w = layout.lanes, layout.segments, layout.width
        kv = config.kv_heads / layout.tensor
        stm = config.stm_of(layer)
        mask = N + (0 if stm else L)
        # The signal at its centres, and from it keys and values; the mask; the bands of all reads; what is written.
        kept = S * b * N * kv * d * 4 * w + w * b * S * L * mask + S * b * N * (8 + 4 * band)
        return Costs(
            reads=4.0 * config.heads * d * N,
            exact=2.0 * N * band * stored / L + writing.writes(config, memory, layout),
            moved=4.0 * 6 * samples_of(memory) * stored / L,
            launches=writing.SEGMENT_LAUNCHES / 2,
            saved=kept + writing.kept_of_writes(config, memory, layout, stm),
            constants={memory: writing.operators_of(memory, L)},
        )

    def forward(self, inputs: Inputs, state: Tree) -> Reading:
        """Read and write all segments of a window; see `Memory.forward`."""
        stream = torch.cat([inputs.keys, inputs.values], -1)
        if not self.memory.backprop:
            stream = stream.detach()
        found, signal = self._segments(
            stream, MemoryState(**state["signal"]), inputs.seen, inputs.enabled
        )
        keys, values = attending.points(
            found.flatten(2, 3), self.log_sharpness, inputs.q.dtype
        )  # [b, K, S*N, d]
        written = (inputs.seen > self.delay) & inputs.enabled
        points = self.memory.basis
        return Reading(
            Tree({"signal": vars(signal)}),
            attended=Attended(
                keys, values, points * written, points, points, attending.prior(points)
            ),
            figures=self._figures(signal) if inputs.statistics else None,
            pictures=continuous_pictures.of_signal(
                self.core, stream, signal, inputs.seen, self.delay
            )
            if inputs.pictures
            else None,
        )

    def _segments(
        self, stream: Tensor, signal: MemoryState, seen: Tensor, enabled: bool
    ) -> tuple[Tensor, MemoryState]:
        """The recurrence. Returns the signal at the centres that each segment finds [b, K, S, N, 2d], and the last."""
        L = self.segment_length
        found = []
        for s in range(seen.shape[1]):
            signal = self.core.reset(signal, (seen[:, s] == 0) | (not enabled))
            found.append(self.core.at_centers(signal))
            ready = (seen[:, s] >= self.delay) & enabled
            signal = self.core.write(signal, stream[:, :, s * L : (s + 1) * L], ready)
        return torch.stack(found, 2), signal

    @torch.no_grad()
    def _figures(self, signal: MemoryState) -> dict[str, Tensor]:
        """Means over the heads of the layer: how sharply they look, and the norm of a lane's coefficients."""
        norm = collectives.sum_(signal.coefficients.square().sum((1, 2, 3))).sqrt().mean()
        sharpness = (
            collectives.sum_(self.log_sharpness.detach().float().exp().mean())
            / groups.tensor_size()
        )
        return {"sharpness": sharpness, "coefficient_norm": norm}
