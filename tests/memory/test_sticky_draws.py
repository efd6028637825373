"""Multinomial draws follow past attention, and nothing else decides them but seed, layer and number of writes."""

from __future__ import annotations

import torch

from infty.memory import sticky


def draw(histogram: torch.Tensor, seeds: torch.Tensor, samples: int) -> torch.Tensor:
    u = (torch.arange(samples, dtype=torch.float64) + 1) / samples
    return sticky.multinomial(
        histogram.expand(len(seeds), 1, -1), u.expand(1, 1, -1), seeds, samples
    )[:, 0]


def test_draws_follow_the_histogram():
    histogram = torch.tensor([0.05, 0.0, 0.6, 0.35])
    count = 200 * 512
    edges = draw(histogram, sticky.seed(3, torch.arange(200), 1), 512)
    shares = torch.stack([(edges == i / 4).sum() / count for i in range(4)])
    deviation = (histogram * (1 - histogram) / count).sqrt()
    assert ((shares - histogram).abs() <= 4 * deviation).all()
    assert (edges.diff(dim=-1) >= 0).all()


def test_every_write_layer_and_seed_draws_anew():
    written = torch.arange(50)
    seeds = torch.cat(
        [sticky.seed(run, written, layer) for run in (0, 1, -5) for layer in range(4)]
    )
    assert len(seeds.unique()) == len(seeds)
    uniform = sticky.uniforms(seeds, 64)
    assert len(uniform.unique()) == uniform.numel()
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / uniform.numel()) ** 0.5
    correlation = torch.corrcoef(uniform)
    assert (
        correlation - torch.eye(len(seeds))
    ).abs().max() < 6 / 64**0.5  # 6 sigma for 180,000 pairs


def test_a_draw_can_be_repeated():
    a, b = (sticky.uniforms(sticky.seed(11, torch.tensor([4, 9]), 2), 8) for _ in range(2))
    assert torch.equal(a, b)
