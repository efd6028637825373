"""Text to token ids and back: one path, whoever asks.

`Tokenizer.encode` is what `infty prepare` makes datasets with, and what an exported tokenizer is checked against. It
reads a text as `as_read` writes it, adds no token for a beginning or an end, draws nothing at random, and never gives
the token that ends a document.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infty import files
from infty.errors import UserError

if TYPE_CHECKING:
    import tokenizers

SENTENCEPIECE, HUGGING_FACE = "tokenizer.model", "tokenizer.json"
CONFIG = "tokenizer_config.json"
"""Beside a tokenizer's file: names the token that ends a document, under `eos_token`, as transformers does."""
BYTE_ORDER_MARK = "\ufeff"
SPACE_MARK = "\u2581"
"""Stands for a space inside sentencepiece, which would read this character in a book as one."""


def as_read(text: str) -> str:
    """A text as every text is read: no byte order mark before it, line ends of one kind (LF)."""
    return text.lstrip(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


class Tokenizer(ABC):
    """Text to token ids and back."""

    vocab_size: int
    eos_id: int
    """Ends every document of a dataset."""
    end_token: str
    """Its name."""
    path: Path
    """The file it was loaded from."""
    path_name: str
    _usual_end: str | None
    """The end token that needs no mention in a fingerprint."""

    def encode(self, text: str) -> np.ndarray:
        """int64 ids of a text, without any token for its beginning or end. Raises UserError for half a character."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text is not Unicode: its character {error.start:,} is half of one "
                f"({error.object[error.start]!r}); give text in UTF-8"
            ) from error
        return self._ids(as_read(text))

    @abstractmethod
    def _ids(self, text: str) -> np.ndarray:
        """int64 ids of a text that `as_read` gave."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids. When `gives_back` holds, that of `encode(text)` is `as_read(text)`."""

    def gives_back(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the ids of a text hold all of it: no unknown character, no space, case or accent lost."""
        return self.decode(ids) == as_read(text)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's file, and of an end token other than the usual one."""
        digest = hashlib.sha256(self.path.read_bytes())
        if self.end_token != self._usual_end:
            digest.update(b"\0" + self.end_token.encode())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's file into a folder, which is made if needed, and note the end token beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, folder / self.path_name)
        if self.path_name == HUGGING_FACE or self.end_token != self._usual_end:
            (folder / CONFIG).write_text(
                json.dumps({"eos_token": self.end_token}) + "\n", encoding="utf-8"
            )

    def check_end(self) -> None:
        """Raise UserError when encoding a text can give the end token: a book would end in its middle."""
        name = self.end_token
        texts = (
            name,
            f"a{name}b",
            f" {name} ",
            f"\n{name}\n",
            f"{name}{name}",
            "\U0010fffd \u4e2d \ufdd0",
        )
        giving = [text for text in texts if self.eos_id in self.encode(text)]
        if not giving and name in self.special_tokens():
            return
        why = (
            f"the text {giving[0]!r} gives it, so a book that holds such a text would end there"
            if giving
            else "its file does not say that it is special, so a text could give it"
        )
        raise UserError(
            f"{self.path}: {name!r} cannot end documents ({why}): name another token with --end-token"
            f"{self._choices(name)}"
        )

    def _choices(self, besides: str) -> str:
        """The special tokens to choose from, for a message."""
        others = [t for t in self.special_tokens() if t != besides][:8]
        return f" (it has {', '.join(others)})" if others else " (it has none: add one to its file)"

    @abstractmethod
    def special_tokens(self) -> list[str]:
        """Names of the tokens that the file says are not text."""

    @staticmethod
    def load(path: str | Path, end_token: str | None = None) -> Tokenizer:
        """Load a sentencepiece `.model`, a Hugging Face `tokenizer.json`, or a folder that holds one of them (a
        prepared dataset's or an adapted model's folder too). `end_token` names the token that ends a document; left
        out, what the tokenizer's files say. Raises UserError."""
        path = Path(path)
        if path.is_dir():
            # As transformers chooses where both are there.
            kinds = (HUGGING_FACE, SENTENCEPIECE)
            names = [
                f"{inner}{kind}" for inner in ("", "tokenizer/", "original/") for kind in kinds
            ]
            found = [path / n for n in names if (path / n).is_file()]
            if not found:
                raise UserError(f"{path} holds no tokenizer ({SENTENCEPIECE} or {HUGGING_FACE})")
            path = found[0]
        if not path.is_file():
            raise UserError(f"there is no tokenizer at {path}")
        kind = HuggingFaceTokenizer if path.suffix == ".json" else SentencePieceTokenizer
        return kind(path, end_token)


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model."""

    path_name = SENTENCEPIECE

    def __init__(self, path: Path, end_token: str | None = None) -> None:
        import sentencepiece

        self.path = path
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError(f"{path} is not a sentencepiece model: {error}") from error
        self.vocab_size, own = self._model.vocab_size(), self._model.eos_id()
        self._usual_end = self._model.id_to_piece(own) if own >= 0 else None
        self.eos_id = self._find_end(end_token)
        self.end_token = self._model.id_to_piece(self.eos_id)
        # A model that rewrites characters (NFKC) rewrites the space mark by its own rules.
        self._keeps_marks = self._model.normalize("\ufb01").endswith("\ufb01")

    def _find_end(self, given: str | None) -> int:
        if given is not None:
            if not self._knows(given):
                raise UserError(
                    f"{self.path} has no token {given!r}: give another --end-token{self._choices(given)}"
                )
            return self._model.piece_to_id(given)
        noted = _noted_end(self.path.parent)
        if (
            isinstance(noted, str)
            and self._knows(noted)
            and self._model.is_control(self._model.piece_to_id(noted))
        ):
            return self._model.piece_to_id(noted)
        if self._usual_end is None:
            raise UserError(
                f"{self.path}: the model has no end-of-sentence token; train it with --eos_id, or name "
                "another token that ends documents with --end-token"
            )
        return self._model.eos_id()

    def _knows(self, piece: str) -> bool:
        return self._model.id_to_piece(self._model.piece_to_id(piece)) == piece

    def special_tokens(self) -> list[str]:
        return [
            self._model.id_to_piece(i) for i in range(self.vocab_size) if self._model.is_control(i)
        ]

    def _ids(self, text: str) -> np.ndarray:
        if SPACE_MARK not in text or not self._keeps_marks:
            return np.asarray(self._model.encode(text), dtype=np.int64)
        # The mark is written with the bytes of its own: another character that is nowhere in the text is read in its
        # place, and its bytes are then exchanged.
        stand_in = next(
            c for c in map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))) if c not in text
        )
        ids = np.asarray(self._model.encode(text.replace(SPACE_MARK, stand_in)), dtype=np.int64)
        theirs, its = self._bytes(stand_in), self._bytes(SPACE_MARK)
        places = (
            np.flatnonzero(np.all(np.lib.stride_tricks.sliding_window_view(ids, 3) == theirs, -1))
            if len(ids) >= 3
            else []
        )
        for place in places:
            ids[place : place + 3] = its
        return ids

    def _bytes(self, character: str) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, as `transformers` saves it."""

    path_name = HUGGING_FACE
    # Names under which public tokenizers keep the token that ends a document, for files that do not say which it is.
    END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")
    CONVENTIONAL = END_TOKENS[:4]

    def __init__(self, path: Path, end_token: str | None = None) -> None:
        self.path = path
        self.backend = _backend(path)
        """The library's tokenizer, without what training does not do: see `_backend`."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        # Not the number of tokens: ids may have gaps.
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        # Datasets made before an end token could be chosen keep their fingerprint.
        self._usual_end = next((t for t in self.END_TOKENS if t in vocabulary), None)
        self.end_token = self._find_end(end_token)
        self.eos_id = self.backend.token_to_id(self.end_token)

    def _find_end(self, given: str | None) -> str:
        """The end token: as given, else as a file beside says, else the only one with a usual name."""
        noted = given if given is not None else _noted_end(self.path.parent)
        if isinstance(noted, int):
            noted = self.backend.id_to_token(noted) or str(noted)
        if noted is not None:
            if self.backend.token_to_id(noted) is None:
                where = (
                    ""
                    if given is not None
                    else f", which a file beside it names as the end of a text ({CONFIG})"
                )
                raise UserError(
                    f"{self.path} has no token {noted!r}{where}: give another "
                    f"--end-token{self._choices(noted)}"
                )
            return noted
        usual = [t for t in self.CONVENTIONAL if self.backend.token_to_id(t) is not None]
        special = [t for t in usual if t in self.special_tokens()]
        if len(usual) > 1 and len(special) == 1:
            return special[0]
        if len(usual) != 1:
            found = (
                f"it has {', '.join(usual)}"
                if usual
                else f"none of {', '.join(self.CONVENTIONAL)} is in it"
            )
            raise UserError(
                f"{self.path} does not say which token ends a document ({found}, and there is no {CONFIG} "
                f"beside it), and a document needs a token that ends it: name it with --end-token"
                f"{'' if usual else self._choices('')}"
            )
        return usual[0]

    def special_tokens(self) -> list[str]:
        return [
            t.content
            for _, t in sorted(self.backend.get_added_tokens_decoder().items())
            if t.special
        ]

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def _noted_end(folder: Path) -> str | int | None:
    """The end token's name, or its id, as the files beside a tokenizer say it."""
    for name, key in (
        (CONFIG, "eos_token"),
        ("special_tokens_map.json", "eos_token"),
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
    ):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
    return None


def reading_steps() -> list[tokenizers.normalizers.Normalizer]:
    """`as_read`, in the words of the `tokenizers` library."""
    from tokenizers import Regex, normalizers

    return [
        normalizers.Replace(Regex(rf"\A{BYTE_ORDER_MARK}+"), ""),
        normalizers.Replace(Regex("\r\n?"), "\n"),
    ]


def _backend(path: Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json` that does what training does and no more. It reads every text as `as_read` does. It does not
    cut or pad texts, adds no token before or behind them, and draws no merges at random. It reads "</s>" in a book as
    four characters. Raises UserError."""
    import tokenizers

    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        file |= {"truncation": None, "padding": None, "post_processor": None}
        if "dropout" in file["model"]:
            file["model"]["dropout"] = None
        backend = tokenizers.Tokenizer.from_str(json.dumps(file))
        with_steps = tokenizers.Tokenizer.from_str(json.dumps(_with_reading_steps(file, backend)))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a Hugging Face tokenizer: {error}") from error
    with_steps.encode_special_tokens = True
    return with_steps


def _with_reading_steps(file: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The file with `as_read` before its other steps."""
    from tokenizers import normalizers

    own = backend.normalizer
    steps = json.loads(_whole(normalizers.Sequence(reading_steps())))["normalizer"]["normalizers"]
    for token in file.get("added_tokens", []):
        # Looked for in the text as it was given, where line ends are not yet of one kind; or in the text as read.
        text = token["content"]
        if (
            "\n" in text
            and not token["special"]
            and (own is None or own.normalize_str(text) == text)
        ):
            token["normalized"] = True
    if file.get("normalizer") is not None:
        steps.append(file["normalizer"])
    return file | {"normalizer": {"type": "Sequence", "normalizers": steps}}


def _whole(normalizer: tokenizers.normalizers.Normalizer) -> str:
    """A tokenizer's file with this normalizer."""
    from tokenizers import Tokenizer, models

    empty = Tokenizer(models.BPE())
    empty.normalizer = normalizer
    return empty.to_str()


def train_sentencepiece(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train a byte-pair model with byte fallback, so that every text can be written, and save it to `path`.

    Line breaks and runs of spaces are kept: they matter in books. The same texts give the same bytes. Raises UserError
    when the vocabulary is too small for the texts' characters, or too large for so little text.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        # A writer instead of a prefix, and a fixed number of threads: the model records both.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            character_coverage=0.9999,
            max_sentence_length=65536,
            user_defined_symbols=["\n"],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_why_not_trained(str(error), vocab_size)) from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(Path(path), model.getvalue())


def _why_not_trained(error: str, vocab_size: int) -> str:
    """What sentencepiece says, as advice."""
    needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", error)
    if needed:
        return (
            f"--vocab-size {vocab_size} is too small: the texts' characters and the 256 bytes alone take "
            f"{needed[1]} tokens. Give a --vocab-size well above {needed[1]}"
        )
    most = re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", error)
    if most:
        return (
            f"--vocab-size {vocab_size} is too large for so little text, which has pieces for {most[1]} tokens at "
            f"most. Give more text, or a --vocab-size of {most[1]} or less"
        )
    if "sentences_.empty()" in error:
        return "there is no text to train a tokenizer on. Give more text"
    return (
        f"cannot train a vocabulary of {vocab_size} tokens on these texts: {error.splitlines()[-1]}"
    )


def _lines(texts: Iterable[str], longest: int = 4096) -> Iterable[str]:
    """The lines of the texts, as sentencepiece wants them; it would leave out lines that are very long."""
    for text in texts:
        for line in text.splitlines():
            if line.strip():
                yield from (line[i : i + longest] for i in range(0, len(line), longest))
