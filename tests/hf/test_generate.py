"""Generation: transformers' `generate` with the memory's cache, and the `infty generate` command."""

from __future__ import annotations

import gzip
import re

import pytest
import torch

from infty.errors import UserError
from infty.hf.cache_infty import InftyCache
from infty_tools.exporter import Exporter
from infty_tools.generate import generate
from infty_tools.writer import Writer, choose
from support.runs import TEXT, make_run, tokenizer
from support.twins import VARIANTS, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

NAMES = ["llama", "gpt2", "paper with stm", "hidden", "no memory"]


def by_hand(model, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy generation that reads everything again for each token."""
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_greedy_generation_equals_reading_everything_again(name):
    model, ids = twin(name), tokens(2, 13)
    got = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(got, by_hand(model, ids, 20))
    assert torch.equal(got, model.generate(ids, max_new_tokens=20, do_sample=False, use_cache=False))


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_beam_search_equals_beam_search_without_a_cache(name):
    model, ids = twin(name), tokens(2, 6)
    how = {"max_new_tokens": 14, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    assert torch.equal(model.generate(ids, **how), model.generate(ids, use_cache=False, **how))


@torch.no_grad()
def test_left_padded_prompts_generate_as_each_alone():
    model, ids = twin("llama"), tokens(2, 19)
    mask = torch.ones_like(ids)
    mask[0, :8] = 0
    got = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)[:, 19:]
    for row, first in ((0, 8), (1, 0)):
        assert torch.equal(got[row], by_hand(model, ids[row:row + 1, first:], 20)[0, -20:])


@torch.no_grad()
def test_generation_goes_on_from_a_cache_and_in_chunks():
    model, ids = twin("llama"), tokens(1, 50)
    expected = by_hand(model, ids, 10)
    cache = InftyCache()
    model(ids[:, :30], past_key_values=cache)
    how = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(ids, past_key_values=cache, **how), expected)
    assert torch.equal(model.generate(ids, past_key_values=InftyCache(), prefill_chunk_size=7, **how), expected)


def test_sampling_is_seeded():
    model, ids, texts = twin("hidden"), tokens(2, 5), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, max_new_tokens=20, do_sample=True, top_p=0.9))
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, single_process):
    folder = tmp_path_factory.mktemp("generate")
    make_run(folder / "run", VARIANTS["llama"], tokenizer(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exporter, "_verify", lambda *_: "skipped")
        Exporter(folder / "run").write(folder / "model")
    return folder / "model"


def test_the_command_streams_text_and_a_seed_repeats_it(exported, capsys):
    outputs = []
    for seed in (1, 1, 2):
        generate(exported, "Call me", None, 40, 0.9, 0.95, seed, None)
        outputs.append(capsys.readouterr())
    assert outputs[0].out == outputs[1].out != outputs[2].out
    assert outputs[0].out.startswith("Call me") and len(outputs[0].out) > 20
    assert re.search(r"read \d+ tokens.*wrote \d+ tokens", outputs[0].err)


def test_greedy_writing_equals_transformers(exported):
    writer = Writer(exported, "cpu")
    ids = writer.encode("Some years ago")
    writer.read(ids)
    expected = writer.model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1]:].tolist()
    assert list(writer.write(30, 0.0, 1.0)) == [i for i in expected if i != writer.tokenizer.eos_token_id]


def test_text_comes_in_whole_characters_and_complete(exported):
    writer = Writer(exported, "cpu")
    for text in ("naïve 中文 🙂 end\n\n  next — line", "ends in the middle of 🙂", "\n", " a"):
        pieces = list(writer.text(writer.encode(text)[0].tolist()))
        assert "".join(pieces) == text
        assert not any("\ufffd" in p for p in pieces)
    cut = writer.encode("🙂")[0, :-1].tolist()
    assert "".join(writer.text(cut)) == writer.tokenizer.decode(cut)


def test_a_book_is_read_in_parts_as_a_whole(exported, tmp_path, capsys):
    book = tmp_path / "book.txt.gz"
    book.write_bytes(gzip.compress(TEXT[:3000].encode()))
    writer = Writer(exported, "cpu")
    ids = writer.encode(TEXT[:3000])
    assert ids.shape[1] > 500
    writer.read(ids)
    with torch.no_grad():
        expected = writer.model(ids, logits_to_keep=1).logits[0, -1]
    torch.testing.assert_close(writer.logits, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
    sizes = {k: v.numel() for k, v in vars(writer.cache.states[0]).items() if isinstance(v, torch.Tensor)}
    assert sum(sizes.values()) < 20_000
    generate(exported, "THE END", book, 5, 0.0, 1.0, 0, None)
    assert capsys.readouterr().out.startswith("THE END")


def test_nucleus():
    generator, logits = torch.Generator().manual_seed(0), torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    drawn = [choose(logits, 1.0, 0.7, generator) for _ in range(200)]
    assert set(drawn) == {1, 2} and 0.5 < drawn.count(1) / 200 < 0.75
    assert {choose(logits, 1.0, 0.0, generator) for _ in range(20)} == {1}
    assert {choose(logits, 1.0, 1.0, generator) for _ in range(200)} == {0, 1, 2, 3}


def test_wrong_input_is_refused_with_what_to_do(exported, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    for match, arguments in {
        "give --prompt": (exported, None, None), "does not exist": (tmp_path / "nowhere", "x", None),
        "export one first": (exported.parent / "run", "x", None), "no file": (exported, None, tmp_path / "none.txt"),
        "not UTF-8.*0xe9": (exported, None, bad),
    }.items():
        with pytest.raises(UserError, match=match):
            generate(*arguments, 5, 0.0, 1.0, 0, None)
