"""What folders of transformers models have in common: loading, and whether they fit a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer
from transformers.utils import logging

from infty.data.documents import TOKENIZER, Documents
from infty.data.tokenizer import as_read
from infty.errors import UserError
from infty_tools.writer import first_line

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
TRUSTED = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched, no code of the folder's own is run, and nobody is asked whether it may."""
SAMPLED = 3
"""Documents whose beginnings are compared."""
SAMPLE = 2000
"""Tokens of each."""


def loaded(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` returns. Raises UserError for whatever the libraries raise about a file."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return load()
    except Exception as error:  # bare Exception, KeyError, ... for what a file holds
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}") from error


def check_tokens(folder: Path, vocabulary: int, documents: Documents) -> None:
    """Raise UserError unless the dataset's tokens are the model's.

    Their tokenizers have to cut the beginnings of some documents alike. A model without one takes the dataset's tokens
    as they are, as long as they are in its vocabulary.
    """
    own = shlex.quote(f"{folder}/tokenizer.json")
    advice = f"prepare the texts with the model's own (infty prepare --tokenizer {own})"
    if vocabulary < documents.vocab_size:
        raise UserError(
            f"{folder} has a vocabulary of {vocabulary:,} tokens, {documents.folder} one of "
            f"{documents.vocab_size:,}: {advice}"
        )
    theirs = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if not theirs or not (documents.folder / TOKENIZER).is_dir():
        return
    tokenizer = loaded(folder, lambda: AutoTokenizer.from_pretrained(folder, **TRUSTED))
    for document in range(min(SAMPLED, len(documents))):
        count = min(SAMPLE, int(documents.lengths[document]) - 1)
        text = as_read(documents.tokenizer.decode(documents.read(document, 0, count)))
        expected = documents.tokenizer.encode(text).tolist()
        if tokenizer.encode(text, add_special_tokens=False) != expected:
            raise UserError(
                f"{documents.folder} was prepared with another tokenizer than {folder} has: {advice}"
            )


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """nll float32 [b, t] of labels int64 [b, t], and whether they are the most likely tokens; logits [b, t, V]."""
    logits = logits.float()
    nll = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return nll, logits.argmax(-1) == labels
