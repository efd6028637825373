"""Which tokens an exported model's attention and memories read, layer by layer and head by head.

What a head reads is a sum over the values of tokens, each with a weight. Marks go the same way in
the place of values, through every write and read, so what comes out is these weights, exactly: of
the delta rule with what it took away again, of a continuous memory with what contraction and
regression have left of a token. How queries and keys came about is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infty.hf.layer_infty import InftyAttention, InftyDecoderLayer
from infty.hf.memory_infty import Attended, Ended, InftyMemory, Inputs
from infty.hf.modeling_infty import InftyForCausalLM

ATTENTION = "attention"
"""What the local attention of a layer is called beside its memories."""


@dataclass
class Source:
    """What a layer reads from: its local attention or one of its memories."""

    layer: int
    name: str
    measured: bool = True
    weights: list[Tensor] = field(default_factory=list)
    """float32 [H, m] of each token that was recorded: how much of what a head read has each mark.
    Of attention they sum to at most 1; those of a delta rule may be negative."""
    share: list[float] = field(default_factory=list)
    """How large what was read was beside the residual stream that it was added to (root mean
    square), of each token that was recorded; nothing for attention."""
    marks: Tensor | None = None
    """[1, h, n, m]: what the memory holds of the marks."""
    room: Tensor | None = None
    """float32 [m], sums to 1: how much of the memory each mark had at last."""


class Tracer:
    """Follows a model while it reads one text. Use it as a context manager around its calls."""

    def __init__(
        self, model: InftyForCausalLM, marks: int, mark_of: Callable[[Tensor], Tensor]
    ) -> None:
        """`mark_of` tells the marks, 0 to `marks` - 1, of tokens int64 [n] by their places in the
        text."""
        self.model, self.count, self.mark_of = model, marks, mark_of
        self.recording = False
        """Whether the reads of the next call are kept."""
        self.sources: dict[tuple[int, str], Source] = {}
        self._attended: list[Attended] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Tracer:
        for number, layer in enumerate(self.model.model.layers):
            self._watch(number, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def measured(self) -> list[Source]:
        """What reads were kept of."""
        return [source for source in self.sources.values() if source.weights]

    def unmeasured(self) -> list[Source]:
        """Memories that cannot tell which tokens a read comes from."""
        return [source for source in self.sources.values() if not source.measured]

    def _watch(self, number: int, layer: InftyDecoderLayer) -> None:
        source = self.sources[number, ATTENTION] = Source(number, ATTENTION)
        self._hook(layer.attention, source, self._attention)
        for name, memory in layer.memories.items():
            source = self.sources[number, name] = Source(number, name)
            shape = memory.mark_shape()
            if shape is None:
                source.measured = False
                continue
            source.marks = torch.zeros(1, *shape, self.count, device=self.model.device)
            self._hook(memory, source, self._memory)

    def _hook(self, module: Any, source: Source, seen: Callable[..., None]) -> None:
        def hook(module: Any, given: tuple, result: Any) -> None:
            seen(source, module, given, result)

        self._handles.append(module.register_forward_hook(hook))

    def _memory(self, source: Source, memory: InftyMemory, given: tuple, result: Any) -> None:
        what, state = given
        if isinstance(what, Ended):
            self._written(source, memory, what, state)
        elif self.recording:
            self._read(source, memory, what, result)

    def _written(self, source: Source, memory: InftyMemory, ended: Ended, state: Any) -> None:
        first = (int(ended.piece.segments[0]) - memory.delay) * memory.segment_length
        new = self._marks(first, memory.segment_length, ended.keys)
        if ended.enabled:
            source.marks = memory.write_marks(ended, state, source.marks, new)

    def _read(self, source: Source, memory: InftyMemory, inputs: Inputs, reading: Any) -> None:
        read = memory.read_marks(inputs, reading.state, source.marks)
        room = memory.share_of(reading.state, source.marks)[0].cpu()
        source.room = room / room.sum().clamp(min=1e-30)
        if isinstance(read, Attended):
            self._attended.append(read)
            return
        source.weights.append(read[0, :, -1].float().cpu())
        size = [float(x[0, -1].float().square().mean()) for x in (reading.update, inputs.residual)]
        source.share.append((size[0] / max(size[1], 1e-30)) ** 0.5)

    def _attention(
        self, source: Source, attention: InftyAttention, given: tuple, result: Any
    ) -> None:
        if not self.recording:
            return
        q, keys, _, piece, attended = given
        first = int(piece.segments[0]) * attention.config.segment_length - attention.stm

        def marked(first: int, tokens: int) -> Tensor:
            return self._marks(first, tokens, keys)[:, None].expand(-1, keys.shape[1], -1, -1)

        sinks = [  # they come before what memories add
            sink._replace(values=marked(0, sink.keys.shape[2]))
            for sink in attended[: len(attended) - len(self._attended)]
        ]
        values = marked(first, keys.shape[2])
        z = attention.forward(q, keys, values, piece, [*sinks, *self._attended])
        self._attended = []
        source.weights.append(z[0, -1].unflatten(-1, (-1, self.count)).float().cpu())

    def _marks(self, first: int, tokens: int, like: Tensor) -> Tensor:
        """[1, tokens, m] in the dtype of `like`: one-hot, of tokens from the place `first` on;
        nothing before the text."""
        places = torch.arange(first, first + tokens)
        hot = torch.nn.functional.one_hot(self.mark_of(places.clamp(min=0)), self.count)
        return (hot * (places >= 0)[:, None])[None].to(like)


__all__ = ["ATTENTION", "Source", "Tracer"]
