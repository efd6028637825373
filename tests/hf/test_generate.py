"""Generation: transformers' `generate` with the memory's cache, and the `infty generate` command."""

from __future__ import annotations

import gzip
import os
import re
import shutil

import pytest
import torch

from infty.errors import UserError
from infty.hf.cache_infty import InftyCache
from infty_tools.export.exporter import Exporter
from infty_tools.generate import generate
from infty_tools.writer import Writer, choose
from support.runs import TEXT, make_run, tokenizer
from support.twins import VARIANTS, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

NAMES = [
    "llama",
    "gpt2",
    "paper with stm",
    "hidden",
    "no memory",
    "joint",
    "gist and facts",
    "continuation",
]


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
    assert torch.equal(
        got, model.generate(ids, max_new_tokens=20, do_sample=False, use_cache=False)
    )


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
        assert torch.equal(got[row], by_hand(model, ids[row : row + 1, first:], 20)[0, -20:])


@torch.no_grad()
def test_generation_goes_on_from_a_cache_and_in_chunks():
    model, ids = twin("llama"), tokens(1, 50)
    expected = by_hand(model, ids, 10)
    cache = InftyCache()
    model(ids[:, :30], past_key_values=cache)
    how = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(ids, cache=cache, **how), expected)
    assert torch.equal(
        model.generate(ids, past_key_values=InftyCache(), prefill_chunk_size=7, **how), expected
    )
    assert torch.equal(model.generate(ids, prefill_chunk_size=7, **how), expected)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    padded = model.generate(ids, prefill_chunk_size=7, attention_mask=mask, **how)
    assert torch.equal(padded[:, 50:], by_hand(model, ids[:, 20:], 10)[:, 30:])


@torch.no_grad()
@pytest.mark.parametrize(
    "problem, how",
    [
        ("InftyCache only", {"cache_implementation": "static"}),
        ("InftyCache only", {"cache_implementation": "quantized"}),
        ("crop|rollback|assisted", {"prompt_lookup_num_tokens": 3}),
        ("not used by the model", {"top_pp": 0.9}),
    ],
)
def test_ways_to_generate_that_cannot_work_are_refused(problem, how):
    with pytest.raises(ValueError, match=problem):
        twin("llama").generate(tokens(1, 20), max_new_tokens=4, **how)


HOW = {"max_new_tokens": 10, "do_sample": False}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_generation_goes_on_from_a_cache_without_the_old_tokens(name):
    model, ids, cache = twin(name), tokens(2, 50), InftyCache()
    expected = model.generate(ids, **HOW)
    model(ids[:, :30], cache=cache)
    got = model.generate(ids[:, 30:], cache=cache, attention_mask=torch.ones(2, 50), **HOW)
    assert torch.equal(got, expected[:, 30:])
    assert cache.get_seq_length() == 59  # the last token was not read
    more = torch.cat([got[:, -1:], tokens(2, 5, seed=4)], 1)
    again = model.generate(more, cache=cache, attention_mask=torch.ones(2, 65), **HOW)
    assert torch.equal(
        again[:, 6:], by_hand(model, torch.cat([expected, tokens(2, 5, seed=4)], 1), 10)[:, -10:]
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "ids", [tokens(1, 30), tokens(1, 12), tokens(1, 1)], ids=["all", "shorter", "one"]
)
def test_tokens_that_a_cache_has_read_are_not_read_again(ids):
    model, cache = twin("llama"), InftyCache()
    model(tokens(1, 30), cache=cache)
    before = cache.states[0].memories["memory"].kept["signal"]["coefficients"]
    for mask in ({}, {"attention_mask": torch.ones_like(ids)}):
        with pytest.raises(
            ValueError, match=r"read 30 columns.*nothing of them is new.*torch\.ones\(rows, 30"
        ):
            model.generate(ids, cache=cache, **mask, **HOW)
    with pytest.raises(ValueError, match="attention_mask has 33 columns"):
        model.generate(ids, cache=cache, attention_mask=torch.ones(1, 33), **HOW)
    assert (
        cache.tokens == 30
        and cache.states[0].memories["memory"].kept["signal"]["coefficients"] is before
    )


