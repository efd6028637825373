"""Contraction policies: how much of [0, 1] the old signal keeps at a write, and where the new tokens go.

A policy is one function: segments written so far -> `Plan`. Where old samples are taken from is the warp's
business (sticky.py); every policy works with every warp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """One write, lane by lane. All tensors are [b], float64 or bool."""

    keep: Tensor
    """The old signal goes to [0, keep]."""
    end: Tensor
    """The new tokens go to (keep, end]; the rest stays zero."""
    append: Tensor
    """The old signal stays as it is: it already lies in [0, keep]."""


class Policy(Protocol):
    """A contraction policy."""

    appends: bool
    """Whether any plan appends."""
    weighs: bool
    """Whether `written` may be a weight instead of a number of segments, and `rate` that of the new tokens."""

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        """The write that follows `written` segments (int64 [b]). `rate`: see `Uniform`."""
        ...


class Constant:
    """The paper's: the old signal always keeps the share tau. Forgets exponentially."""

    appends = False
    weighs = False

    def __init__(self, keep: float) -> None:
        self.keep = keep

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        keep = torch.full_like(written, self.keep, dtype=torch.float64)
        return Plan(keep, torch.ones_like(keep), torch.zeros_like(written, dtype=torch.bool))


class Uniform:
    """Every segment of the document gets the same share: after k segments the old signal keeps k/(k+1).

    With a rate r (a scalar, may be learned) it keeps k/(k+r): above 1, new tokens get more room than an even share
    and old ones fade as k^-r; below 1, what came first keeps more. k may be any weight, and r the new segment's, [b]:
    each segment then keeps its share of all weight.
    """

    appends = False
    weighs = True

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        keep = written.double() / (written.double() + (1.0 if rate is None else rate.double()))
        return Plan(keep, torch.ones_like(keep), torch.zeros_like(written, dtype=torch.bool))


class Doubling:
    """Room for 1, 2, 4, ... segments: append while there is room, contract to one half when there is none.

    A token is resampled log2(segments) times instead of once a segment.
    """

    appends = True
    weighs = False

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        count = written.double()
        # Room before this write: the smallest power of two that holds what is there; none when empty.
        room = torch.exp2(torch.ceil(torch.log2(count.clamp(min=1)))) * (count > 0)
        full = count >= room
        room = torch.where(full, (2 * room).clamp(min=1), room)
        return Plan(count / room, (count + 1) / room, ~full)


NAMED: dict[str, Callable[[], Policy]] = {
    "uniform": Uniform,
    "doubling": Doubling,
    "learned": Uniform,
}
"""What a config can name: `infty.memory.config.ContractionPolicy` lists the same names."""


def is_named(contraction: float | str) -> TypeGuard[str]:
    """Whether a config's contraction is the name of a policy, not a constant share."""
    return isinstance(contraction, str)


def policy(contraction: float | str) -> Policy:
    """The policy a config names: a number in (0, 1), 'uniform', 'doubling' or 'learned' (uniform, at a rate)."""
    return NAMED[contraction]() if is_named(contraction) else Constant(float(contraction))
