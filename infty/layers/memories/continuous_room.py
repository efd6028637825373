"""How much room the tokens of a continuous memory ask for, in a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infty.layers.memories.base import Inputs
from infty.memory import room
from infty.memory.config import MemoryConfig
from infty.parallel import collectives
from infty.tree import Tree


class Room(nn.Module):
    """The weights by which tokens share out their segment's room, equal on all tensor-parallel ranks; see
    `infty.memory.room`. A fresh salience is the same for all tokens."""

    def __init__(self, memory: MemoryConfig, size: int) -> None:
        """size: of the hidden state."""
        super().__init__()
        self.memory = memory
        self.weight = nn.Parameter(torch.zeros(size)) if memory.room == "salience" else None

    def forward(self, inputs: Inputs, state: Tree) -> Tensor | None:
        """float32 [b, stm + T], of the tokens in the STM first, which are not written yet; None: evenly."""
        if self.memory.room == "even":
            return None
        new = self._new(inputs)
        return torch.cat([state["room"], new], 1) if "room" in state else new

    def _new(self, inputs: Inputs) -> Tensor:
        """float32 [b, T], of the window's own tokens."""
        if self.weight is None:
            assert inputs.losses is not None
            return room.surprise(inputs.losses).flatten(1)
        h = inputs.normed if self.memory.backprop else inputs.normed.detach()
        # Each rank's heads read with the same weights: the gradients of all are summed.
        return room.salience(h, collectives.copy(self.weight)).t()


def kept(weights: Tensor | None, state: Tree) -> dict[str, Tensor]:
    """What the new state holds of a window's weights [b, stm + T]: those of the tokens now in the STM."""
    if weights is None or "room" not in state:
        return {}
    stm = state["room"].shape[1]
    return {"room": weights[:, weights.shape[1] - stm :].clone()}


def figures(weights: Tensor | None) -> dict[str, Tensor]:
    """How evenly a window's tokens share out their room."""
    return {} if weights is None else {"room_spread": room.spread(weights)}
