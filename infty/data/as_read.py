"""How every text is read, in this package's words and in those of the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infty import files
from infty.errors import UserError

if TYPE_CHECKING:
    import tokenizers

BYTE_ORDER_MARK = "\ufeff"


def as_read(text: str) -> str:
    """A text as every text is read: no byte order mark before it, line ends of one kind (LF)."""
    return text.lstrip(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def reading_steps() -> list[tokenizers.normalizers.Normalizer]:
    """`as_read`, in the words of the `tokenizers` library."""
    from tokenizers import Regex, normalizers

    return [
        normalizers.Replace(Regex(rf"\A{BYTE_ORDER_MARK}+"), ""),
        normalizers.Replace(Regex("\r\n?"), "\n"),
    ]


def backend(path: Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json` that does what training does and no more. It reads every text as `as_read` does. It does not
    cut or pad texts, adds no token before or behind them, and draws no merges at random. It reads "</s>" in a book as
    four characters. Raises UserError."""
    import tokenizers

    try:
        file = files.read_json(path)
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
