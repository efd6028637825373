"""Arguments that transformers passes to a model: each has its effect or is refused."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import TransformersKwargs

from infty.hf.modeling_infty import InftyForCausalLM
from support.twins import close, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, [[1] * 30, [0] * 9 + [1] * 21]], ids=["whole", "padded"])
def test_hidden_states_are_those_between_layers(mask):
    model, ids = twin("paper with stm"), tokens(2, 30)
    mask = None if mask is None else torch.tensor(mask)
    out = model(ids, attention_mask=mask, output_hidden_states=True)
    base = model.model(ids, attention_mask=mask, output_hidden_states=True)
    for states in (out.hidden_states, base.hidden_states):
        assert [list(x.shape) for x in states] == [[2, 30, 32]] * 3
        close(model.lm_head(states[-1]), out.logits)
    assert torch.equal(base.hidden_states[-1], base.last_hidden_state)
    assert (
        out.hidden_states[0][1, 29].equal(model.model.embed_tokens(ids)[1, 29]) is False
    )  # positions are added
    assert model(ids).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == 3
    generated = model.generate(
        ids, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True
    )
    assert len(generated.hidden_states) == 2


@torch.no_grad()
def test_tuples_are_given_where_they_are_asked_for():
    model, ids = twin("llama"), tokens(1, 10)
    expected = model(ids).logits
    assert torch.equal(model(ids, return_dict=False)[0], expected)
    hidden = model.model(ids, return_dict=False)
    assert isinstance(hidden, tuple)
    assert torch.equal(model.lm_head(hidden[0]), expected)
    model.config.return_dict = False
    assert torch.equal(model(ids, labels=ids)[1], expected)


def test_the_loss_takes_what_transformers_passes():
    model, ids = twin("llama"), tokens(2, 12)
    labels = ids.clone()
    labels[:, 3:5] = 60
    plain = model(ids, labels=ids).loss
    close(model(ids, labels=ids, num_items_in_batch=torch.tensor(44)).loss, plain / 2)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    close(model(ids, shift_labels=shifted).loss, plain)
    ignored = torch.where(labels == 60, -100, labels)
    close(model(ids, labels=labels, ignore_index=60).loss, model(ids, labels=ignored).loss)


@torch.no_grad()
@pytest.mark.parametrize(
    "problem, arguments",
    [
        ("no attention weights", {"output_attentions": True}),
        ("one direction", {"is_causal": False}),
        ("does not take token_type_ids", {"token_type_ids": torch.zeros(2, 10)}),
        (
            "does not take cache_position, head_mask",
            {"head_mask": torch.ones(4), "cache_position": torch.arange(10)},
        ),
        ("does not take output_router_logits", {"output_router_logits": True}),
        ("does not take max_length_q", {"max_length_q": 10}),
        (
            "attention_mask must be .*dict",
            {"attention_mask": {"full_attention": torch.ones(2, 10)}},
        ),
        (
            "attention_mask must be .2, 10.*who sees whom",
            {"attention_mask": torch.ones(2, 1, 10, 10)},
        ),
        (r"attention_mask must be .2, 10.*\[2, 30\]", {"attention_mask": torch.ones(2, 30)}),
    ],
)
def test_what_would_have_no_effect_is_refused(problem, arguments):
    model = twin("llama")
    for part in (model, model.model):
        with pytest.raises(ValueError, match=problem):
            part(tokens(2, 10), **arguments)


@torch.no_grad()
def test_asking_for_nothing_is_fine():
    """What frameworks pass as a matter of course, turned off."""
    model, ids = twin("llama"), tokens(2, 10)
    nothing = dict.fromkeys(TransformersKwargs.__annotations__)
    off = {
        "output_attentions": False,
        "output_router_logits": False,
        "is_causal": True,
        "head_mask": None,
    }
    close(model(ids, **nothing | off).logits, model(ids).logits)


def test_other_attentions_are_refused_or_the_same(tmp_path):
    model = twin("llama")
    model.save_pretrained(tmp_path)
    for other in ("flash_attention_2", "flex_attention"):
        with pytest.raises((ValueError, ImportError)):
            InftyForCausalLM.from_pretrained(tmp_path, attn_implementation=other)
    with torch.no_grad():
        eager = InftyForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
        close(eager(tokens(2, 30)).logits, model(tokens(2, 30)).logits)


def test_compilers_are_refused_in_one_sentence():
    model, ids = twin("no memory"), tokens(1, 10)
    words = r"^an infty model is not for torch\.compile or torch\.export[^\n]*$"
    for part in (model, model.model):
        with pytest.raises(ValueError, match=words):
            torch.compile(part, backend="eager")(ids)
    with pytest.raises(ValueError, match=words):
        torch.export.export(model, (ids,))
    torch.compiler.reset()
