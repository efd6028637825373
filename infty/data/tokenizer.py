"""Text to token ids and back: one path, whoever asks.

`Tokenizer.encode` is what `infty prepare` makes datasets with, and what an exported tokenizer is checked against. It
reads a text as `as_read` writes it, adds no token for a beginning or an end, draws nothing at random, and never gives
the token that ends a document.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from infty import files
from infty.data.as_read import as_read, backend
from infty.errors import UserError

SENTENCEPIECE, HUGGING_FACE = "tokenizer.model", "tokenizer.json"
CONFIG = "tokenizer_config.json"
"""Beside a tokenizer's file: names the token that ends a document, under `eos_token`, as transformers does."""
SPACE_MARK = "\u2581"
"""Stands for a space inside sentencepiece, which would read this character in a book as one."""


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
        _check_unicode(text)
        return self._ids(as_read(text))

    def encode_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text, and where in `as_read(text)` the characters of each end; both int64 [tokens].

        Where several tokens make one character, each ends where it does. Raises UserError, also
        when the tokenizer changes the text, so that nobody can say what became of a character.
        """
        _check_unicode(text)
        return self._ids_with_ends(as_read(text))

    @abstractmethod
    def _ids(self, text: str) -> np.ndarray:
        """int64 ids of a text that `as_read` gave."""

    @abstractmethod
    def _ids_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode_with_ends` of a text that `as_read` gave."""

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
            self._model.id_to_piece(list(range(self._model.vocab_size())))  # all are text
        except (OSError, RuntimeError, TypeError, UnicodeDecodeError) as error:
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

    def _ids_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        ids = self._ids(text)
        ends = np.cumsum(self._characters[ids])
        added = int(ends[-1]) - len(text) if len(ids) else 0
        if added not in (0, 1):  # 1: some models write a space before every text
            raise UserError(
                f"{self.path} changes the text, so that its tokens cannot be matched with the text's "
                "characters: give a tokenizer that keeps every character"
            )
        return ids, (ends - added).clip(0)

    @cached_property
    def _characters(self) -> np.ndarray:
        """int64 [vocab_size]: how many characters each token adds; the bytes of one, one together."""
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for i in range(self.vocab_size):
            piece = self._model.id_to_piece(i)
            byte = re.fullmatch("<0x([0-9A-F]{2})>", piece) if self._model.is_byte(i) else None
            counts[i] = len(piece) if byte is None else not 0x80 <= int(byte[1], 16) < 0xC0
        return counts

    def _bytes(self, character: str) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(_plain(ids))


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, as `transformers` saves it."""

    path_name = HUGGING_FACE
    # Names under which public tokenizers keep the token that ends a document, for files that do not say which it is.
    END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")
    CONVENTIONAL = END_TOKENS[:4]

    def __init__(self, path: Path, end_token: str | None = None) -> None:
        self.path = path
        self.backend = backend(path)
        """The library's tokenizer, without what training does not do: see `infty.data.as_read.backend`."""
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

    def _ids_with_ends(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self.backend.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in encoded.offsets], dtype=np.int64)
        return np.asarray(encoded.ids, dtype=np.int64), ends

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend.decode(_plain(ids), skip_special_tokens=False)


def _plain(ids: Sequence[int]) -> list[int]:
    """Python's own integers, as libraries want them; of an array all at once."""
    return np.asarray(ids, dtype=np.int64).tolist()


def _check_unicode(text: str) -> None:
    """Raise UserError for half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not Unicode: its character {error.start:,} is half of one "
            f"({error.object[error.start]!r}); give text in UTF-8"
        ) from error


def _noted_end(folder: Path) -> str | int | None:
    """The end token's name, or its id, as the files beside a tokenizer say it."""
    for name, key in (
        (CONFIG, "eos_token"),
        ("special_tokens_map.json", "eos_token"),
        ("generation_config.json", "eos_token_id"),
        ("config.json", "eos_token_id"),
    ):
        if not (folder / name).is_file():
            continue
        try:
            found = files.read_json(folder / name)
        except ValueError as error:
            raise UserError(
                f"{folder / name}, which may say what token ends a document, cannot be read ({error}): mend it, "
                "or name the token with --end-token"
            ) from error
        value = found.get(key) if isinstance(found, dict) else None
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
    return None
