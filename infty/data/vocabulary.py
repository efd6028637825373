"""A tokenizer trained on the texts that it is to read."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path

from infty import files
from infty.errors import UserError


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
