"""What all lanes do is done without choosing between signals, and is to the bit what choosing gives."""

from __future__ import annotations

import pytest
import torch

from infty.memory import MemoryConfig
from infty.memory.memory import ContinuousMemory


def written(core: ContinuousMemory, lanes: int, extra: bool) -> list[torch.Tensor]:
    """Two writes, and a reset of nobody, of some lanes; with `extra` beside one that is reset and not written."""
    g = torch.Generator().manual_seed(0)
    x = [torch.randn(lanes, 2, 8, 6, generator=g) for _ in range(2)]
    if extra:
        x = [torch.cat([one, torch.ones(1, 2, 8, 6)]) for one in x]
    x = [one.requires_grad_() for one in x]
    chosen = torch.arange(lanes + extra) < lanes
    state = core.empty(lanes + extra, 2, 6)
    for one in x:
        state = core.write(core.reset(state, ~chosen), one, chosen)
    (state.coefficients[:lanes] ** 2).sum().backward()
    found = [state.coefficients.detach(), state.histogram, state.written, *(one.grad for one in x)]
    return [tensor[:lanes] for tensor in found]


@pytest.mark.parametrize("contraction", ["uniform", "doubling", 0.5])
def test_all_lanes_are_as_among_others(contraction):
    core = ContinuousMemory(MemoryConfig(basis=24, contraction=contraction, bins=8), 8)
    for alone, among in zip(written(core, 3, False), written(core, 3, True)):
        torch.testing.assert_close(alone, among, rtol=1e-6, atol=1e-7)


def test_nothing_is_copied_where_no_document_begins():
    core = ContinuousMemory(MemoryConfig(basis=24), 8)
    state = core.empty(3, 2, 6)
    assert core.reset(state, torch.zeros(3, dtype=torch.bool)) is state
    assert core.reset(state, torch.tensor([False, True, False])) is not state
