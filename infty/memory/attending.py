"""A memory in the softmax of local attention: what the training model and its transformers twin
both compute."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infty.memory.reading import Density, Refused

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig


class Attending(Density):
    """`density: joint`: local attention sees the signal at the centres of its functions, in one
    softmax with the tokens in sight."""

    attends = True

    @classmethod
    def refused(cls, memory: MemoryConfig) -> Refused:
        name = f"density: {memory.density}"
        keys = f"must be heads with {name}, whose keys are attention's"
        rules = (
            ("signal", keys, memory.signal_kind.of_attention),
            ("sticky", f"must be off with {name}", memory.sticky == "off"),
            ("output_gate", f"has no effect with {name}: leave it out", not memory.output_gate),
            ("kl_weight", f"has no effect with {name}: must be 0", memory.kl_weight == 0),
            ("widths", f"must be one with {name}", len(memory.widths) == 1),
            ("contraction", f"cannot be learned with {name}", not memory.policy.learned),
        )
        return [(key, problem) for key, problem, kept in rules if not kept]


def points(signal: Tensor, log_sharpness: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values [b, K, n, d] of a signal's points [b, K, n, 2d], in `dtype`.

    log_sharpness [K]: the logarithm of how much sharper than to a token a head looks at them, as
    they are averages.
    """
    keys, values = signal.to(dtype).chunk(2, -1)
    return keys * log_sharpness.exp().to(dtype)[:, None, None], values


def prior(count: int) -> float:
    """What is added to the scores of `count` points, so that all together weigh as much as one
    token whose score is 0."""
    return -math.log(count)


def in_front(
    memory: tuple[Tensor, Tensor],
    allowed: Tensor,
    added: float,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values [b, K, k, d] and their mask [b, 1, L, k], with a memory's [b, K, n, d] before
    them.

    mask and allowed, [b, n], are True for what is seen; or the mask is one of numbers already, and
    becomes one with `added`, what the scores of the memory get.
    """
    if added or mask.is_floating_point():
        allowed = _scores(allowed, added, keys.dtype)
        mask = mask if mask.is_floating_point() else _scores(mask, 0.0, keys.dtype)
    allowed = allowed[:, None, None].expand(-1, -1, mask.shape[2], -1)
    key, value = memory
    return torch.cat([key, keys], 2), torch.cat([value, values], 2), torch.cat([allowed, mask], 3)


def _scores(seen: Tensor, added: float, dtype: torch.dtype) -> Tensor:
    """What a mask adds to scores: `added` where it is True, nothing can be seen elsewhere."""
    return torch.where(seen, added, -math.inf).to(dtype)
