"""Perplexity of held-out documents, with the memory on and off. Never touches training state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, single_pass
from infty.errors import UserError
from infty.models.lm import segments_seen
from infty.parallel import groups
from infty_pretrain.tally import LARGEST_EXPONENT, Tally


@torch.no_grad()
def evaluate(
    forward: Callable[..., tuple],
    initial_state: Callable[..., Any],
    documents: Documents,
    *,
    lanes: int,
    segment_length: int,
    window_segments: int,
    device: str,
    windows: int | None = None,
    memory: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Read every document once from its start (or only the first `windows` windows of each lane).

    `lanes` is a number for the whole run, shared out evenly over data-parallel ranks (rounded up; a lane without a
    document reads nothing with weight 0, so every rank does the same passes). Returns nll (nats a token), perplexity,
    accuracy (share of tokens that were the most likely one, given the true ones before), tokens, and where the dataset
    counts words and is read whole, perplexity per word; `interval`, 95 % of the perplexity, over documents; and
    `by_position`, the nll by place in the document. Only tokens that count (`infty.data.answers`) are looked at.
    """
    share = -(-lanes // groups.data_size())
    mine = range(groups.data_rank() * share, (groups.data_rank() + 1) * share)
    reader = single_pass(documents, share * groups.data_size(), mine, segment_length)
    state = initial_state(share, device)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    tally = Tally(len(documents), device)
    done, passes = 0, 0
    while not reader.schedule.exhausted and (windows is None or passes < windows):
        window = reader.next_window(window_segments)
        window = window.to(device)
        _, out = forward(
            window.tokens,
            window.reset,
            state,
            labels=window.labels,
            weights=window.weights,
            memory_enabled=memory,
        )
        tally.add(window, out.token_nll, segments_seen(state["segments"], window.reset))
        state = out.state
        total += torch.stack(
            [out.nll_sum, (out.token_correct * window.weights).sum(), window.weights.sum()]
        ).double()
        done, passes = done + window.tokens_in_step, passes + 1
        if progress is not None:
            progress(done, documents.counted.total)
    dist.all_reduce(total, group=groups.data_group())
    tally.reduce()
    nll_sum, correct, tokens = total.tolist()
    found = figures(nll_sum, correct, int(tokens), documents, whole=windows is None)
    interval = tally.interval()
    return (
        found
        | ({} if interval is None else {"interval": list(interval)})
        | {"by_position": tally.curve()}
    )


def figures(
    nll_sum: float, correct: float, tokens: int, documents: Documents, whole: bool
) -> dict[str, float]:
    """A perplexity that no float can hold says nothing that nll does not say: it is left out."""
    if not tokens:
        raise UserError("nothing was evaluated: no token of the dataset counts")
    nll = nll_sum / tokens
    figures = {"nll": nll, "accuracy": correct / tokens, "tokens": tokens}
    if nll < LARGEST_EXPONENT:
        figures["perplexity"] = math.exp(nll)
    if whole and documents.info.words:
        figures["words"] = documents.info.words
        if nll_sum / documents.info.words < LARGEST_EXPONENT:
            figures["word_perplexity"] = math.exp(nll_sum / documents.info.words)
    return figures


def replay(
    forward: Callable[..., tuple],
    state: Any,
    reader: LaneReader,
    window_segments: int,
    device: str,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Rebuild the memories of lanes that stand in the middle of a document: read it again from its start.

    Lanes that stand further back begin later, so that all arrive together; every rank makes the same passes. Returns
    the state.
    """
    from infty.data.lanes import NOTHING, Piece

    schedule = reader.schedule
    L = schedule.segment_length
    behind = [c.position // L if c.document >= 0 else 0 for c in schedule.cursors]
    longest = max(behind, default=0)
    longest = -(-longest // window_segments) * window_segments
    plans = []
    for cursor, n in zip(schedule.cursors, behind):
        pieces = [Piece(cursor.document, i * L, L, i == 0) for i in range(n)]
        plans.append([NOTHING] * (longest - n) + pieces)
    with torch.no_grad():
        for first in range(0, longest, window_segments):
            plan = [lane[first : first + window_segments] for lane in plans]
            window = reader.read(plan).to(device)
            if progress is not None:
                progress(first, longest)
            state = forward(
                window.tokens, window.reset, state, labels=window.labels, weights=window.weights
            )[1].state
    return state