@torch.no_grad()
@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_one_cache_goes_on_in_several_ways_and_stays_as_it_was(how):
    model, ids, cache = twin("hidden"), tokens(1, 40), InftyCache()
    model(ids[:, :30], cache=cache)
    expected = model.generate(ids, **how, **HOW)
    for _ in range(2):
        assert torch.equal(model.generate(ids, cache=cache, **how, **HOW), expected)
    assert cache.tokens == 30 and cache.rows == 1


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_padding_of_rows_that_ended_is_not_read(name):
    """Rows end at different places; going on from the cache is then going on from what each row says."""
    model, ids, cache = twin(name), tokens(3, 13), InftyCache()
    ends = torch.arange(6)
    torch.manual_seed(0)
    got = model.generate(
        ids,
        cache=cache,
        eos_token_id=ends.tolist(),
        pad_token_id=0,
        max_new_tokens=48,
        do_sample=True,
        temperature=5.0,
    )
    going_on = ~torch.isin(got[:, 13:], ends)
    assert len(set(going_on.cumprod(1).sum(1).tolist())) == 3
    real = torch.cat(
        [torch.ones(3, 14, dtype=torch.bool), going_on[:, :-1].cumprod(1).bool()], 1
    )  # with its end
    more = tokens(3, 9, seed=6)
    unread = torch.cat([got[:, cache.tokens :], more], 1)
    mask = torch.cat([real, torch.ones(3, 9, dtype=torch.bool)], 1)
    logits = model(unread, attention_mask=mask, cache=cache).logits
    for row in range(3):
        expected = model(torch.cat([got[row, real[row]], more[row]])[None]).logits[0, -9:]
        torch.testing.assert_close(
            logits[row, -9:], expected, rtol=0, atol=1e-5 * expected.abs().max().item()
        )


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
        patch.setattr(Exporter, "verify", lambda *_: "skipped")
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
    expected = writer.model.generate(ids, max_new_tokens=30, do_sample=False)[
        0, ids.shape[1] :
    ].tolist()
    assert list(writer.write(30, 0.0, 1.0)) == [
        i for i in expected if i != writer.tokenizer.eos_token_id
    ]


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
    torch.testing.assert_close(
        writer.logits, expected, rtol=0, atol=1e-3 * expected.abs().max().item()
    )
    sizes = []
    writer.cache.states[0].map(lambda x: sizes.append(x.numel()) or x)
    assert sum(sizes) < 40_000
    generate(exported, "THE END", book, 5, 0.0, 1.0, 0, None)
    assert capsys.readouterr().out.startswith("THE END")


def test_nucleus():
    generator, logits = (
        torch.Generator().manual_seed(0),
        torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1])),
    )
    drawn = [choose(logits, 1.0, 0.7, generator) for _ in range(200)]
    assert set(drawn) == {1, 2} and 0.5 < drawn.count(1) / 200 < 0.75
    assert {choose(logits, 1.0, 0.0, generator) for _ in range(20)} == {1}
    assert {choose(logits, 1.0, 1.0, generator) for _ in range(200)} == {0, 1, 2, 3}


def test_wrong_input_is_refused_with_what_to_do(exported, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9")
    for match, arguments in {
        "give --prompt": (exported, None, None),
        "does not exist": (tmp_path / "nowhere", "x", None),
        "export one first": (exported.parent / "run", "x", None),
        "no file": (exported, None, tmp_path / "none.txt"),
        "not UTF-8.*0xe9": (exported, None, bad),
    }.items():
        with pytest.raises(UserError, match=match):
            generate(*arguments, 5, 0.0, 1.0, 0, None)


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "config.json",
            '{"model_type": "infty", "model_type": "infty"}',
            "'model_type' is given twice",
        ),
        ("config.json", "{", "is damaged"),
        ("tokenizer.json", '{"padding": -1}', "cannot be loaded"),
        ("tokenizer.json", "[", "is damaged"),
        ("tokenizer.json", '{"model": {"a": 0, "a": 1}}', "key 'a' is given twice"),
        ("tokenizer_config.json", '{"eos_token": "a", "eos_token": "b"}', "is given twice"),
        ("model.safetensors", "xx", "cannot be loaded"),
    ],
)
def test_a_damaged_export_is_one_sentence(exported, tmp_path, name, content, words):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{words}[^\n]*$"):
        Writer(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("there", ["a link to nothing", "a link to itself", "a pipe"])
def test_an_export_of_which_a_file_is_none(exported, tmp_path, name, there):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / name).unlink()
    if there == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("nothing" if there == "a link to nothing" else name)
    with pytest.raises(UserError, match=rf"^[^\n]*{name} is no file, or a link to none[^\n]*$"):
        Writer(folder)


def test_all_that_was_read_and_its_time_are_told(exported):
    writer = Writer(exported)
    for text in ("one", "two, of which there is more"):
        before = writer.counts["read"], writer.seconds["read"]
        writer.read(writer.encode(text))
        assert writer.counts["read"] > before[0] and writer.seconds["read"] > before[1]
