"""What ZeRO-3 asks of a model."""

from __future__ import annotations

from torch import Tensor


def touch(*parameters: Tensor | None) -> Tensor | float:
    """Zero, but with a gradient of zero for each parameter.

    DeepSpeed's ZeRO-3 gives a parameter that takes no part in a step the gradient of an earlier one, and ranks that
    skip a parameter stop those that do not. What a window writes last it does not read, so a parameter of writing may
    have no part in a short window's loss: add this to something that has.
    """
    return sum(0.0 * p.sum() for p in parameters if p is not None)
