"""The transformers model: the same logits as the training model, however the text is cut."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from infty.errors import UserError
from infty.hf.cache_infty import InftyCache
from infty.hf.configuration_infty import InftyConfig
from infty.hf.kinds_infty import section_of, sections_of
from infty.hf.modeling_infty import InftyForCausalLM
from infty.hf.pieces_infty import Reading
from infty.models.lm import InftyLM
from infty_tools.export.weights import convert_config, convert_weights
from support.small import VARIANTS as TRAINED
from support.twins import SOME, VARIANTS, close, pair, tokens, training_logits, twin

pytestmark = pytest.mark.usefixtures("single_process")

WITHOUT_TWIN = ["relative", "transformer-xl", "compressive", "compressive as published"]


@torch.no_grad()
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_the_training_models_over_six_segments(config):
    trained, model = pair(config)
    ids = tokens(3, 6 * config.segment_length)
    close(model(ids).logits, training_logits(trained, ids))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in WITHOUT_TWIN])
def test_every_model_that_training_is_tested_with_has_a_twin(name):
    trained, model = pair(replace(TRAINED[name], init_std=0.1))
    ids = tokens(2, 48)
    close(model(ids).logits, training_logits(trained, ids))


@pytest.mark.parametrize("name", WITHOUT_TWIN)
def test_what_has_no_twin_is_refused(name):
    with pytest.raises(UserError, match="cannot be exported"):
        convert_config(TRAINED[name])


def test_a_kind_of_memory_without_a_twin_is_refused():
    with pytest.raises(
        UserError, match=r"memory 'mean' is average.*only continuous and associative"
    ):
        section_of("mean", {"kind": "average"})
    with pytest.raises(UserError, match="compressive"):
        InftyForCausalLM(InftyConfig(memories={"memory": {"kind": "compressive"}}))


def test_an_export_of_a_version_before_is_refused():
    with pytest.raises(UserError, match=r"before memories had names.*export its checkpoint again"):
        InftyConfig(memory={"basis": 16})
    assert InftyConfig(memory=None).memories is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "hidden", "per head", "some layers", "no memory"])
def test_logits_equal_the_training_models_without_rotation(name):
    """Angles are not all that differs: this model reads segment by segment, in products of other shapes."""
    config = replace(VARIANTS[name], positions="none")
    trained, model = pair(config)
    ids = tokens(3, 6 * config.segment_length)
    close(model(ids).logits, training_logits(trained, ids))


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_token_by_token_equals_all_at_once(name):
    model, ids = twin(name), tokens(2, 37)
    whole, cache, parts = model(ids).logits, InftyCache(), []
    for t in range(ids.shape[1]):
        parts.append(model(ids[:, t : t + 1], past_key_values=cache).logits)
    close(torch.cat(parts, 1), whole)
    assert cache.get_seq_length() == 37


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_any_cut_equals_all_at_once(name):
    model, ids = twin(name), tokens(2, 61)
    cache, parts = InftyCache(), []
    for part in ids.split([3, 5, 1, 30, 8, 14], 1):
        parts.append(model(part, past_key_values=cache).logits)
    close(torch.cat(parts, 1), model(ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_segments_at_once_equal_segments_one_by_one(name, monkeypatch):
    model, ids = twin(name), tokens(2, 70)
    cut = 5  # the first piece fills a segment up, the last one begins one
    found = []
    for at_once in (4096, 2 * 3 * 8, 1):
        monkeypatch.setattr("infty.hf.pieces_infty.AT_ONCE", at_once)
        cache = InftyCache()
        parts = [model(part, cache=cache).logits for part in (ids[:, :cut], ids[:, cut:])]
        found.append((torch.cat(parts, 1), cache))
    for logits, cache in found[:2]:
        close(logits, found[-1][0])
        assert torch.equal(cache.fill, found[-1][1].fill)
        assert torch.equal(cache.segments, found[-1][1].segments)


def test_segments_are_read_at_once_up_to_a_bound():
    reading = Reading(8, None, None, rows=2)
    pieces = [piece for _, piece in reading.pieces(None, None, 8 * 600 + 3, torch.device("cpu"))]
    assert [(piece.several, piece.tokens) for piece in pieces] == [
        (256, 2048),
        (256, 2048),
        (88, 704),
        (1, 3),
    ]
    assert [int(piece.segments[0]) for piece in pieces] == [0, 256, 512, 600]
    assert reading.fill.tolist() == [3, 3]


@torch.no_grad()
def test_a_cache_has_two_names():
    """Versions of transformers differ in what they call it, in both directions."""
    model, ids = twin("llama"), tokens(2, 30)
    cache = model(ids[:, :11]).past_key_values
    close(model(ids[:, 11:], cache=cache).logits, model(ids).logits[:, 11:])
    assert model(ids).get("past_key_values") is not None and cache.get_seq_length() == 30


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_rows_do_not_change_one_another_by_a_bit(name):
    model, ids = twin(name), tokens(3, 40)
    expected = model(ids).logits
    changed = ids.clone()
    changed[1] = tokens(1, 40, seed=5)
    got = model(changed).logits
    assert torch.equal(got[0], expected[0]) and torch.equal(got[2], expected[2])
    assert not torch.equal(got[1], expected[1])


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(name, side):
    model, lengths = twin(name), [41, 23, 8, 0]
    ids, mask = tokens(4, 41), torch.zeros(4, 41, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, 41 - n if side == "left" else 0 : 41 if side == "left" else n] = 1
    cache = InftyCache()
    first = model(ids, attention_mask=mask, past_key_values=cache).logits
    more = tokens(4, 20, seed=3)
    second = []
    for part in more.split([1, 1, 11, 7], 1):
        ones = torch.ones(
            4, cache.tokens + part.shape[1]
        )  # over what was read too, as `generate` passes it
        second.append(model(part, attention_mask=ones, past_key_values=cache).logits)
    for row, n in enumerate(lengths):
        own = ids[row, mask[row].bool()]
        expected = model(torch.cat([own, more[row]])[None]).logits[0]
        close(first[row, mask[row].bool()], expected[:n])
        close(torch.cat(second, 1)[row], expected[n:])


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_a_row_that_begins_a_document_equals_training_with_a_reset(name):
    trained, model = pair(VARIANTS[name])
    ids, cache = tokens(2, 48), InftyCache()
    before = model(ids[:, :24], past_key_values=cache).logits
    cache.start_document(torch.tensor([False, True]))
    after = model(ids[:, 24:], past_key_values=cache).logits
    close(torch.cat([before, after], 1), training_logits(trained, ids, {1: 3}))


@torch.no_grad()
def test_a_document_may_begin_in_the_middle_of_a_segment():
    model, ids, cache = twin("paper with stm"), tokens(2, 60), InftyCache()
    model(ids[:, :29], past_key_values=cache)
    cache.start_document(torch.tensor([True, False]))
    after = model(ids[:, 29:], past_key_values=cache).logits
    close(after[0], model(ids[:1, 29:]).logits[0])
    close(after[1], model(ids[1:]).logits[0, 29:])


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_a_reordered_cache_goes_on_as_the_chosen_rows(name):
    model, ids, cache = twin(name), tokens(3, 29), InftyCache()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    model(ids, attention_mask=mask, past_key_values=cache)
    expected = model(tokens(3, 13, seed=2), past_key_values=copy.deepcopy(cache)).logits
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    more = tokens(3, 13, seed=2)[[2, 0, 0]]
    close(model(more, past_key_values=cache).logits, expected[[2, 0, 0]])


@torch.no_grad()
def test_a_memory_that_stores_predictions_needs_the_head():
    model = twin("continuation untied")
    with pytest.raises(ValueError, match="call InftyForCausalLM with input_ids"):
        model.model(tokens(1, 9))
    with pytest.raises(ValueError, match="call InftyForCausalLM with input_ids"):
        model(inputs_embeds=torch.zeros(1, 9, 32))
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match="keep lm_head on a device"):
        model(tokens(1, 9))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "joint", "gist and facts", "continuation"])
def test_memory_can_be_switched_off(name):
    trained, model = pair(VARIANTS[name])
    ids = tokens(2, 40)
    segments, reset = ids.unflatten(1, (-1, 8)), torch.tensor([[True] + [False] * 4] * 2)
    expected = trained(segments, reset, trained.initial_state(2), memory_enabled=False)[0].flatten(
        1, 2
    )[..., :61]
    close(model(ids, memory_enabled=False).logits, expected)


@pytest.mark.parametrize(
    "name",
    ["llama", "paper with stm", "hidden", "constant", "joint", "gist and facts", "continuation"],
)
def test_loss_and_gradients_equal_the_training_models_in_one_window(name):
    config = VARIANTS[name]
    trained, model = pair(config)
    ids = tokens(2, 40)
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    segments, reset = ids.unflatten(1, (-1, 8)), torch.tensor([[True] + [False] * 4] * 2)
    loss, _ = trained(
        segments,
        reset,
        trained.initial_state(2),
        labels=labels.clamp(min=0).unflatten(1, (-1, 8)),
        weights=(labels >= 0).float().unflatten(1, (-1, 8)),
    )
    (loss / (labels >= 0).sum()).backward()
    out = model(ids, labels=ids, use_cache=False)
    assert out.past_key_values is None
    assert out.loss.item() == pytest.approx(loss.item() / 78, rel=1e-5)
    out.loss.backward()
    expected = convert_weights(((n, p.grad) for n, p in trained.named_parameters()), config)
    gradients = dict(model.named_parameters())
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key].grad, gradient, rtol=1e-4, atol=1e-5, msg=key)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["llama", "paper with stm", "hidden", "gibbs", "joint", "gist and facts", "continuation"],
)
def test_half_precision_and_autocast_stay_within_rounding(name):
    """bf16 has 8 bits: 0.4 % a product. The memory itself computes in float32 whatever the weights are."""
    model, ids = twin(name), tokens(2, 40)
    expected = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        automatic = model(ids)
    half = model.bfloat16()(ids)
    for out in (automatic, half):
        assert (out.logits.float() - expected).abs().max() < 0.03 * expected.abs().max()
        kept = [
            memory.kept.named()
            for s in out.past_key_values.states
            for memory in s.memories.values()
        ]
        assert all(
            x.dtype == torch.float32
            for leaves in kept
            for name, x in leaves.items()
            if name in ("signal.coefficients", "matrix")
        )


def test_config_survives_json_and_names_all_of_the_training_config(tmp_path):
    for name, config in VARIANTS.items():
        first = convert_config(config, eos_token_id=2)
        first.save_pretrained(tmp_path)
        again = InftyConfig.from_pretrained(tmp_path)
        assert again.to_diff_dict() == first.to_diff_dict(), name
        for i in range(config.layers):
            assert sections_of(again, i) == config.memories_of(i)
            assert again.stm_of(i) == config.stm_of(i)
        assert again.eos_token_id == 2 and again.tie_word_embeddings == config.tie_embeddings


def test_a_new_model_has_finite_logits_and_initialised_maps():
    model = InftyForCausalLM(convert_config(VARIANTS["per head"]))
    maps = model.model.layers[0].memories["memory"].maps
    assert 0.05 < maps.weight_mu.std() < 0.15
    torch.testing.assert_close(
        torch.sigmoid(maps.bias_mu).detach(), torch.tensor([0.125, 0.375, 0.625, 0.875])
    )
    assert torch.isfinite(model(tokens(1, 30)).logits).all()


@pytest.mark.parametrize("name", ["per head", "learned", "joint and facts"])
def test_memories_of_a_new_model_begin_as_in_training(name):
    config = VARIANTS[name]
    made = dict(InftyForCausalLM(convert_config(config)).named_parameters())
    for key, expected in convert_weights(InftyLM(config).named_parameters(), config).items():
        if ".memories." in key and (expected.dim() == 1 or not expected.any()):
            assert torch.equal(made[key], expected), key


@pytest.mark.parametrize(
    "problem, call",
    [
        ("InftyCache", lambda m: m(tokens(1, 4), past_key_values=object())),
        ("two names", lambda m: m(tokens(1, 4), cache=InftyCache(), past_key_values=InftyCache())),
        (
            "holds 1 texts",
            lambda m: m(tokens(2, 4), past_key_values=m(tokens(1, 4)).past_key_values),
        ),
        ("attention_mask", lambda m: m(tokens(1, 4), attention_mask=torch.ones(1, 1, 4, 4))),
        ("exactly one", lambda m: m()),
        ("cropped", lambda m: m(tokens(1, 4)).past_key_values.crop(1)),
    ],
)
def test_wrong_use_is_refused_with_a_reason(problem, call):
    with pytest.raises(ValueError, match=problem):
        call(twin("llama"))
