"""How a segment's tokens share out its room: by a positive weight each.

A token's room is its weight over the sum of the segment's weights, a softmax of its scores; and with a policy that
gives every segment the same room (`uniform`, `learned`), a segment's room is the sum of its weights over that of all
that the document has written, so that every token of a document keeps room as the weight it was written with.

| room     | a token's weight                                                              | gradient |
|----------|-------------------------------------------------------------------------------|----------|
| even     | 1; the plain formulas                                                         |          |
| salience | exp(score), a learned linear function of the hidden state, soft-capped        | yes      |
| surprise | its loss, as the layer's input predicts it through the model's output matrix  | no       |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infty.tree import Field, Tree

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig

ROOMS = ("even", "salience", "surprise")
CAP = 4.0
"""Scores lie within +-CAP (a soft cap, as Gemma 2 has for logits): no token has more than 3,000 times the weight of
another, so that nothing is shut out for good, and weights of a whole book can be added up."""


def salience(h: Tensor, weight: Tensor) -> Tensor:
    """Weights of tokens, float32 [...] > 0, from their hidden states h [..., e] and what is learned [e]."""
    score = (h.float() * weight.float()).sum(-1)
    return torch.exp(CAP * torch.tanh(score / CAP))


LEAST = 0.1
"""Nats added to every token's loss: room for what was certain."""


def surprise(losses: Tensor) -> Tensor:
    """Weights of tokens, float32 [b, S, L] > 0, from the losses [b, S, L - 1] of all tokens of a segment but its first.

    What predicts the first one was read in another segment, maybe in another window: it gets the mean of the others, so
    that weights do not depend on how a text is cut.
    """
    losses = losses.float()
    return torch.cat([losses.mean(-1, keepdim=True), losses], -1) + LEAST


def edges(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    """Where the tokens that fill (start, end] by their weights begin and end: float64 [b, l + 1], in order.

    start, end float64 [b]; weights [b, l] > 0. Gradients reach all three.
    """
    below = weights.double().cumsum(-1)
    below = torch.cat([torch.zeros_like(below[:, :1]), below / below[:, -1:]], -1)
    return start[:, None] + (end - start)[:, None] * below


def pending(memory: MemoryConfig, stm: int) -> Tree:
    """What a lane keeps for its room: the weights of the `stm` tokens in the STM, which are not written yet."""
    if memory.room == "even" or not stm:
        return Tree({})
    return Tree({"room": Field((stm,), torch.float32, reset=1)})


@torch.no_grad()
def spread(weights: Tensor) -> Tensor:
    """How evenly tokens [b, T] share out their room: exp(entropy) of their shares over T, mean over lanes. 1: evenly;
    1 / T: all of it is one token's."""
    shares = weights / weights.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp().mean() / weights.shape[-1]
