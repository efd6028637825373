"""Tokenizers: sentencepiece models and Hugging Face tokenizers behind one small face."""

from __future__ import annotations

import hashlib
import io
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from infty.errors import UserError

SENTENCEPIECE, HUGGING_FACE = "tokenizer.model", "tokenizer.json"


class Tokenizer(ABC):
    """Text to token ids and back."""

    vocab_size: int
    eos_id: int
    """Ends every document of a dataset."""
    path: Path
    """The file it was loaded from."""

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int64 ids of a text, without any token for its beginning or end."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's file into a folder, which is made if needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, Path(folder) / self.path_name)

    path_name: str

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Load a sentencepiece `.model`, a Hugging Face `tokenizer.json`, or a folder that holds one of them (a
        prepared dataset's folder too). Raises UserError."""
        path = Path(path)
        if path.is_dir():
            names = [SENTENCEPIECE, HUGGING_FACE, f"tokenizer/{SENTENCEPIECE}", f"tokenizer/{HUGGING_FACE}"]
            found = [path / n for n in names if (path / n).is_file()]
            if not found:
                raise UserError(f"{path} holds no tokenizer ({SENTENCEPIECE} or {HUGGING_FACE})")
            path = found[0]
        if not path.is_file():
            raise UserError(f"there is no tokenizer at {path}")
        return HuggingFaceTokenizer(path) if path.suffix == ".json" else SentencePieceTokenizer(path)


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model."""

    path_name = SENTENCEPIECE

    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.path = path
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError(f"{path} is not a sentencepiece model: {error}") from error
        self.vocab_size, self.eos_id = self._model.vocab_size(), self._model.eos_id()
        if self.eos_id < 0:
            raise UserError(f"{path}: the model has no end-of-sentence token; train it with --eos_id")

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._model.encode(text), dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, as `transformers` saves it."""

    path_name = HUGGING_FACE
    # The names under which public tokenizers keep the token that ends a document.
    END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[SEP]", "<|im_end|>")

    def __init__(self, path: Path) -> None:
        import tokenizers

        self.path = path
        try:
            self._model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path} is not a Hugging Face tokenizer: {error}") from error
        # A file may ask to cut texts at the length of some model, and would read "</s>" in a book as the book's end.
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        # Not the number of tokens: ids may have gaps.
        self.vocab_size = 1 + max(self._model.get_vocab(with_added_tokens=True).values())
        ends = [self._model.token_to_id(t) for t in self.END_TOKENS]
        if all(e is None for e in ends):
            raise UserError(f"{path}: none of {', '.join(self.END_TOKENS)} is in the vocabulary, and a document "
                            "needs a token that ends it")
        self.eos_id = next(e for e in ends if e is not None)

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._model.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)


def train_sentencepiece(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train a byte-pair model with byte fallback, so that every text can be written, and save it to `path`.

    Line breaks and runs of spaces are kept: they matter in books. The same texts give the same bytes. Raises UserError
    when there is too little text.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        # A writer instead of a prefix, and a fixed number of threads: the model records both.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts), model_writer=model, vocab_size=vocab_size, model_type="bpe",
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=False, split_digits=True, character_coverage=0.9999, max_sentence_length=65536,
            user_defined_symbols=["\n"], unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=4, minloglevel=2)
    except RuntimeError as error:
        raise UserError(f"cannot train a vocabulary of {vocab_size} tokens on these texts: "
                        f"{str(error).splitlines()[-1]}. Give more text or a smaller --vocab-size") from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.partial")
    partial.write_bytes(model.getvalue())
    partial.replace(path)


def _lines(texts: Iterable[str], longest: int = 4096) -> Iterable[str]:
    """The lines of the texts, as sentencepiece wants them; it would leave out lines that are very long."""
    for text in texts:
        for line in text.splitlines():
            if line.strip():
                yield from (line[i:i + longest] for i in range(0, len(line), longest))
