"""Whether the most likely token was the right one, on every layout."""

from __future__ import annotations

import torch

from infty.models.lm import most_likely
from infty.parallel import groups
from infty_tools import processes
from infty_tools.bench.layout_training import window
from support.small import LLAMA, build, logits


def test_it_is_that_of_the_logits(single_process):
    model, batch = build(LLAMA), window(LLAMA, lanes=2, segments=3)
    with torch.no_grad():
        best = logits(model, batch)[0].argmax(-1)
        batch["labels"][0, 0] = best[0, 0]  # some that are right
        _, out = logits(model, batch, labels=batch["labels"])
    assert torch.equal(out.token_correct, best == batch["labels"]) and out.token_correct.any()
    assert not out.token_correct.all()
    assert (
        logits(model, batch, labels=batch["labels"])[1].token_correct is None
    )  # training does not pay for it


def _split(whole: torch.Tensor) -> torch.Tensor:
    return most_likely(whole.chunk(groups.tensor_size(), -1)[groups.tensor_rank()])


def test_a_split_vocabulary_has_the_same_most_likely_token():
    whole = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(0))
    whole[0, 0] = 1.0  # a tie: the first
    for found in processes.run(2, _split, whole, tensor=2):
        assert torch.equal(found, whole.argmax(-1))
