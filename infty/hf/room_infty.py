"""How much room the tokens of a continuous memory ask for, in the transformers model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from infty.hf.memory_infty import Ended, InftyModule, Inputs
from infty.hf.state_infty import PartState
from infty.memory import room
from infty.memory.config import MemoryConfig


class InftyRoom(InftyModule):
    """The weights by which tokens share out their segment's room; see `infty.memory.room`."""

    def __init__(self, memory: MemoryConfig, size: int) -> None:
        super().__init__()
        self.memory = memory
        self.weight = nn.Parameter(torch.zeros(size)) if memory.room == "salience" else None

    def initialise(self) -> None:
        if self.weight is not None:
            init.zeros_(self.weight)

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """What is held of a piece's tokens, [b, 1, t, ...]; nothing where they share evenly."""
        if self.memory.room == "even":
            return {}
        if self.weight is None:
            assert inputs.tokens is not None
            return {
                "stream": inputs.residual.detach()[:, None],
                "tokens": inputs.tokens[:, None],
            }
        h = inputs.normed if self.memory.backprop else inputs.normed.detach()
        return {"weights": room.salience(h, self.weight)[:, None]}

    def ended(self, ended: Ended, state: PartState) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Where a segment ends: the weights float32 [b, L] of the one that is written, None where
        tokens share evenly; and what is kept of those that are not written yet."""
        if self.memory.room == "even":
            return None, {}
        weights = self._weights(ended, state)
        if "room" not in state.kept:
            return weights, {}
        length = weights.shape[1]
        pending = state.kept["room"]
        weights = torch.cat([pending, weights], 1)
        return weights[:, :length], {
            "room": ended.piece.where_complete(weights[:, length:], pending)
        }

    def _weights(self, ended: Ended, state: PartState) -> Tensor:
        """float32 [b, L], of the segment that ends; of rows whose segment does not end, anything."""
        if self.weight is not None:
            return state.held("weights")[:, 0]
        assert ended.losses is not None
        stream, tokens = state.held("stream")[:, 0], state.held("tokens")[:, 0]
        return room.surprise(ended.losses(stream[:, :-1], tokens[:, 1:]))


__all__ = ["InftyRoom"]
