"""Any other causal language model under evaluation: it sees a window of the text that moves on by a stride."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from infty.data.documents import Documents
from infty.data.lanes import Window
from infty.errors import UserError
from infty_tools.evaluate.folders import TRUSTED, check_tokens, judged, loaded

LARGEST = 2**24
"""Tokens of a window: a config that says more says that there is no limit."""


class WindowedModel:
    """A folder with a causal language model of transformers, without code of its own."""

    remembers = False
    tensor = 1

    def __init__(
        self, folder: Path, documents: Documents, window: int | None, stride: int | None
    ) -> None:
        """`window` left out: all that the model's positions allow; `stride` left out: half the window."""
        self.folder = folder
        config = loaded(
            folder, lambda: AutoConfig.from_pretrained(folder, **TRUSTED)
        ).get_text_config()
        check_tokens(folder, config.vocab_size, documents)
        self.window = _window(folder, getattr(config, "max_position_embeddings", None), window)
        self.stride = max(1, self.window // 2) if stride is None else stride
        if self.stride > self.window:
            raise UserError(
                f"--stride {self.stride} is longer than the window of {self.window} tokens: tokens would be left out"
            )
        kind = "blocks of" if self.stride == self.window else "window of"
        self.description = f"{kind} {self.window:,} tokens, stride {self.stride:,}"

    def load(self, device: str) -> Windowed:
        model = loaded(
            self.folder,
            lambda: AutoModelForCausalLM.from_pretrained(self.folder, **TRUSTED),
        )
        return Windowed(model.to(device).eval(), self.window, self.stride, device)


def _window(folder: Path, limit: int | None, given: int | None) -> int:
    if limit is None or limit > LARGEST:
        if given is None:
            raise UserError(f"{folder} does not say how many positions it has: give --window")
        return given
    if given is not None and given > limit:
        raise UserError(f"--window {given}: the positions of {folder} end at {limit:,}")
    return limit if given is None else given


class Windowed:
    """Reads `stride` new tokens at a time, and before them the last `window - stride` of their document again.

    So each token is predicted from at least `window - stride` tokens before it, or all that there are, and at most
    `window - 1`. With `stride == window` the text is read in blocks, each by itself.
    """

    window_segments = 1

    def __init__(self, model: PreTrainedModel, window: int, stride: int, device: str) -> None:
        self.model, self.device = model, device
        self.segment_length = stride
        self.kept = window - stride
        names = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in names

    def begin(self, lanes: int) -> list[Tensor]:
        """The tokens of each lane that are read again, int64 [n], n at most `window - stride`."""
        return [torch.zeros(0, dtype=torch.int64, device=self.device)] * lanes

    def read(self, window: Window, state: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """window: one segment of `stride` tokens a lane."""
        tokens, labels = window.tokens[:, 0], window.labels[:, 0]
        nothing = tokens.new_zeros(0)
        reset = window.reset[:, 0].tolist()
        before = [nothing if begins else kept for begins, kept in zip(reset, state)]
        nll = torch.zeros(tokens.shape, device=self.device)
        correct = torch.zeros(tokens.shape, dtype=torch.bool, device=self.device)
        for rows in self._alike(before, window.document[:, 0].tolist()):
            seen = torch.stack([torch.cat([before[row], tokens[row]]) for row in rows])
            nll[rows], correct[rows] = judged(self._logits(seen), labels[rows])
        after = [torch.cat([kept, new]) for kept, new in zip(before, tokens)]
        return nll[:, None], correct[:, None], [x[max(0, len(x) - self.kept) :] for x in after]

    def _alike(self, before: list[Tensor], document: list[int]) -> list[list[int]]:
        """Lanes that read something, those with as many tokens before together: no row needs padding then."""
        lengths: dict[int, list[int]] = {}
        for row, kept in enumerate(before):
            if document[row] >= 0:
                lengths.setdefault(len(kept), []).append(row)
        return list(lengths.values())

    def _logits(self, tokens: Tensor) -> Tensor:
        """[b, stride, V]: of the last `stride` tokens."""
        new = self.segment_length
        if self._keeps:
            return self.model(tokens, use_cache=False, logits_to_keep=new).logits
        return self.model(tokens, use_cache=False).logits[:, -new:]
