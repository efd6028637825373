"""Counting words, also in scripts that are written without spaces."""

from __future__ import annotations

import re

import numpy as np

# Chinese characters and kana: one counts as a word, as word processors count them.
_CHARACTERS = re.compile(
    "[\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Thai, Lao, Tibetan, Burmese, Khmer: words of about four letters, vowel signs and tones included.
_LETTERS = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]+")
LETTERS_A_WORD = 4
FIRST_CHARACTER = 0x3000
"""No Chinese character, kana or their punctuation is below."""
FIRST_LETTER, LAST_LETTER = 0x0E00, 0x17FF
"""Thai to Khmer."""
# Punctuation of these scripts parts words and is none.
_MARKS = re.compile(
    "[\u3000-\u3004\u3008-\u303f\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)


def count_words(text: str) -> int:
    """Words of a text: parts between white space.

    In scripts without spaces, every Chinese character or kana counts as one, and every four letters
    of Thai, Lao, Tibetan, Burmese or Khmer.
    """
    if text.isascii() or not _may_be_spaceless(text):
        return len(text.split())
    rest, characters = _CHARACTERS.subn(" ", text)
    groups = sum(-(-len(run) // LETTERS_A_WORD) for run in _LETTERS.findall(rest))
    rest = _MARKS.sub(" ", _LETTERS.sub(" ", rest))
    return characters + groups + sum(any(map(str.isalnum, part)) for part in rest.split())


def _may_be_spaceless(text: str) -> bool:
    """Whether some character lies where those of the scripts without spaces do: all of a book is looked at, faster than
    a regular expression does."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    letters = (points >= FIRST_LETTER) & (points <= LAST_LETTER)
    return bool((points >= FIRST_CHARACTER).any() or letters.any())
