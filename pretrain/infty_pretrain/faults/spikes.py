"""Which steps are not to be taken, and a memory of what went wrong in a run."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from infty_pretrain.config import FaultsConfig

# The spread of recent losses counts as at least this share of their mean: a flat curve must not trip over its noise.
LEAST_SPREAD = 0.01


class FaultHistory:
    """Recent losses, and how many steps and lanes were given up. The same on every rank.

    A loss is a spike when it lies more than `spike_sigma` standard deviations above the mean of the last
    `spike_window` losses, once half a window has been seen (so not at the start, where losses are high and fall fast).
    A spike enters the window as the largest loss that would not have been one: a second spike is measured by almost
    the same rule, yet where the loss stays up for good, the rule follows within a few steps.
    """

    def __init__(self, config: FaultsConfig) -> None:
        self.sigma = config.spike_sigma
        self.losses: deque[float] = deque(maxlen=config.spike_window)
        self.in_a_row = 0
        """Steps skipped since the last that was taken."""
        self.suspect = False
        """Whether the last step's loss was not finite, so that the weights may be bad: they are not to be saved."""
        self.skipped = self.quarantined = 0
        """Steps skipped and lanes quarantined since the run began."""

    def limit(self) -> float:
        """The largest loss that is no spike; infinity while the rule is off."""
        if self.sigma is None or len(self.losses) < self.losses.maxlen / 2:
            return math.inf
        mean = statistics.fmean(self.losses)
        spread = math.sqrt(statistics.fmean((x - mean) ** 2 for x in self.losses))
        return mean + self.sigma * max(spread, LEAST_SPREAD * abs(mean))

    def verdict(self, loss: float) -> str | None:
        """Why a step with this loss is not to be taken: `loss` (it is not finite), `spike`, or None."""
        if not math.isfinite(loss):
            return "loss"
        return "spike" if loss > self.limit() else None

    def record(self, loss: float, skipped: str | None, quarantined: int) -> None:
        """Remember a step."""
        if math.isfinite(loss):
            self.losses.append(min(loss, self.limit()))
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        self.suspect = skipped == "loss"
        self.skipped += bool(skipped)
        self.quarantined += quarantined

    def state(self) -> dict[str, Any]:
        """Plain JSON values for the checkpoint. The patience begins anew: whoever starts the run again has seen to
        it."""
        return {
            "losses": list(self.losses),
            "skipped": self.skipped,
            "quarantined": self.quarantined,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """The inverse of `state`; None: nothing is known."""
        if state is not None:
            self.losses.extend(state["losses"])
            self.skipped, self.quarantined = state["skipped"], state["quarantined"]
