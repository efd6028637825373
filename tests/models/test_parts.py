"""A window whose parts are recomputed: gradients through all of it, with the activations of one part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infty_tools.bench.layout_training import window
from infty_tools.bench.memory import peak_bytes
from support.small import GPT2, VARIANTS, build, logits

pytestmark = pytest.mark.usefixtures("single_process")


def stepped(config, size, segments=5, **options):
    """Gradients by name, the loss and the output of one window."""
    model = build(config, part_segments=size)
    batch = window(config, lanes=2, segments=segments)
    loss, out = logits(model, batch, labels=batch["labels"], weights=batch["weights"], **options)
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}, loss.item(), out


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "hidden-gpt2",
        "learned",
        "salience",
        "surprise, joint",
        "compressive",
        "compressive as published",
        "continuation",
        "gist and facts",
        "relative",
    ],
)
def test_gradients_are_those_of_the_whole_window(name):
    expected, loss, whole = stepped(VARIANTS[name], None)
    got, found, parts = stepped(VARIANTS[name], 2)
    assert found == pytest.approx(loss, rel=1e-6)
    for n, gradient in expected.items():
        error = (got[n] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-4, (n, float(error))
    torch.testing.assert_close(parts.token_nll, whole.token_nll, rtol=1e-4, atol=1e-5)
    state = parts.state.named()
    assert not any(x.requires_grad for x in state.values())
    for key, x in whole.state.named().items():
        torch.testing.assert_close(state[key], x, rtol=1e-4, atol=1e-4, msg=key)


def test_gradients_reach_across_parts():
    """What the first part writes is trained by what the last one reads: without that, other gradients."""
    config = VARIANTS["salience"]
    model, batch = build(config, part_segments=1), window(config, 1, 4, resets=0.0)
    late = torch.zeros_like(batch["weights"])
    late[:, -1] = 1.0
    loss, _ = logits(model, batch, labels=batch["labels"], weights=late)
    loss.backward()
    assert model.blocks[0].memories["memory"].room.weight.grad.abs().max() > 0


def test_dropout_is_the_same_when_a_part_is_computed_again():
    """The slope of the loss along its gradient, with the same draws."""
    config = replace(VARIANTS["hidden-gpt2"], dropout=0.2)
    model, batch = build(config, part_segments=2), window(config, lanes=2, segments=4)
    p = model.blocks[0].mlp.up.weight

    def value() -> torch.Tensor:
        torch.manual_seed(3)
        return logits(model, batch, labels=batch["labels"])[0]

    value().backward()
    direction = p.grad / p.grad.norm()
    with torch.enable_grad():
        ends = []
        for step in (1e-2, -2e-2):
            with torch.no_grad():
                p += step * direction
            ends.append(value().item())
    slope = (ends[0] - ends[1]) / 2e-2
    assert slope == pytest.approx(p.grad.norm().item(), rel=2e-2)


def test_a_long_window_takes_the_memory_of_one_part():
    """Measured: at most, while a step of 6 segments goes forward and back."""
    config = replace(GPT2, hidden_size=64, head_size=None, segment_length=16, layers=1)
    peaks = []
    for size in (None, 1):
        model = build(config, part_segments=size)
        batch = window(config, lanes=2, segments=6)

        def step(model=model, batch=batch) -> None:
            logits(model, batch, labels=batch["labels"])[0].backward()

        peaks.append(peak_bytes(step))
    assert peaks[1] < 0.6 * peaks[0], peaks
