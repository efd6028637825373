"""Attention sinks: the first tokens of a document stay in sight, and nothing else that was left behind does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from infty.errors import UserError
from infty.models.lm import InftyLM
from support.small import VARIANTS

pytestmark = pytest.mark.usefixtures("single_process")

SINKS = 2
ONE_LAYER = replace(VARIANTS["sinks"], layers=1, sinks=SINKS)
L = ONE_LAYER.segment_length
SEGMENTS = 4


def logits(model: InftyLM, tokens: torch.Tensor, each: int = SEGMENTS) -> torch.Tensor:
    """[T, V] of a document's segments, `each` of them a window."""
    state = model.initial_state(1)
    found = []
    for first in range(0, SEGMENTS, each):
        reset = torch.zeros(1, each, dtype=torch.bool)
        reset[0, 0] = first == 0
        part, out = model(tokens[:, first : first + each], reset, state)
        state = out.state
        found.append(part.flatten(0, 2))
    return torch.cat(found).detach()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return InftyLM(ONE_LAYER).eval()


@pytest.fixture
def tokens():
    return torch.randint(5, ONE_LAYER.vocab_size, (1, SEGMENTS, L))


def changed(tokens: torch.Tensor, place: int) -> torch.Tensor:
    """Another token at this place of the document."""
    other = tokens.clone()
    other[0, 0, place] = (tokens[0, 0, place] + 1) % ONE_LAYER.vocab_size
    return other


def test_the_first_tokens_are_seen_to_the_end_and_their_neighbours_are_not(model, tokens):
    plain = logits(model, tokens)
    behind = 2 * L  # from here on the first segment has left the short-term memory
    for place in range(SINKS):
        moved = (logits(model, changed(tokens, place)) - plain)[behind:].abs().amax(1)
        assert (moved > 1e-4).all()
    assert torch.equal(logits(model, changed(tokens, SINKS))[behind:], plain[behind:])


def test_the_local_window_is_read_as_without_sinks(model, tokens):
    without = InftyLM(replace(ONE_LAYER, sinks=0)).eval()
    without.load_state_dict(model.state_dict())
    one, two = logits(model, tokens), logits(without, tokens)
    torch.testing.assert_close(one[: 2 * L], two[: 2 * L], rtol=1e-5, atol=1e-5)
    assert (one - two)[2 * L :].abs().max() > 1e-3


def test_windows_carry_them_on(model, tokens):
    torch.testing.assert_close(
        logits(model, tokens, 1), logits(model, tokens), rtol=1e-5, atol=1e-5
    )


def test_a_new_document_has_its_own(model, tokens):
    """Nothing of the one before is seen."""
    state = model.initial_state(1)
    reset = torch.tensor([[True, False, False, False]])
    _, out = model(tokens.flip(2), reset, state)
    again, _ = model(tokens, reset, out.state)
    assert torch.equal(again.flatten(0, 2).detach(), logits(model, tokens))


def test_what_sinks_need():
    with pytest.raises(UserError, match=r"model\.sinks: 9 must not exceed segment_length 8"):
        replace(ONE_LAYER, sinks=9)
    with pytest.raises(UserError, match=r"model\.sinks: need positions other than relative"):
        replace(VARIANTS["relative"], sinks=1)
