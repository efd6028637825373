"""What a caller hands to the model, checked: every argument has its effect or is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from infty.hf.cache_infty import InftyCache

# What flash attention needs besides `cu_seq_lens_q`, and follows from it.
VARLEN = ("cu_seq_lens_k", "max_length_q", "max_length_k")
LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")  # what transformers' loss takes


NOT_COMPILED = (
    "an infty model is not for torch.compile or torch.export: which memory is written when depends on how "
    "far each text has been read; run the model as it is"
)


def refuse_compilers() -> None:
    """Raise ValueError where a compiler traces the model, instead of compiling anew for every place in a segment."""
    if torch.compiler.is_compiling():
        _refuse()


@torch.compiler.disable(reason=NOT_COMPILED)
def _refuse() -> None:
    # Not traced, but run: what is raised while dynamo traces, it swallows.
    raise ValueError(NOT_COMPILED)


def one_cache(cache: InftyCache | None, older: InftyCache | None) -> InftyCache:
    """The one that was given, under either name, or an empty one. Raises ValueError."""
    if cache is not None and older is not None:
        raise ValueError("cache and past_key_values are two names of one thing: give cache only")
    given = older if cache is None else cache
    if given is not None and not isinstance(given, InftyCache):
        raise ValueError(f"the cache must be an InftyCache, not {type(given).__name__}")
    return InftyCache() if given is None else given


def token_mask(attention_mask: Tensor | None, rows: int, columns: int, read: int) -> Tensor | None:
    """bool [b, T] on the host: where there are tokens; None: everywhere.

    attention_mask covers the T new columns, or these and the `read` columns before them, which are not read again.
    Raises ValueError for anything else.
    """
    if attention_mask is None:
        return None
    lengths = {columns, read + columns}
    shape = (
        list(attention_mask.shape)
        if isinstance(attention_mask, Tensor)
        else type(attention_mask).__name__
    )
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or shape[0] != rows
        or shape[1] not in lengths
    ):
        allowed = " or ".join(f"[{rows}, {n}]" for n in sorted(lengths))
        raise ValueError(
            f"attention_mask must be {allowed}, 0 where there is no token; it is {shape}. A mask of "
            "who sees whom is not possible: a token sees what its memory holds"
        )
    mask = attention_mask[:, shape[1] - columns :].bool().cpu()
    return None if bool(mask.all()) else mask


def document_starts(
    mask: Tensor | None,
    position_ids: Tensor | None,
    seq_idx: Tensor | None,
    cu_seq_lens: Tensor | None,
    rows: int,
    columns: int,
    fresh: bool,
) -> Tensor | None:
    """bool [b, T] on the host: the tokens that begin a document; None: none does, as far as anyone says.

    A document begins where position_ids ([b, T] or [1, T]) is 0, where seq_idx ([b, T] or [1, T]) changes, and at
    every number in cu_seq_lens ([documents + 1], for one row). mask: see `token_mask`. fresh: nothing was read before.
    Raises ValueError.
    """
    given = []
    if position_ids is not None:
        positions = _per_token("position_ids", position_ids, rows, columns)
        given.append(_where_positions_restart(positions, mask, fresh))
    if seq_idx is not None:
        given.append(_where_numbers_change(_per_token("seq_idx", seq_idx, rows, columns), mask))
    if cu_seq_lens is not None:
        given.append(_where_lengths_say(cu_seq_lens, rows, columns))
    starts = torch.stack(given).any(0) if given else None
    return starts if starts is not None and bool(starts.any()) else None


def _per_token(name: str, given: Tensor, rows: int, columns: int) -> Tensor:
    """int64 [b, T] on the host. Raises ValueError."""
    if given.dim() == 1:
        given = given[None]
    if given.dim() != 2 or given.shape[0] not in (1, rows) or given.shape[1] != columns:
        raise ValueError(
            f"{name} must be [{rows}, {columns}], a number for each token; it is {list(given.shape)}"
        )
    return given.expand(rows, -1).cpu().long()


def _in_order(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each row's values with those of its tokens first, and the columns that they come from; int64 [b, T] each."""
    columns = torch.arange(values.shape[1]).expand_as(values)
    order = columns if mask is None else (~mask).long().argsort(dim=1, stable=True)
    return values.gather(1, order), order


def _where_positions_restart(positions: Tensor, mask: Tensor | None, fresh: bool) -> Tensor:
    """Where they are 0. Raises ValueError unless they count up by one from there, as nothing else has an effect."""
    ordered, order = _in_order(positions, mask)
    begun = (
        (ordered[:, :1] == 0)
        if mask is None
        else (ordered[:, :1] == 0) | ~mask.any(1, keepdim=True)
    )
    if fresh and not bool(begun.all()):
        raise ValueError(
            "position_ids must be 0 at the first token of a text: a model that has read nothing yet "
            f"cannot begin at {int(ordered[~begun[:, 0]][0, 0])}"
        )
    follows = (ordered[:, 1:] == 0) | (ordered[:, 1:] == ordered[:, :-1] + 1)
    if mask is not None:
        follows |= ~mask.gather(1, order)[:, 1:]
    if not bool(follows.all()):
        row, column = (~follows).nonzero()[0].tolist()
        raise ValueError(
            f"position_ids must count up by one and start again from 0 where a document begins; in row "
            f"{row} {int(ordered[row, column + 1])} follows {int(ordered[row, column])}"
        )
    return positions == 0


def _where_numbers_change(numbers: Tensor, mask: Tensor | None) -> Tensor:
    ordered, order = _in_order(numbers, mask)
    changes = torch.zeros_like(ordered, dtype=torch.bool)
    changes[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.zeros_like(changes).scatter(1, order, changes)


def _where_lengths_say(cu_seq_lens: Tensor, rows: int, columns: int) -> Tensor:
    borders = cu_seq_lens.flatten().tolist()
    rising = all(a <= b for a, b in pairwise(borders))
    if rows != 1 or not rising or borders[:1] != [0] or borders[-1] != columns:
        raise ValueError(
            f"cu_seq_lens_q must rise from 0 to the {columns} tokens of one row; it is {borders[:6]}"
            f"{'...' if len(borders) > 6 else ''} for {rows} row(s)"
        )
    starts = torch.zeros(1, columns, dtype=torch.bool)
    starts[0, [b for b in borders if b < columns]] = True
    return starts


def refuse_others(kwargs: dict[str, Any], known: tuple[str, ...] = ()) -> None:
    """Raise ValueError for arguments that would have no effect. None and False ask for nothing."""
    asked = {name for name, value in kwargs.items() if value is not None and value is not False}
    if "output_attentions" in asked:
        raise ValueError(
            "output_attentions=True: an infty model has no attention weights to show, for what it reads "
            "from the long-term memory is a density over the text, not a weight for each token"
        )
    if kwargs.get("is_causal") is False:
        raise ValueError("is_causal=False: an infty model reads in one direction only")
    others = sorted(asked - set(known) - {"is_causal"})
    if others:
        raise ValueError(
            f"an infty model does not take {', '.join(others)}: leave out what would have no effect"
        )


__all__ = ["document_starts", "one_cache", "refuse_compilers", "refuse_others", "token_mask"]
