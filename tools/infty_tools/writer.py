"""Reading a prompt into an exported model's memory, and sampling what follows."""

from __future__ import annotations

import gzip
import shlex
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from infty.data.as_read import as_read
from infty.errors import UserError
from infty.files import read_json
from infty.hf.bookmark_infty import TextRead
from infty.hf.cache_infty import InftyCache
from infty.hf.modeling_infty import InftyForCausalLM
from infty.hf.pieces_infty import AT_ONCE
from infty_tools.options import device_here

SEGMENTS_AT_ONCE = 8
SHARPEST = 1e-6
"""Logits divided by less may be infinite; the likeliest token is all that is left at this temperature."""
UNFINISHED = "\ufffd"  # what a decoder writes for a character whose last bytes are still to come


def read_book(file: Path) -> str:
    """The text of a file. Raises UserError when there is none or it cannot be read."""
    text = as_read(_read(file))
    if not text.strip():
        raise UserError(f"{file} is empty: there is nothing to read in it")
    return text


def _read(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as f:
            return f.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}): convert "
            "it first, for example with iconv"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole gzip file: {error}") from error


class Writer:
    """An exported model with what it has read so far."""

    def __init__(self, folder: Path, device: str | None = None) -> None:
        _check(folder)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.device = device_here(device)
        try:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            self.model = InftyForCausalLM.from_pretrained(folder).eval().to(self.device)
        except (
            Exception
        ) as error:  # the libraries raise bare Exception, KeyError, ... for what a file holds
            raise UserError(f"{folder} cannot be loaded: {first_line(error)}") from error
        self.cache, self.logits, self.last = InftyCache(), None, None
        self.unread: list[int] = []  # what was written last, until it is read
        self.ends = _ends(self.model, self.tokenizer)
        self.counts, self.seconds = {"read": 0, "wrote": 0}, {"read": 0.0, "wrote": 0.0}

    def encode(self, text: str) -> Tensor:
        """int64 [1, T], read as training read its texts."""
        ids = self.tokenizer.encode(as_read(text), add_special_tokens=False)
        if not ids:
            raise UserError("the prompt holds no token of this model's vocabulary")
        return torch.tensor([ids])

    def go_on_from(self, bookmark: Path) -> None:
        """Begin with what a bookmark holds. Raises UserError."""
        try:
            self.cache = InftyCache.load(bookmark, self.model)
        except ValueError as error:
            raise UserError(f"--memory: {error}") from error
        if self.cache.rows != 1:
            raise UserError(f"--memory {bookmark} holds {self.cache.rows} texts: one is needed")

    def read_book(self, file: Path, text: str) -> None:
        """Read a whole text, which bookmarks then name. Raises UserError if it has been read."""
        ids = self.encode(text)
        new = TextRead.of(file.name, text, ids.shape[1])
        for old in self.cache.texts:
            if old.sha256 == new.sha256:
                raise UserError(
                    f"--read {file}: the bookmark holds this text already ({old.name}); leave --read out"
                )
        self.read(ids)
        self.cache.note(file.name, text, ids.shape[1])

    def save(self, bookmark: Path) -> None:
        """Make a bookmark of what was read. Raises UserError."""
        try:
            self.cache.save(bookmark)
        except ValueError as error:
            raise UserError(f"--save-memory: {error}") from error

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        """Read tokens [1, T] into the memory, with a progress bar for long texts; before them what was written last and
        is not read yet."""
        ids = torch.cat([torch.tensor([self.unread], dtype=ids.dtype), ids], 1)
        length = self.model.config.segment_length
        chunk = max(SEGMENTS_AT_ONCE, AT_ONCE // length) * length
        show = Progress(
            TextColumn("reading"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=ids.shape[1] <= chunk,
        )
        begun = time.monotonic()
        with show as progress:
            task = progress.add_task("", total=ids.shape[1])
            for part in ids.split(chunk, 1):
                self._step(part)
                progress.advance(task, part.shape[1])
        self._count("read", ids.shape[1], begun)

    def _step(self, ids: Tensor) -> None:
        out = self.model(
            ids.to(self.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.logits, self.last = out.logits[0, -1].float().cpu(), int(ids[0, -1])
        self.unread = []

    @torch.no_grad()
    def write(
        self, count: int, temperature: float, top_p: float, seed: int | None = None
    ) -> Iterator[int]:
        """Yield tokens as they are written: at most `count`, or up to one that ends a document or a turn."""
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)
        begun = time.monotonic()
        for i in range(count):
            token = choose(self.logits, temperature, top_p, generator)
            if token in self.ends:
                return
            self.unread = [token]
            begun = self._count("wrote", 1, begun)
            yield token
            if i < count - 1:
                self._step(torch.tensor([[token]]))

    def text(self, tokens: Iterable[int]) -> Iterator[str]:
        """The tokens' text, piece by piece; a character that takes several tokens comes whole."""
        # Some tokenizers write a token otherwise at the beginning of a text: decode it after the one before.
        line = [] if self.last is None else [self.last]
        shown = self._decode(line)
        if shown.endswith(UNFINISHED):
            line, shown = [], ""
        for token in tokens:
            line.append(token)
            text = self._decode(line)
            if text.endswith(UNFINISHED):
                continue
            yield text[len(shown) :]
            if text.endswith("\n"):  # start afresh with each line, so that the cost does not grow
                line, text = [token], self._decode([token])
            shown = text
        yield self._decode(line)[len(shown) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _count(self, what: str, tokens: int, begun: float) -> float:
        """Add tokens and the time since they were begun; the time now."""
        now = time.monotonic()
        self.counts[what] += tokens
        self.seconds[what] += now - begun
        return now

    def report(self) -> str:
        """What was done, in one line."""
        return "; ".join(
            f"{what} {n:,} tokens, {n / max(self.seconds[what], 1e-9):,.0f} a second"
            for what, n in self.counts.items()
        )


def _ends(model: InftyForCausalLM, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The tokens after which nothing is written: the tokenizer's and those of the generation settings."""
    more = model.generation_config.eos_token_id
    more = more if isinstance(more, list) else [more]
    return {end for end in (tokenizer.eos_token_id, *more) if end is not None}


def choose(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token from logits float32 [V], drawn from the nucleus of mass `top_p`; below SHARPEST the likeliest."""
    if temperature < SHARPEST:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(0).sort(descending=True)
    outside = probabilities.cumsum(0) - probabilities >= top_p
    outside[0] = False
    return int(
        order[torch.multinomial(probabilities.masked_fill(outside, 0.0), 1, generator=generator)]
    )


def first_line(error: Exception) -> str:
    """What an error of a library says, without what it appends; its name where it says nothing or a bare key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or isinstance(error, KeyError):
        return " ".join([type(error).__name__, *lines[:1]])
    return lines[0]


def _damaged(path: Path, error: ValueError) -> UserError:
    return UserError(f"{path} is damaged ({error}): export the model again")


def _check(folder: Path) -> None:
    try:
        kind = read_json(folder / "config.json").get("model_type")
    except (OSError, AttributeError):
        kind = None
    except ValueError as error:
        raise _damaged(folder / "config.json", error) from error
    if kind == "infty":
        for path in sorted(folder.glob("*.json")):  # of a key given twice transformers takes one
            if not path.is_file():
                raise UserError(f"{path} is no file, or a link to none: export the model again")
            try:
                read_json(path)
            except ValueError as error:
                raise _damaged(path, error) from error
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        return
    hint = ""
    if (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file():
        command = f"infty export --checkpoint {shlex.quote(str(folder))} --output FOLDER"
        hint = f": it holds checkpoints; export one first ({command})"
    elif not folder.exists():
        hint = ": it does not exist"
    raise UserError(f"{folder} is not a model made by infty export{hint}")
