"""One path from text to ids: the same, without loss and without chance, in datasets and in exported tokenizers."""

from __future__ import annotations

import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.data.as_read import as_read
from infty.data.tokenizer import HuggingFaceTokenizer, Tokenizer
from infty.data.vocabulary import train_sentencepiece
from infty.errors import UserError
from infty_tools.export.tokenizer import SAMPLES, compare, fast_tokenizer
from support.small_data import text as some_text

TEXT = some_text(1, 1500)
# What libraries use for themselves, what files differ in, and what is rare.
ODD = " \n\r\t\x0b\x0c\x85\u2028\u2581\u2585\u2047\ufeff\ufdd0\ufdd1\ue000\u0120\u010a\u0301é中🙂</s><unk><0x41>the sea"


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Tokenizer:
    """As `infty prepare` trains it."""
    path = tmp_path_factory.mktemp("own") / "tokenizer.model"
    train_sentencepiece([TEXT], 330, path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def fast(own):
    return fast_tokenizer(own, [TEXT])


def byte_level(*special: str, ordinary: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """A small byte-pair tokenizer, as the GPT-2 family has them."""
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(TEXT.splitlines(), vocab_size=300, show_progress=False)
    model = tokenizers.Tokenizer.from_str(made.to_str())
    model.add_special_tokens(list(special))
    model.add_tokens(list(ordinary))
    return model


def saved(folder, model: tokenizers.Tokenizer, config: dict | None = None):
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def odd_texts(count: int, length: int = 14):
    rng = random.Random(0)
    return ["".join(rng.choices(ODD, k=rng.randrange(length))) for _ in range(count)]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(
        st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"])), max_size=40
    )
)
def test_every_text_comes_back(own, fast, text):
    """Also from the exported tokenizer, called as its model card says."""
    ids = own.encode(text)
    assert own.decode(ids) == as_read(text) and own.gives_back(text, ids)
    assert own.eos_id not in ids
    assert fast(text)["input_ids"] == ids.tolist()
    assert fast.decode(ids) == as_read(text)


def test_line_ends_and_byte_order_marks(own):
    for text in (
        "\ufeffone\r\ntwo\rthree\n",
        "one\ntwo\nthree\n",
        "\ufeff\ufeffone\rtwo\rthree\r\n",
    ):
        assert as_read(text) == "one\ntwo\nthree\n"
        assert own.encode(text).tolist() == own.encode("one\ntwo\nthree\n").tolist()


def test_half_a_character_is_named(own, tmp_path):
    for tokenizer in (own, Tokenizer.load(saved(tmp_path, byte_level("</s>")))):
        with pytest.raises(UserError, match="its character 4 is half of one"):
            tokenizer.encode("abcd\ud83d")


def test_what_training_does_not_do_is_removed(tmp_path):
    """Tokens before and behind a text, merges left out by chance, cutting and padding; here, in the saved dataset's
    tokenizer and in the export."""
    model = byte_level("<bos>", "</s>")
    bos, end = model.token_to_id("<bos>"), model.token_to_id("</s>")
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A </s>", special_tokens=[("<bos>", bos), ("</s>", end)]
    )
    model.model.dropout = 0.9
    model.enable_truncation(8)
    model.enable_padding(length=16)
    tokenizer = Tokenizer.load(saved(tmp_path / "given", model))
    ids = tokenizer.encode(TEXT).tolist()
    assert bos not in ids and end not in ids and ids == tokenizer.encode(TEXT).tolist()
    assert tokenizer.decode(ids) == TEXT
    fast = fast_tokenizer(tokenizer, [TEXT])
    fast.save_pretrained(tmp_path / "out")
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, *SAMPLES, *odd_texts(100)):
        assert again(text)["input_ids"] == tokenizer.encode(text).tolist(), repr(text)
    tokenizer.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint and copy.encode(TEXT).tolist() == ids


