"""What an infty model carries from call to call while it reads and generates: a constant amount, however long the
text."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from infty.hf import bookmark_infty as bookmarks
from infty.hf.bookmark_infty import Bookmark, TextRead
from infty.hf.state_infty import InftyLayerState

# What a model's output calls its cache: transformers renamed `past_key_values`, and passes it under the new name.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class ReadBy:
    """The model that has read, as long as something else keeps it; copies of a cache share it."""

    def __init__(self, model: Any = None) -> None:
        self.model = (lambda: None) if model is None else weakref.ref(model)

    def __deepcopy__(self, memo: Any) -> ReadBy:
        return self

    def __reduce__(self) -> Any:
        return ReadBy, ()


class InftyCache(Cache):
    """The state of a batch of texts, for `cache` (`past_key_values` in older versions of transformers).

    Make an empty one with `InftyCache()`, or let the model make it. Unlike a cache of keys and values it cannot be
    cropped: what has been written to the long-term memory cannot be taken out again.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.states: tuple[InftyLayerState, ...] | None = None
        self.fill: Tensor | None = None  # int64 [b], on the host: tokens read of each row's segment
        self.segments: Tensor | None = (
            None  # int64 [b], on the host: whole segments read of each row's document
        )
        self.tokens = 0  # columns of input seen, padding included: what transformers calls the sequence length
        self.texts: tuple[TextRead, ...] = ()  # what was read, as far as `note` was told
        self.read_by = ReadBy()

    def store(
        self, states: tuple[InftyLayerState, ...], fill: Tensor, segments: Tensor, tokens: int
    ) -> None:
        """Replace the state, after `tokens` more columns of input. It carries no gradient out of a call."""
        self.states = tuple(state.map(Tensor.detach) for state in states)
        self.fill, self.segments, self.tokens = fill, segments, self.tokens + tokens

    def note(self, name: str, text: str, tokens: int) -> None:
        """Note for bookmarks what text was read last, by a name and in how many tokens. Its digest is kept, not the
        text."""
        self.texts = (*self.texts, TextRead.of(name, text, tokens))

    def save(self, path: str | Path) -> None:
        """Write a bookmark: a safetensors file from which `load` goes on. Its size does not depend on the text's.

        Raises ValueError when nothing was read, or the model that has read is gone.
        """
        if self.states is None or self.fill is None or self.segments is None:
            raise ValueError("the cache has read nothing: there is nothing to save")
        model = self.read_by.model()
        if model is None:
            raise ValueError("the model that filled this cache is gone: save while it is there")
        found = Bookmark(self.states, self.fill, self.segments, self.tokens, self.texts)
        bookmarks.write(Path(path), model, found)

    @classmethod
    def load(cls, path: str | Path, model: Any) -> InftyCache:
        """The cache that was saved, to the bit, on the device of `model`, which must be the model that has read it:
        of the same config, dtype and weights. Raises ValueError, in one sentence, for anything else."""
        found = bookmarks.read(Path(path), model)
        cache = cls()
        cache.states, cache.fill, cache.segments = found.states, found.fill, found.segments
        cache.tokens, cache.texts = found.tokens, found.texts
        cache.read_by = ReadBy(bookmarks.infty_model(model))
        return cache

    @property
    def rows(self) -> int:
        """How many texts it holds; 0: it is empty."""
        return 0 if self.fill is None else len(self.fill)

    def start_document(self, rows: Tensor) -> None:
        """Let the rows in `rows` (bool [b]) begin a new document with their next token; the others go on as before."""
        if self.states is None:
            return
        rows = self._rows(rows)
        self.texts = () if bool(rows.any()) else self.texts
        self.fill = torch.where(rows, 0, self.fill)
        self.segments = torch.where(rows, 0, self.segments)
        held = int(self.fill.max())
        self.states = tuple(state.start_document(rows, held) for state in self.states)

    def with_memories(self, donor: InftyCache) -> InftyCache:
        """These rows with the long-term memories of the donor's rows, to be read with. Both stand where a segment
        ends and have read as many: a memory may tell from that how much there is in it."""
        lent = InftyCache()
        if self.states is not None and donor.states is not None:
            pairs = zip(self.states, donor.states)
            lent.states = tuple(own.with_memories(theirs) for own, theirs in pairs)
            lent.fill, lent.segments, lent.tokens = self.fill, self.segments, self.tokens
            lent.read_by = self.read_by
        return lent

    def _rows(self, rows: Tensor) -> Tensor:
        """bool [b] on the host. Raises ValueError."""
        rows = torch.as_tensor(rows)
        if rows.dtype != torch.bool or rows.shape != self.fill.shape:
            raise ValueError(
                f"rows must be a bool tensor [{len(self.fill)}], True where a text begins anew; it is "
                f"{rows.dtype} {list(rows.shape)}"
            )
        return rows.cpu()

    def _select(self, f: Callable[[Tensor], Tensor]) -> None:
        if self.states is not None:
            self.states = tuple(state.map(f) for state in self.states)
            self.fill, self.segments = f(self.fill), f(self.segments)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row beam_idx[i] was: for beam search."""
        self._select(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._select(lambda x: x.repeat_interleave(repeats, dim=0))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no limit."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    @property
    def is_linear(self) -> list[bool]:
        """That it counts the tokens it has read: `generate` then reads only those of a prompt that are new."""
        return [False]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def crop(self, *args: int, **kwargs: int) -> None:
        raise ValueError(
            "the memory of an infty model cannot be cropped: assisted generation and continuing from an "
            "earlier point of a text need a copy of the cache made at that point (copy.deepcopy)"
        )

    def __len__(self) -> int:
        return 0 if self.states is None else len(self.states)

    def __repr__(self) -> str:
        return f"InftyCache(tokens={self.tokens}, layers={len(self)})"


__all__ = ["CACHE", "InftyCache"]
