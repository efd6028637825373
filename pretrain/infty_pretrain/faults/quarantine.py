"""Lanes whose numbers went bad: found after a forward pass, taken out of it, and begun anew with an empty memory.

A NaN that gets into one lane's memory would stay there for the rest of its document, and through the gradients spoil
every other lane. The rule: a lane is faulty when the loss of one of its tokens, or anything in its new state, is not
finite. Its micro-batch is then read once more, with the same random numbers; in that pass the faulty lanes read
nothing, from an empty state, so the other lanes' numbers are what they would be beside lanes that have run dry. The
pass is divided by the number of tokens that the step was to have, so the other lanes' share in the gradient is
unchanged, too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from infty.data.lanes import Window
from infty.models.lm import Output
from infty.parallel import groups
from infty.tree import Tree


def faulty(out: Output) -> Tensor:
    """bool [b]: lanes with a token loss or a state that is not finite, as far as this rank can see.

    Tokens of weight 0 count as well: 0 * NaN is NaN, so they spoil the sum all the same.
    """
    return ~_finite(out.token_nll) | damaged(out.state)


def damaged(state: Tree) -> Tensor:
    """bool [b]: lanes with a number in this rank's part of their state that is not finite."""
    finite = [_finite(x) for x in state.named().values() if x.is_floating_point()]
    return (
        ~torch.stack(finite).all(0)
        if finite
        else torch.zeros_like(state["segments"], dtype=torch.bool)
    )


def _finite(x: Tensor) -> Tensor:
    """bool [b] of x [b, ...]. NaN passes through minima and maxima, so one reduction sees all without a tensor of x's
    size."""
    low, high = torch.aminmax(x.reshape(len(x), -1), dim=1)
    return low.isfinite() & high.isfinite()


def agree(bad: Tensor) -> Tensor:
    """bool [data-parallel ranks, b], on the host: the faulty lanes of every rank. `bad` is this rank's bool [b].

    A collective of the whole world, for two reasons: tensor-parallel ranks hold other heads of the same lanes; and
    ZeRO-3 gathers parameters in every forward, so all ranks must make the same number of passes.
    """
    everyone = torch.zeros(groups.data_size(), len(bad), dtype=torch.int32, device=bad.device)
    everyone[groups.data_rank()] = bad
    dist.all_reduce(everyone, op=dist.ReduceOp.MAX)
    return everyone.bool().cpu()


def reading_nothing(window: Window, lanes: Tensor) -> Window:
    """The window in which `lanes` (bool [b]) read nothing: token 0, weight 0, each segment begins a document."""
    token, segment = lanes[:, None, None], lanes[:, None]
    return replace(
        window,
        tokens=window.tokens.masked_fill(token, 0),
        labels=window.labels.masked_fill(token, 0),
        weights=window.weights.masked_fill(token, 0),
        reset=window.reset | segment,
        document=window.document.masked_fill(segment, -1),
    )