def test_line_breaks_that_are_tokens(tmp_path):
    """Looked for in the text as read, where \\r\\n is one line break."""
    tokenizer = Tokenizer.load(saved(tmp_path, byte_level("</s>", ordinary=("\n\n",))))
    fast = fast_tokenizer(tokenizer)
    assert (
        tokenizer.encode("a\r\n\r\nb").tolist()
        == tokenizer.encode("a\n\nb").tolist()
        == fast("a\r\n\r\nb")["input_ids"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {
            "normalization_rule_name": "identity",
            "byte_fallback": True,
            "remove_extra_whitespaces": False,
        },  # as Llama 2
        {"byte_fallback": True},
        {},
    ],
)
def test_other_sentencepiece_models_are_exported_as_they_read(tmp_path, settings):
    lines = [*TEXT.splitlines(), "<s> </s> 0x41"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "m"),
        vocab_size=320,
        hard_vocab_limit=False,
        model_type="bpe",
        minloglevel=2,
        **settings,
    )
    tokenizer = Tokenizer.load(tmp_path / "m.model")
    tokenizer.check_end()
    fast = fast_tokenizer(tokenizer, [TEXT])
    # Composing accents, and an old control character, are where the two libraries' NFKC differ.
    for text in [t.replace("\u0301", "").replace("\x85", "") for t in odd_texts(200)]:
        ids = tokenizer.encode(text)
        assert fast(text)["input_ids"] == ids.tolist(), repr(text)
        if "normalization_rule_name" in settings:
            assert tokenizer.gives_back(text, ids), repr(text)


def test_a_tokenizer_that_loses_text_says_so(tmp_path):
    model = byte_level("</s>")
    model.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer = Tokenizer.load(saved(tmp_path, model))
    assert tokenizer.gives_back("low", tokenizer.encode("low"))
    assert not tokenizer.gives_back("High", tokenizer.encode("High"))


def test_the_end_is_what_the_tokenizer_says(tmp_path):
    """An ordinary token with a usual name is none."""
    model = byte_level("<eos>", ordinary=("</s>",))
    for config in (
        {"eos_token": "<eos>"},
        {"eos_token": {"content": "<eos>", "special": True}},
        None,
    ):
        tokenizer = Tokenizer.load(saved(tmp_path / str(config is None), model, config))
        assert tokenizer.end_token == "<eos>" and tokenizer.eos_id == model.token_to_id("<eos>")
        tokenizer.check_end()
    (tmp_path / "ids").mkdir()
    saved(tmp_path / "ids", byte_level("</s>", "<|stop|>"))
    (tmp_path / "ids/generation_config.json").write_text(
        json.dumps({"eos_token_id": byte_level("</s>", "<|stop|>").token_to_id("<|stop|>")})
    )
    assert Tokenizer.load(tmp_path / "ids").end_token == "<|stop|>"


