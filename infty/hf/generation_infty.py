"""`generate` for a model that cannot read a token a second time, nor take back one that it has read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.stopping_criteria import StoppingCriteriaList

from infty.hf.arguments_infty import one_cache
from infty.hf.cache_infty import CACHE, InftyCache


class EndedRows(StoppingCriteriaList):
    """Stopping criteria that remember which rows have ended: `generate` fills these up with padding."""

    padded: Tensor | None = None
    """bool [b]: the token that was chosen last is padding."""
    ended: Tensor | None = None
    """bool [b]."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        now = super().__call__(input_ids, scores, **kwargs)
        self.padded = torch.zeros_like(now, dtype=torch.bool) if self.ended is None else self.ended
        self.ended = self.padded | now.bool()
        return now


class InftyGenerationMixin(GenerationMixin):
    """What a cache that cannot be cropped asks of `generate`."""

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`. With a cache, give the whole text so far and what is new, or what is new alone
        and an attention_mask over both. A cache of one row may be gone on from in several ways (num_beams,
        num_return_sequences); it is then copied. Raises ValueError for tokens that the cache has read already."""
        if kwargs.get("cache_implementation") is not None:
            raise ValueError(
                f"cache_implementation={kwargs['cache_implementation']!r}: an infty model keeps what it "
                "has read in an InftyCache only, which does not grow; leave cache_implementation out"
            )
        cache = kwargs.pop("cache", None)
        older = kwargs.pop("past_key_values", None)
        # transformers reads in parts only into a cache that it is given.
        if cache is not None or older is not None or kwargs.get("prefill_chunk_size"):
            kwargs[CACHE] = one_cache(cache, older)
        read = kwargs[CACHE].tokens if CACHE in kwargs else 0
        if read:
            given = next(
                (
                    x
                    for x in (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
                    if x is not None
                ),
                None,
            )
            if given is not None:
                _check_new(given.shape[1], read, kwargs.get("attention_mask"))
        return super().generate(inputs, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        ids, kwargs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        cache = kwargs.get(CACHE)
        if (
            expand_size > 1
            and isinstance(cache, InftyCache)
            and cache.rows * expand_size == len(ids)
        ):
            kwargs[CACHE] = copy.deepcopy(cache)
            kwargs[CACHE].batch_repeat_interleave(expand_size)
        return ids, kwargs

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """None: the cache counts. Positions made here would begin at 0, and so a document, with every new text."""
        return None

    def _sample(
        self, input_ids: Tensor, *args: Any, stopping_criteria: StoppingCriteriaList, **kwargs: Any
    ) -> Any:
        if any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria):
            stopping_criteria = EndedRows(stopping_criteria)
            kwargs["ended_rows"] = stopping_criteria
        return super()._sample(input_ids, *args, stopping_criteria=stopping_criteria, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, ended_rows: EndedRows | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers; padding that fills up a row which has ended is not read."""
        model_inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        new = model_inputs.get("input_ids")
        if (
            ended_rows is not None
            and ended_rows.padded is not None
            and new is not None
            and new.shape[1] == 1
        ):
            model_inputs["attention_mask"] = ~ended_rows.padded[:, None]
        return model_inputs


def _check_new(given: int, read: int, attention_mask: Tensor | None) -> None:
    """Raise ValueError unless it is clear which of the `given` columns are new to a cache that has `read` some."""
    masked = given if attention_mask is None else attention_mask.shape[1]
    if (given and masked == read + given) or masked == given > read:
        return
    if masked == given:
        raise ValueError(
            f"the cache has read {read} columns, and input_ids has {given}: nothing of them is new. Give "
            "the whole text so far with new tokens after it, or new tokens only with "
            f"attention_mask=torch.ones(rows, {read} + new)"
        )
    raise ValueError(
        f"attention_mask has {masked} columns, input_ids {given}, and the cache has read {read}: the mask "
        f"must have {given} (input_ids is the whole text) or {read + given} (its new tokens only)"
    )


__all__ = ["EndedRows", "InftyGenerationMixin"]
