"""The numbers that a value from outside may be: one declaration for the check and for what a message says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from infty.errors import UserError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`; written into messages by `str`."""

    least: float
    most: float
    whole: bool = False
    """Whole numbers only."""
    above: bool = False
    """Without `least` itself."""
    below: bool = False
    """Without `most` itself."""

    words: Collection[str] = ()
    """What may stand in place of a number."""

    def __contains__(self, value: Any) -> bool:
        """False for anything else than a number in the range or a word of it; nan and infinities are in none."""
        if isinstance(value, str):
            return value in self.words
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.whole and not isinstance(value, int):
            return False
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least, most = _figure(self.least), _figure(self.most)
        if not self.above and not self.below:
            text = f"{kind} from {least} to {most}"
        else:
            low = "above" if self.above else "not below"
            high = "below" if self.below else "at most"
            text = f"{kind} {low} {least} and {high} {most}"
        return text + (f", or one of {', '.join(self.words)}" if self.words else "")


def whole(least: int, most: int) -> Range:
    """Whole numbers, both ends included."""
    return Range(least, most, whole=True)


def check(values: Any, ranges: Mapping[str, Range], prefix: str) -> None:
    """Refuse an object one of whose numbers lies outside the range declared for it.

    A tuple's members are checked one by one; None (left out) passes. `prefix` stands before a name in the message, such
    as `model.`. Raises UserError.
    """
    for name, accepted in ranges.items():
        value = getattr(values, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            if number is not None and number not in accepted:
                raise UserError(f"{prefix}{name}: {shown(number)} must be {accepted}")


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = str(value)
    return text if len(text) <= 50 else f"{text[:47]}..."


def _figure(number: float) -> str:
    """1,048,576, 0.5 or 1e-06."""
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:g}"