def test_an_end_that_is_named(tmp_path):
    folder = saved(tmp_path / "given", byte_level("</s>", "<|stop|>"), {"eos_token": "</s>"})
    usual, other = Tokenizer.load(folder), Tokenizer.load(folder, "<|stop|>")
    assert (usual.end_token, other.end_token) == ("</s>", "<|stop|>")
    assert usual.fingerprint != other.fingerprint
    other.check_end()
    other.save(tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert (copy.end_token, copy.fingerprint) == (other.end_token, other.fingerprint)
    with pytest.raises(
        UserError, match=r"no token '<none>': give another --end-token \(it has </s>, <\|stop\|>\)"
    ):
        Tokenizer.load(folder, "<none>")
    with pytest.raises(UserError, match=r"'<none>', which a file beside it names"):
        Tokenizer.load(saved(tmp_path / "wrong", byte_level("</s>"), {"eos_token": "<none>"}))


def test_an_end_that_nobody_names(tmp_path):
    with pytest.raises(UserError, match=r"it has </s>, <\|endoftext\|>.*name it with --end-token"):
        Tokenizer.load(saved(tmp_path / "two", byte_level("</s>", "<|endoftext|>")))
    with pytest.raises(UserError, match="needs a token that ends it"):
        Tokenizer.load(saved(tmp_path / "chat", byte_level("<|im_end|>", "[SEP]")))


def test_an_end_that_a_text_can_give_is_refused(tmp_path, own):
    ordinary = Tokenizer.load(
        saved(tmp_path / "a", byte_level("<eos>", ordinary=("</s>",))), "</s>"
    )
    with pytest.raises(
        UserError, match=r"'</s>' cannot end documents \(the text '</s>' gives it.*it has <eos>"
    ):
        ordinary.check_end()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>"])
    with pytest.raises(UserError, match="a book that holds such a text would end there"):
        Tokenizer.load(saved(tmp_path / "b", words)).check_end()
    letter = byte_level("</s>")
    with pytest.raises(UserError, match="cannot end documents"):
        Tokenizer.load(saved(tmp_path / "c", letter), "Ġ").check_end()
    with pytest.raises(UserError, match="cannot end documents"):
        Tokenizer.load(own.path, "the").check_end()
    with pytest.raises(UserError, match="cannot end documents"):
        Tokenizer.load(own.path, "<0x41>").check_end()
    Tokenizer.load(own.path, "<s>").check_end()


def test_datasets_made_before_keep_their_fingerprint(tmp_path, own):
    """The end token counts only where it is not the one that was always taken."""
    import hashlib

    folder = saved(tmp_path, byte_level("</s>"))
    assert (
        Tokenizer.load(folder).fingerprint
        == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    )
    assert own.fingerprint == hashlib.sha256(own.path.read_bytes()).hexdigest()
    assert isinstance(Tokenizer.load(folder), HuggingFaceTokenizer)


def test_vocabularies_that_cannot_be(tmp_path):
    """Two causes, two pieces of advice."""
    rng = random.Random(0)
    chinese = "\n".join(
        "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(50)) for _ in range(600)
    )
    with pytest.raises(
        UserError, match=r"2048 is too small: .* Give a --vocab-size well above 3\d\d\d"
    ):
        train_sentencepiece([chinese], 2048, tmp_path / "m")
    with pytest.raises(
        UserError, match=r"5000 is too large .* has pieces for \d+ tokens at most\. Give more text"
    ):
        train_sentencepiece(["a small text"], 5000, tmp_path / "m")
    with pytest.raises(UserError, match="there is no text to train a tokenizer on"):
        train_sentencepiece(["  \n \n"], 500, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_an_export_that_differs_is_refused(own):
    """Checked as users call it, on text: an added token and other cuts are found."""
    from transformers import PreTrainedTokenizerFast

    for change, words in (
        (
            lambda b: setattr(
                b,
                "post_processor",
                tokenizers.processors.TemplateProcessing(
                    single="<s> $A", special_tokens=[("<s>", 1)]
                ),
            ),
            r"from token 0: \['<s>'",
        ),
        (lambda b: setattr(b, "normalizer", tokenizers.normalizers.Lowercase()), "from token"),
    ):
        backend = tokenizers.Tokenizer.from_str(fast_tokenizer(own).backend_tokenizer.to_str())
        change(backend)
        other = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="</s>", split_special_tokens=True
        )
        with pytest.raises(UserError, match=words):
            compare(own, other, ["The sea\r\nwas calm"])


@pytest.mark.parametrize("kind", ["own", "byte level", "dummy prefix"])
def test_where_the_characters_of_a_token_end(own, tmp_path, kind):
    """What is decoded up to a token ends where it says, wherever no character is cut."""
    if kind == "byte level":
        own = Tokenizer.load(saved(tmp_path, byte_level("</s>")))
    if kind == "dummy prefix":
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.splitlines()),
            model_prefix=str(tmp_path / "t"),
            vocab_size=330,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        own = Tokenizer.load(tmp_path / "t.model")
    for text in ("the sea was — 4839201.\nnext \u2581 é🙂 two  spaces", " lamps lit", "x", ""):
        ids, ends = own.encode_with_ends(text)
        assert ids.tolist() == own.encode(text).tolist() and len(ids) == len(ends)
        for count, end in enumerate(ends.tolist(), 1):
            decoded = own.decode(ids[:count])
            if "\ufffd" not in decoded:
                assert decoded == text[:end]
        assert not text or ends[-1] == len(text)


def test_a_tokenizer_that_changes_texts_has_no_places(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(tmp_path / "t"),
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="changes the text"):
        Tokenizer.load(tmp_path / "t.model").encode_with_ends("the    sea   was calm")
