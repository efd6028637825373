"""A tokenizer that plain transformers can load, and the proof that it gives the same ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from infty.data.as_read import reading_steps
from infty.data.tokenizer import SPACE_MARK, HuggingFaceTokenizer, Tokenizer
from infty.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

SAMPLES = (
    "It was the best of times, it was the worst of times,\nit was the age of wisdom...\n\n  CHAPTER II.\n",
    " leading and trailing spaces  ",
    "tabs\tand\r\nother line ends\x0c",
    "naïve façade — “quoted” ½ €100 … 'tis",
    "Ελληνικά, русский, 中文, 日本語, العربية, हिन्दी",
    "emoji 🙂👩‍👩‍👧 and combining e\u0301",
    "1234567890 3.14159 10,000",
    "aaaaaaaaaaaaaaaaaaaaaaa hahahahahahaha ------------------- ........",
    "a\n\n\n\nb      c",
    "<s> </s> <unk> <0x41> ▁",
    "",
    " ",
    "\n",
    "\ufeffafter a byte order mark",
    "one\rline\r\n\r\n",
    "the ▁ mark▁ of ▁▁spaces",
    "a\x0cb\u2028c\x85d\ufdd0e\U0010ffff",
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM, BPE = 1, 2


def fast_tokenizer(tokenizer: Tokenizer, texts: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """The same tokenizer for transformers, checked on samples and on `texts`. Raises UserError if it differs.

    Called as the model card says, `tokenizer(text)`, it gives the ids of `tokenizer.encode(text)`: it reads the text in
    the same way and adds no token before or behind it.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, HuggingFaceTokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        options = {}
    else:
        proto = _proto(tokenizer)
        backend = convert_sentencepiece(proto)
        options = {
            key: proto.pieces[i].piece
            for key, i in (
                ("unk_token", proto.trainer_spec.unk_id),
                ("bos_token", proto.trainer_spec.bos_id),
            )
            if i >= 0
        }
    end = backend.id_to_token(tokenizer.eos_id)
    # Split: "</s>" in a text is four characters, as in the dataset, never the end of a book.
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **options,
    )
    compare(tokenizer, fast, [*SAMPLES, *texts])
    return fast


def compare(tokenizer: Tokenizer, fast: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    """Raise UserError unless both give the same ids, and the same text back."""
    for text in texts:
        expected = tokenizer.encode(text).tolist()
        got = fast(text)["input_ids"]
        if got != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, expected)) if a != b),
                min(len(got), len(expected)),
            )
            raise UserError(
                f"{tokenizer.path} cannot be exported for transformers: it cuts {text[:60]!r} into other tokens there "
                f"(from token {at}: {fast.convert_ids_to_tokens(got[at : at + 3])} instead of "
                f"{fast.convert_ids_to_tokens(expected[at : at + 3])}). Give a Hugging Face tokenizer.json of the same "
                "vocabulary with --tokenizer"
            )
        # Libraries write a token for unknown characters differently.
        if fast.unk_token_id not in expected and fast.decode(expected) != tokenizer.decode(
            expected
        ):
            raise UserError(
                f"{tokenizer.path} cannot be exported for transformers: it writes the tokens of "
                f"{text[:60]!r} as {fast.decode(expected)[:60]!r} there"
            )


def _proto(tokenizer: Tokenizer):
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    return proto


def convert_sentencepiece(proto) -> tokenizers.Tokenizer:
    """A sentencepiece model (BPE or unigram) as a tokenizer of the `tokenizers` library. Raises UserError."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    spec, normal = proto.trainer_spec, proto.normalizer_spec
    # Sentencepiece writes a space as a mark, which a text can hold too. Here a space stays what it is.
    pieces = [p.piece.replace(SPACE_MARK, " ") for p in proto.pieces]
    if spec.model_type == BPE:
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        model = models.BPE(
            vocab=vocabulary,
            merges=_merges(proto.pieces, pieces),
            unk_token=pieces[spec.unk_id],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    elif spec.model_type == UNIGRAM:
        model = models.Unigram(
            [(piece, p.score) for piece, p in zip(pieces, proto.pieces)],
            unk_id=spec.unk_id,
            byte_fallback=spec.byte_fallback,
        )
    else:
        raise UserError("only sentencepiece models of the types bpe and unigram can be exported")
    result = Tokenizer(model)
    own = (
        [normalizers.Precompiled(normal.precompiled_charsmap), normalizers.Replace(SPACE_MARK, " ")]
        if normal.precompiled_charsmap
        else []
    )
    if normal.remove_extra_whitespaces:
        own += [normalizers.Strip(), normalizers.Replace(_spaces(), " ")]
    undo = [decoders.ByteFallback(), decoders.Fuse()]
    defined = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    if normal.add_dummy_prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    if normal.add_dummy_prefix and defined:
        # Text is normalised piecewise between user-defined symbols; only its very beginning gets the space.
        result.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=" ", prepend_scheme="first", split=False
        )
    elif normal.add_dummy_prefix:
        own.append(normalizers.Prepend(" "))
    result.normalizer = normalizers.Sequence([*reading_steps(), *own])
    # Looked for in the text as read, where line ends are of one kind, unless the other steps would change them.
    result.add_tokens(
        [
            AddedToken(p.piece, normalized=not own, special=p.type == CONTROL)
            for p in proto.pieces
            if p.type in (CONTROL, USER_DEFINED)
        ]
    )
    result.decoder = decoders.Sequence(undo)
    return result


def _spaces():
    from tokenizers import Regex

    return Regex(" {2,}")


def _merges(proto_pieces, pieces: list[str]) -> list[tuple[str, str]]:
    """Pairs in the order in which they are merged: the best piece first, whichever way it is put together."""
    known = {pieces[i]: i for i, p in enumerate(proto_pieces) if p.type in (NORMAL, USER_DEFINED)}
    merges = []
    for piece, i in known.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in known and right in known:
                merges.append((-proto_pieces[i].score, i, known[left], known[right], (left, right)))
    return [m[-1] for m in sorted(merges)]
