"""Contraction policies: how much of [0, 1] the old signal keeps at a write, and where the new tokens go.

A policy is one function: segments written so far -> `Plan`, and what it asks of a memory's config. Where old
samples are taken from is the warp's business (sticky.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from infty.errors import UserError

if TYPE_CHECKING:
    from infty.memory.config import MemoryConfig
    from infty.memory.reading import Refused


@dataclass(frozen=True)
class Plan:
    """One write, lane by lane. All tensors are [b], float64 or bool."""

    keep: Tensor
    """The old signal goes to [0, keep]."""
    end: Tensor
    """The new tokens go to (keep, end]; the rest stays zero."""
    append: Tensor
    """The old signal stays as it is: it already lies in [0, keep]."""


class Policy(ABC):
    """A contraction policy."""

    constant = False
    """Whether the old signal's share never changes: such a write needs no grid (writing.py)."""
    appends = False
    """Whether any plan appends."""
    weighs = False
    """Whether `written` may be a weight instead of a number of segments, and `rate` that of the new tokens."""
    learned = False
    """Whether each layer learns a rate, a parameter `log_rate` that starts at zero: `plan` gets its exponential."""
    warp = "off"
    """The warp of a memory whose config leaves `sticky` out."""

    def refused(self, memory: MemoryConfig) -> Refused:
        """What a memory with this policy cannot be: the key and the problem of each."""
        named = f"contraction: {memory.contraction}"
        out = []
        # One sample a function leaves the highest frequencies undetermined: rewriting then amplifies them.
        if memory.samples is not None and 4 * memory.samples < 5 * memory.basis:
            few = f"{memory.samples} is too few for {named}; needs at least 1.25 x basis"
            out.append(("samples", few))
        # Drawn left edges of bins are half a bin off and rough, and a policy draws them again at every segment.
        if memory.sticky == "multinomial":
            forgets = f"'multinomial' forgets a book within some dozen segments under {named}"
            instead = "use 'quantile', or the paper's constant contraction, such as 0.5"
            out.append(("sticky", f"{forgets}; {instead}"))
        return out

    @abstractmethod
    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        """The write that follows `written` segments (int64 [b]). `rate`: see `Learned`."""


class Constant(Policy):
    """The paper's: the old signal always keeps the share tau. Forgets exponentially."""

    constant = True

    def __init__(self, keep: float) -> None:
        self.keep = keep

    def refused(self, memory: MemoryConfig) -> Refused:
        if memory.room == "even":
            return []
        policies = f"{', '.join(list(NAMED)[:-1])} or {list(NAMED)[-1]}"
        even = f"a constant one ({memory.contraction}) puts new tokens at even places"
        return [("room", f"'{memory.room}' needs contraction: {policies}; {even}")]

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        keep = torch.full_like(written, self.keep, dtype=torch.float64)
        return Plan(keep, torch.ones_like(keep), torch.zeros_like(written, dtype=torch.bool))


class Uniform(Policy):
    """Every segment of the document gets the same share: after k segments the old signal keeps k/(k+1).

    k may be any weight, and the new segment's is then `rate`, [b]: each segment keeps its share of all weight.
    """

    warp = "quantile"
    weighs = True

    def plan(self, written: Tensor, rate: Tensor | None = None) -> Plan:
        keep = written.double() / (written.double() + (1.0 if rate is None else rate.double()))
        return Plan(keep, torch.ones_like(keep), torch.zeros_like(written, dtype=torch.bool))


class Learned(Uniform):
    """With a rate r (a scalar > 0) the old signal keeps k/(k+r): above 1, new tokens get more room than an even
    share and old ones fade as k^-r; below 1, what came first keeps more. At first r = 1: `Uniform`.
    """

    learned = True

    def refused(self, memory: MemoryConfig) -> Refused:
        out = super().refused(memory)
        if not memory.backprop:
            out.append(("contraction", "'learned' needs backprop: true"))
        return out


class Doubling(Policy):
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
    "learned": Learned,
}
"""What a config can name instead of a constant share."""


def policy(contraction: float | str) -> Policy:
    """The policy of a config: the one of that name, or a constant share in (0, 1)."""
    return NAMED[contraction]() if isinstance(contraction, str) else Constant(contraction)


def written(text: str) -> float | str:
    """What a config says, from a word of a command line: the name of a policy or a constant share. Raises UserError."""
    if text in NAMED:
        return text
    try:
        return float(text)
    except ValueError:
        names = ", ".join(NAMED)
        raise UserError(f"'{text}' is not {names} or a number above 0 and below 1") from None
