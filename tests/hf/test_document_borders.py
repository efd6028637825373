"""Where a document begins: told by the cache, by positions, by numbers of documents or by their lengths."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.hf.cache_infty import InftyCache
from support.twins import SOME, VARIANTS, close, pair, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")


def alone(model, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Logits [T, V] of documents that lie end to end in ids [T], each read by itself."""
    return torch.cat([model(document[None]).logits[0] for document in ids.split(lengths)])


def positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_rows_that_begin_anew_read_as_each_alone(name, data):
    """Whatever has been read (fill), of however many texts (batch), and whichever begin anew (rows)."""
    model = _twins(name)
    batch = data.draw(st.integers(1, 3), "batch")
    cuts = data.draw(st.lists(st.integers(1, 21), min_size=2, max_size=4), "tokens between")
    masked = data.draw(st.booleans(), "one row is padded")
    begun = [
        data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch), "rows") for _ in cuts[1:]
    ]
    ids = tokens(batch, sum(cuts), seed=data.draw(st.integers(0, 9), "seed"))
    mask = torch.ones_like(ids)
    mask[0, : cuts[0] - 1] = 0 if masked else 1
    cache, parts, at = InftyCache(), [], 0
    for i, count in enumerate(cuts):
        if i:
            cache.start_document(torch.tensor(begun[i - 1]))
        columns = slice(at, at + count)
        parts.append(model(ids[:, columns], attention_mask=mask[:, columns], cache=cache).logits)
        at += count
    got = torch.cat(parts, 1)
    for row in range(batch):
        borders = (
            [0]
            + [sum(cuts[: i + 1]) for i in range(len(cuts) - 1) if begun[i][row]]
            + [len(ids[row])]
        )
        for first, last in pairwise(borders):
            kept = mask[row, first:last].bool()
            expected = model(ids[row : row + 1, first:last][:, kept]).logits[0]
            close(got[row, first:last][kept], expected)


_made = {}


def _twins(name: str):
    if name not in _made:
        _made[name] = twin(name)
    return _made[name]


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_positions_that_restart_begin_documents(name):
    """Packed rows, as TRL makes them: each document as if it were alone, whatever lies before it in its row."""
    model, lengths = twin(name), [[13, 1, 20, 11], [24, 16, 3, 2]]
    ids = tokens(2, 45)
    position_ids = torch.stack([positions(n) for n in lengths])
    got = model(ids, position_ids=position_ids).logits
    for row in range(2):
        close(got[row], alone(model, ids[row], lengths[row]))


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[45], [7, 1, 30, 7], [12, 33]])
def test_documents_may_begin_in_any_of_several_calls(cuts):
    model, lengths, ids, cache = twin("paper with stm"), [13, 20, 12], tokens(1, 45), InftyCache()
    parts = zip(ids.split(cuts, 1), positions(lengths)[None].split(cuts, 1))
    got = [model(part, position_ids=where, cache=cache).logits[0] for part, where in parts]
    close(torch.cat(got), alone(model, ids[0], lengths))
    assert int(cache.fill) + 8 * int(cache.segments) == 12


@torch.no_grad()
def test_every_signal_of_a_border_is_heard():
    model, lengths, ids = twin("llama"), [13, 20, 12], tokens(1, 45)
    expected = alone(model, ids[0], lengths)
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    borders = torch.tensor([0, 13, 33, 45], dtype=torch.int32)
    flash = {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": 20,
        "max_length_k": 20,
    }
    for signal in (
        {"position_ids": positions(lengths)[None]},
        {"position_ids": positions(lengths)},
        {"seq_idx": numbers.int()},
        flash,
        flash | {"seq_idx": numbers},
    ):
        close(model(ids, **signal).logits[0], expected)
        close(model.model(ids, **signal).last_hidden_state[0] @ model.lm_head.weight.T, expected)
        close(model(inputs_embeds=model.model.embed_tokens(ids), **signal).logits[0], expected)
    assert (model(ids).logits[0] - expected).abs().max() > 0.1


@torch.no_grad()
def test_padding_is_no_border():
    """Positions count over a row's tokens; what stands where there is none does not matter."""
    model, ids = twin("llama"), tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    mask[1, 12:15] = 0
    position_ids = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    expected = model(ids, attention_mask=mask).logits
    close(model(ids, attention_mask=mask, position_ids=position_ids).logits, expected)
    close(model(ids, attention_mask=mask, seq_idx=torch.where(mask == 1, 5, -1)).logits, expected)


def test_packed_documents_train_as_each_alone():
    """Loss and gradients of a packed row are the sum of its documents'."""
    config = replace(VARIANTS["hidden"], stm_length=0)
    _, model = pair(config)
    lengths, ids = [19, 26], tokens(1, 45)
    where = positions(lengths)[None]
    labels = torch.where(where == 0, -100, ids)
    model(ids, labels=labels, position_ids=where, num_items_in_batch=1).loss.backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for document in ids.split(lengths, 1):
        model(document, labels=document, num_items_in_batch=1).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(
    "problem, arguments",
    [
        ("position_ids must be", {"position_ids": torch.arange(3)[None]}),
        ("position_ids must be", {"position_ids": torch.zeros(3, 1, 4)}),
        ("count up by one.* 3 follows 1", {"position_ids": torch.tensor([[0, 1, 3, 4]])}),
        ("must be 0 at the first token.* begin at 5", {"position_ids": torch.arange(5, 9)}),
        ("seq_idx must be", {"seq_idx": torch.zeros(2, 4)}),
        ("cu_seq_lens_q must rise from 0 to the 4", {"cu_seq_lens_q": torch.tensor([0, 2, 5])}),
    ],
)
def test_borders_that_make_no_sense_are_refused(problem, arguments):
    with pytest.raises(ValueError, match=problem):
        twin("llama")(tokens(1, 4), **arguments)


@torch.no_grad()
def test_a_cache_says_which_rows_it_can_begin_anew():
    cache = InftyCache()
    cache.start_document(torch.tensor([True]))  # nothing was read: nothing to forget
    twin("llama")(tokens(2, 5), cache=cache)
    for rows in (torch.tensor([True]), torch.tensor([0, 1])):
        with pytest.raises(ValueError, match=r"bool tensor \[2\]"):
            cache.start_document(rows)
