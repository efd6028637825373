"""Memories in front of what local attention sees."""

from __future__ import annotations

import math

import torch

from infty.memory.attending import in_front, points, prior


def test_masks_of_memories_with_and_without_a_prior_go_together():
    keys, memory = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 5, 4)
    causal = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    seen = torch.tensor([[True] * 4 + [False], [False] * 5])
    first = in_front((memory, memory), seen, -1.5, keys, keys, causal)
    found_keys, _, mask = in_front((2 * memory, memory), seen, 0.0, *first)
    assert torch.equal(found_keys, torch.cat([2 * memory, memory, keys], 2))
    hidden = -math.inf
    assert mask[0, 0, 0].tolist() == [
        0,
        0,
        0,
        0,
        hidden,
        -1.5,
        -1.5,
        -1.5,
        -1.5,
        hidden,
        0,
        hidden,
        hidden,
    ]
    assert mask[1, 0, 2].tolist() == [hidden] * 10 + [0, 0, 0]
    assert in_front((memory, memory), seen, 0.0, keys, keys, causal)[2].dtype == torch.bool


def test_all_points_together_weigh_as_much_as_one_token_that_scores_nothing():
    keys, _ = points(torch.randn(1, 2, 7, 6), torch.tensor([0.0, 1.0]), torch.float64)
    assert keys.dtype == torch.float64
    scores = torch.zeros(7) + prior(7)
    torch.testing.assert_close(scores.exp().sum(), torch.tensor(1.0))
