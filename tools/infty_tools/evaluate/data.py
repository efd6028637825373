"""The documents of an evaluation: the first so many, the first tokens of each, and the size of their texts."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from infty.data.documents import TOKENIZER, Documents
from infty.data.tokenizer import Tokenizer

PIECE = 1 << 16
"""Tokens that are decoded at once."""
LONGEST_CHARACTER = 4
"""In bytes, each of which may be a token."""
UNFINISHED = "\ufffd"
"""What a decoder writes for a character whose last bytes are still to come."""


def limited(documents: Documents, count: int | None, tokens: int | None) -> Documents:
    """The first `count` documents, and the first `tokens` tokens of each; None: all.

    Where a document is cut short, words are not known any more.
    """
    count = len(documents) if count is None else min(count, len(documents))
    view = copy.copy(documents)
    view.lengths = documents.lengths[:count]
    words = documents.info.word_counts[:count]
    if tokens is not None and (view.lengths > tokens).any():
        view.lengths = np.minimum(view.lengths, tokens)
        words = []
    view.info = replace(
        documents.info,
        documents=count,
        tokens=int(view.lengths.sum()),
        names=documents.info.names[:count],
        words=sum(words),
        word_counts=words,
    )
    return view


def text_bytes(documents: Documents) -> Tensor | None:
    """float64 [documents]: UTF-8 bytes of the documents' texts, as their tokens give them back.

    None where the documents are no texts or were cut short (they have no words then), or without their tokenizer.
    """
    if not documents.info.words or not (documents.folder / TOKENIZER).is_dir():
        return None
    counts = [_bytes_of(documents, d) for d in range(len(documents))]
    return torch.tensor(counts, dtype=torch.float64)


def _bytes_of(documents: Documents, document: int) -> int:
    """A piece at a time, and each with the token before it: a tokenizer may write a token otherwise where a text
    begins."""
    tokenizer = documents.tokenizer
    length = int(documents.lengths[document])
    total = 0
    start = 0
    before = np.zeros(0, dtype=np.int64)
    while start < length:
        stop = _between_characters(documents, document, start, min(start + PIECE, length))
        ids = documents.read(document, start, stop)
        total += _size(tokenizer, np.concatenate([before, ids])) - _size(tokenizer, before)
        before = ids[-1:]
        start = stop
    return total


def _between_characters(documents: Documents, document: int, start: int, stop: int) -> int:
    """`stop`, or a little later, so that the piece does not end inside a character."""
    last = int(documents.lengths[document])
    for end in range(stop, min(stop + LONGEST_CHARACTER, last)):
        tail = documents.read(document, max(start, end - 2 * LONGEST_CHARACTER), end)
        if not documents.tokenizer.decode(tail).endswith(UNFINISHED):
            return end
    return min(stop + LONGEST_CHARACTER, last) if stop < last else last


def _size(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    return len(tokenizer.decode(ids[ids != tokenizer.eos_id]).encode()) if len(ids) else 0
