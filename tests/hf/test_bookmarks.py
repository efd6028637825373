"""Bookmarks: what a model has read in a file, from which the same model goes on to the bit."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from infty.hf.bookmark_infty import is_bookmark, weights_digest
from infty.hf.cache_infty import InftyCache
from infty.hf.continuous_infty import InftyContinuousMemory
from infty.tree import Tree
from support.twins import SOME, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")
HOW = {"max_new_tokens": 12, "do_sample": False}


def asked(model, cache, question):
    """What a model writes after a question, and its logits there."""
    columns = cache.get_seq_length() + question.shape[1]
    said = model.generate(
        question,
        cache=cache,
        attention_mask=torch.ones(len(question), columns),
        output_logits=True,
        return_dict_in_generate=True,
        **HOW,
    )
    return said.sequences, torch.stack(said.logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["no memory", "surprise", "salience", *SOME])
@pytest.mark.parametrize("length", [45, 48], ids=["inside", "at the end of a segment"])
def test_two_questions_from_one_bookmark_are_two_full_readings(name, length, tmp_path):
    model, book, path = twin(name), tokens(2, length), tmp_path / "book.safetensors"
    cache = InftyCache()
    model(book, cache=cache)
    cache.save(path)
    for seed in (3, 4):
        question = tokens(2, 7, seed=seed)
        whole = InftyCache()
        model(book, cache=whole)
        expected = asked(model, whole, question)
        got = asked(model, model.load_cache(path), question)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    assert cache.get_seq_length() == length


@torch.no_grad()
def test_the_file_says_what_it_is_and_does_not_grow(tmp_path):
    model, sizes = twin("continuation"), []
    for length in (40, 400):
        cache = InftyCache()
        model(tokens(1, length), cache=cache)
        cache.note("book.txt", "Call me Ishmael.", length)
        cache.save(tmp_path / f"{length}.safetensors")
        sizes.append((tmp_path / f"{length}.safetensors").stat().st_size)
    assert abs(sizes[1] - sizes[0]) < 100
    with safe_open(tmp_path / "400.safetensors", "pt") as file:
        told = file.metadata()
    assert told["format"] == "infty bookmark 1" and told["tokens"] == "400"
    assert told["dtype"] == "float32" and len(told["weights"]) == 64
    [text] = InftyCache.load(tmp_path / "400.safetensors", model).texts
    assert (text.name, text.tokens, len(text.sha256)) == ("book.txt", 400, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["40.safetensors", "400.safetensors"]


@pytest.fixture
def saved(tmp_path):
    """A model, and a bookmark of it."""
    model, cache = twin("llama"), InftyCache()
    with torch.no_grad():
        model(tokens(1, 21), cache=cache)
    cache.save(tmp_path / "book.safetensors")
    return model, tmp_path / "book.safetensors"


def changed_weight(model):
    with torch.no_grad():
        model.model.layers[1].mlp.out.weight[3, 5] += 1e-6
    return model


OTHERS = {
    "another model .*memories.* differ": lambda model: twin("no memory"),
    "another model .stm_length, tie_word_embeddings differ": lambda model: twin("llama tied"),
    "read in float32, and this model is in bfloat16": lambda model: model.bfloat16(),
    "with other weights": changed_weight,
    "offloaded or sharded": lambda model: model.to("meta"),
    "needs an infty model, not Linear": lambda model: torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("words", OTHERS)
def test_another_model_is_refused_in_one_sentence(saved, words):
    model, path = saved
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
        InftyCache.load(path, OTHERS[words](model))


def rewritten(path, tell=None, **tensors):
    with safe_open(path, "pt") as file:
        told = file.metadata() | (tell or {})
    save_file(load_file(path) | tensors, path, told)


FILES = {
    "there is no bookmark": lambda path: path.unlink(),
    "there is no bookmark .*": lambda path: (path.unlink(), path.mkdir()),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "cut short or": lambda path: path.write_bytes(b""),
    "cut short or no": lambda path: path.write_text("Call me Ishmael. Some years ago"),
    "is not a bookmark": lambda path: save_file({"x": torch.zeros(2)}, path),
    "is an 'infty bookmark 9'": lambda path: rewritten(path, {"format": "infty bookmark 9"}),
    "content is not what was written": lambda path: rewritten(path, fill=torch.tensor([6])),
    "content is not what was written.*again": lambda path: rewritten(path, {"texts": "["}),
}


@pytest.mark.parametrize("words", FILES)
def test_a_file_that_is_no_whole_bookmark_is_refused_in_one_sentence(saved, words):
    model, path = saved
    FILES[words](path)
    with pytest.raises(ValueError, match=rf"^[^\n]*{words}[^\n]*$"):
        InftyCache.load(path, model)


def test_no_byte_can_change_without_being_noticed(saved):
    model, path = saved
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(60):
        place, count = chance.randrange(len(whole)), chance.choice([1, 1, 5])
        odd = bytearray(whole)
        odd[place : place + count] = chance.randbytes(chance.choice([0, count, count]))
        if bytes(odd) == whole:
            continue
        path.write_bytes(odd)
        with pytest.raises(ValueError) as error:
            InftyCache.load(path, model)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_the_code_has_no_place_for_is_refused(saved, monkeypatch):
    """A bookmark of a version whose memories kept something else."""
    model, path = saved
    monkeypatch.setattr(InftyContinuousMemory, "fields", lambda self, dtype: Tree({}))
    with pytest.raises(ValueError, match=r"does not fit this version of the model's code.*differ$"):
        InftyCache.load(path, model)


def test_only_what_was_read_by_a_model_that_is_there_can_be_saved(tmp_path):
    cache = InftyCache()
    with pytest.raises(ValueError, match="has read nothing"):
        cache.save(tmp_path / "x.safetensors")
    model = twin("llama")
    with torch.no_grad():
        model(tokens(1, 9), cache=cache)
    copied, pickled = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
    copied.save(tmp_path / "x.safetensors")
    assert is_bookmark(tmp_path / "x.safetensors")
    del model
    for left in (cache, copied, pickled):
        with pytest.raises(ValueError, match="is gone"):
            left.save(tmp_path / "y.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("name", ["continuation untied", "surprise"])
def test_every_weight_counts_in_the_digest_and_nothing_else(name):
    model = twin(name)
    digest = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == digest
    for p in model.parameters():
        before = p.detach().clone()
        with torch.no_grad():
            p.view(-1)[-1] += 1e-3
        assert weights_digest(model) != digest
        with torch.no_grad():
            p.copy_(before)
    assert weights_digest(model) == digest


@torch.no_grad()
def test_a_bookmark_of_a_half_precision_model_goes_on(tmp_path):
    model, cache = twin("gist and facts").bfloat16(), InftyCache()
    model(tokens(1, 29), cache=cache)
    cache.save(tmp_path / "x.safetensors")
    question = tokens(1, 5, seed=2)
    expected = model(question, cache=cache).logits
    assert torch.equal(
        model(question, cache=model.load_cache(tmp_path / "x.safetensors")).logits, expected
    )
