"""The language model: embeddings, blocks with their memories, and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infty import tree
from infty.config import ModelConfig
from infty.errors import UserError
from infty.layers.block import Block, Pass, make_norm
from infty.layers.linear import (
    PositionEmbedding,
    VocabParallelEmbedding,
    normal,
)
from infty.layers.memories.base import Picture
from infty.megatron import tensor_parallel
from infty.parallel import collectives, groups, randomness
from infty.parallel.region import Region
from infty.parts import EMBEDDING, LOSS, part
from infty.tree import Field, Tree, fresh


@dataclass(frozen=True)
class Output:
    """What a forward pass yields beside the loss; nothing that leaves the model carries a gradient."""

    state: Tree
    """The lanes' state after the window."""
    nll_sum: Tensor | None
    """float32 scalar: weighted sum of the tokens' negative log-likelihoods, without any penalty."""
    token_nll: Tensor | None
    """float32 [b, S, L]: every token's negative log-likelihood."""
    token_correct: Tensor | None
    """bool [b, S, L]: whether the most likely token is the label; without gradients only."""
    figures: dict[str, Tensor]
    """Scalars of the memories by `layer.memory.figure`, such as `3.memory.sigma`; empty unless asked for."""
    pictures: dict[str, Picture]
    """Likewise, what the memories show of the first lane."""


def segments_seen(segments: Tensor, reset: Tensor) -> Tensor:
    """int64 [b, S]: how many segments of its document come before each segment of the window.

    `segments` [b] counts those read before the window; `reset` bool [b, S] marks segments that begin a document.
    """
    seen, now = [], segments
    for s in range(reset.shape[1]):
        now = torch.where(reset[:, s], 0, now)
        seen.append(now)
        now = now + 1
    return torch.stack(seen, 1)


class InftyLM(nn.Module):
    """A decoder with a short-term and a long-term memory, split over the tensor-parallel group.

    megatron-core's parallel state must be initialised. Weights follow from torch's seed and are the same in every
    layout.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        sequence_parallel: bool = False,
        recompute: bool = False,
        part_segments: int | None = None,
    ) -> None:
        """`recompute`: a layer's activations are computed again in the backward pass; `part_segments`: those of so many
        segments of a window together, through all layers."""
        super().__init__()
        check_divisible(config, groups.tensor_size())
        self.config, self.recompute = config, recompute
        self.part_segments = part_segments
        self.region = Region(sequence_parallel)
        init = normal("embedding", config.init_std, rows=config.vocab_size)
        self.embedding = VocabParallelEmbedding(config.padded_vocab, config.hidden_size, init)
        self.position = None
        if config.positions == "learned":
            self.position = PositionEmbedding(
                config.stm_length + config.segment_length,
                config.hidden_size,
                normal("position", config.init_std),
            )
        self.blocks = nn.ModuleList(Block(config, i, self.region) for i in range(config.layers))
        self.norm = make_norm(config)
        self.head = None
        if not config.tie_embeddings:
            init = normal("head", config.init_std, rows=config.vocab_size)
            self.head = VocabParallelEmbedding(config.padded_vocab, config.hidden_size, init)
        self.predicts = any(block.predicts for block in self.blocks)

    def fields(self, dtype: torch.dtype | None = None) -> Tree:
        """What is declared of a lane's state (infty.tree): `segments` of its document read so far, and `layers`.

        `dtype` is that of the run; left out: of the parameters.
        """
        dtype = next(self.parameters()).dtype if dtype is None else dtype
        return Tree(
            {
                "segments": Field((), torch.int64),
                "layers": {str(i): block.fields(dtype) for i, block in enumerate(self.blocks)},
            }
        )

    def initial_state(self, lanes: int, device: torch.device | str = "cpu") -> Tree:
        """The state of lanes that have read nothing."""
        return fresh(self.fields(), lanes, device)

    def forward(
        self,
        tokens: Tensor,
        reset: Tensor,
        state: Tree,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        memory_enabled: bool = True,
        statistics: bool = False,
        pictures: bool = False,
    ) -> tuple[Tensor, Output]:
        """Read one window.

        tokens, labels int64 [b, S, L]; weights float32 [b, S, L] (0 where a prediction does not count); reset bool
        [b, S] marks segments that begin a document. Returns (loss, Output): with labels, the loss is the float32 sum
        over tokens of weight * nll plus the penalties, for the caller to divide; without labels, it is this rank's
        share of the logits, float32 [b, S, L, V/tp], and the output has no losses.
        """
        size = tokens.shape[1] if self.part_segments is None else self.part_segments
        how = (memory_enabled, statistics, pictures)
        if labels is None or not torch.is_grad_enabled() or tokens.shape[1] <= size:
            first, out = self._window(tokens, reset, state, labels, weights, *how)
            return first, replace(out, state=out.state.map(Tensor.detach))
        weights = torch.ones(labels.shape, device=labels.device) if weights is None else weights
        parts = zip(*(x.split(size, 1) for x in (tokens, reset, labels, weights)))
        return self._in_parts(parts, state, *how)

    def _in_parts(
        self, parts: Iterable[tuple[Tensor, ...]], state: Tree, *how: bool
    ) -> tuple[Tensor, Output]:
        """A window part by part, (tokens, reset, labels, weights) each. Of a part only what it begins with is kept; its
        activations are computed again when the backward pass gets there. Gradients go from part to part through the
        state, so that they are those of the whole window up to rounding. Figures and pictures are the last part's."""
        losses = []
        outs: list[Output] = []
        for tokens, reset, labels, weights in parts:
            loss, out = checkpoint(
                self._window,
                tokens,
                reset,
                state,
                labels,
                weights,
                *how,
                use_reentrant=False,
                context_fn=randomness.recompute_context,
            )
            losses.append(loss)
            outs.append(out)
            state = out.state
        return torch.stack(losses).sum(), Output(
            state.map(Tensor.detach),
            torch.stack([out.nll_sum for out in outs]).sum(),
            torch.cat([out.token_nll for out in outs], 1),
            None,
            outs[-1].figures,
            outs[-1].pictures,
        )

    def _window(
        self,
        tokens: Tensor,
        reset: Tensor,
        state: Tree,
        labels: Tensor | None,
        weights: Tensor | None,
        memory_enabled: bool,
        statistics: bool,
        pictures: bool,
    ) -> tuple[Tensor, Output]:
        """See `forward`; the new state has a gradient."""
        b, S, L = tokens.shape
        seen = segments_seen(state["segments"], reset)
        with part(EMBEDDING):
            embedded = self.embedding(tokens.flatten(1).t())
            rows = self._output_rows(tokens, embedded) if self.predicts else None
            x = self._positioned(embedded, seen, L)
        how = Pass(seen, rows, memory_enabled, statistics, pictures=pictures)
        layers = tree.reset(state, self.fields(), seen[:, 0] == 0)["layers"]
        new = {}
        penalties = []
        figures = {}
        shown = {}
        for i, block in enumerate(self.blocks):
            told = replace(how, losses=self._losses(x, tokens)) if block.surprised else how
            x, penalty, (new[str(i)], figure, picture) = self._run(block, x, layers[str(i)], told)
            penalties += [] if penalty is None else [penalty]
            figures |= {f"{i}.{key}": value for key, value in figure.items()}
            shown |= {f"{i}.{key}": value for key, value in picture.items()}
        new_state = Tree({"segments": how.seen[:, -1] + 1, "layers": new})
        h = self.region.enter(self.norm(x))
        if labels is None:
            logits = self._logits(h).unflatten(0, (S, L)).permute(2, 0, 1, 3)
            return logits, Output(new_state, None, None, None, figures, shown)
        with part(LOSS):
            nll, correct = self._token_losses(h, labels)
            weights = torch.ones_like(nll) if weights is None else weights.flatten(1).float()
            loss = nll_sum = (nll * weights).sum()
        if penalties:
            loss = loss + (sum(penalties) * weights).sum()
        token_nll = nll.detach().view(b, S, L)
        correct = None if correct is None else correct.view(b, S, L)
        return loss, Output(new_state, nll_sum.detach(), token_nll, correct, figures, shown)

    def _run(self, block: Block, x: Tensor, state: Tree, how: Pass) -> tuple:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(
                block, x, state, how, use_reentrant=False, context_fn=randomness.recompute_context
            )
        return block(x, state, how)

    def _positioned(self, x: Tensor, seen: Tensor, L: int) -> Tensor:
        """The tokens' embeddings [T, b, e] -> the residual stream."""
        if self.position is not None:
            # Positions repeat with a period of all that a token can see, so no two tokens in sight share one.
            place = seen[:, :, None] * L + torch.arange(L, device=x.device)
            x = x + self.position(place.flatten(1).t() % self.position.rows)
        x = F.dropout(x, self.config.dropout, self.training)
        return self.region.open(x)

    def _output_rows(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        """[T, b, e]: the rows of the output matrix that predict the tokens, without gradients."""
        rows = embedded if self.head is None else self.head(tokens.flatten(1).t())
        return rows.detach()

    @torch.no_grad()
    def _losses(self, x: Tensor, tokens: Tensor) -> Tensor:
        """float32 [b, S, L - 1]: the losses of all tokens [b, S, L] of a segment but its first, as a layer's input x
        [T, b, e] predicts them (the logit lens): causal, and the same in every layout and however text is cut."""
        segments = self.region.enter(self.norm(x)).split(tokens.shape[2])
        losses = [
            tensor_parallel.vocab_parallel_cross_entropy(
                self._logits(h[:-1]), target[:, 1:].t().contiguous()
            )
            for h, target in zip(segments, tokens.unbind(1), strict=True)
        ]
        return torch.stack(losses, 1).permute(2, 1, 0)

    def _logits(self, h: Tensor) -> Tensor:
        """float32 [T, b, V/tp]; columns that only pad the vocabulary can never be predicted."""
        output = self.embedding if self.head is None else self.head
        logits = F.linear(h, output.weight).float()
        first = groups.tensor_rank() * logits.shape[-1]
        padding = (
            torch.arange(first, first + logits.shape[-1], device=h.device) >= self.config.vocab_size
        )
        return logits.masked_fill(padding, torch.finfo(torch.float32).min)

    def _token_losses(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """float32 [b, T], and bool [b, T] without gradients: whether the most likely token is the label.

        A segment at a time, recomputed in the backward pass, so that only one segment's logits exist at once.
        """
        if torch.is_grad_enabled():
            losses = [
                checkpoint(
                    lambda part, target: self._segment_losses(part, target)[0],
                    part,
                    target,
                    use_reentrant=False,
                )
                for part, target in zip(h.split(labels.shape[2]), labels.unbind(1))
            ]
            return torch.cat(losses).t(), None
        both = (self._segment_losses(*x) for x in zip(h.split(labels.shape[2]), labels.unbind(1)))
        losses, correct = zip(*both)
        return torch.cat(losses).t(), torch.cat(correct).t()

    def _segment_losses(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """h [L, b, e], labels [b, L] -> [L, b] each."""
        logits, target = self._logits(h), labels.t().contiguous()
        correct = None if torch.is_grad_enabled() else most_likely(logits) == target
        return tensor_parallel.vocab_parallel_cross_entropy(logits, target), correct


def with_memories(state: Tree, donor: Tree) -> Tree:
    """The lanes of `state` with the long-term memories of `donor`'s lanes, which have read as many segments: a memory
    may tell from these how much there is in it."""
    layers = state["layers"]
    lent = {i: layers[i].replace(memories=donor["layers"][i]["memories"]) for i in layers}
    return state.replace(layers=Tree(lent))


def most_likely(logits: Tensor) -> Tensor:
    """int64 [...]: the token with the largest logit; logits [..., V/tp] are this rank's share of the vocabulary."""
    value, index = logits.max(-1, keepdim=True)
    index = index + groups.tensor_rank() * logits.shape[-1]
    best = collectives.gather(value, -1).argmax(-1, keepdim=True)
    return collectives.gather(index, -1).gather(-1, best).squeeze(-1)


def check_divisible(config: ModelConfig, tensor: int) -> None:
    """Raise UserError, naming the key to change, when a model cannot be split over `tensor` ranks."""
    for name in ("heads", "kv_heads", "ffn_size", "hidden_size", "padded_vocab"):
        value = getattr(config, name)
        if value % tensor:
            key = "vocab_multiple" if name == "padded_vocab" else name
            raise UserError(
                f"model.{key}: {name} {value} is not divisible by parallel.tensor {tensor}"
            )
