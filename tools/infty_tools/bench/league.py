"""What `infty bench recall` compares: tasks, systems, and the config of one run of one system on one task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infty.errors import UserError

if TYPE_CHECKING:
    from infty.config import ModelConfig
    from infty_tools.tasks.base import Task

SEGMENT = 32
"""Tokens of a segment; the short-term memory holds one."""
BASIS = 2 * SEGMENT
"""Functions of a continuous memory: as many numbers as keys and values of two segments."""
Values = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """One task of the league."""

    task: Callable[[int], Task]
    """The task with documents so many times as long as those that are trained on."""
    segments: int
    """Segments of a document that is trained on, and of a window."""
    heads: int
    steps: int
    """Where --steps says nothing."""
    first: int | None = None
    """Segments of a window in the first third of the steps; None: as later."""
    lengths: tuple[int, ...] = (1, 2, 4)
    """How many times as long the held-out documents are."""


def _facts(times: int) -> Task:
    from infty_tools.tasks.facts import Facts

    asked = 8 * SEGMENT * times
    return Facts(told=SEGMENT, asked=asked, asks=asked // 4)


def _stories(times: int) -> Task:
    from infty_tools.tasks.stories import Stories

    return Stories(story_kinds=("one-fact",), statements=33 * times, questions=8)


def _sorting(times: int) -> Task:
    from infty_tools.tasks.sorting import Sorting

    return Sorting(length=8 * SEGMENT * times)


TASKS = {
    "facts": Contest(_facts, segments=9, heads=2, steps=1200, first=3),
    "stories": Contest(_stories, segments=9, heads=2, steps=1500),
    "sorting": Contest(_sorting, segments=8, heads=4, steps=1500, lengths=(1,)),
}

_PAPER = {
    "preset": "paper-sorting",
    "basis": BASIS,
    "samples": BASIS,
    "widths": [5.12 / BASIS, 25.6 / BASIS],  # the preset's are made for 512 functions
    "precision": "float32",
}
_RELATIVE = {"positions": "relative"}
_FACTS = {"kind": "associative"}
_GIST = {"kind": "continuous", "basis": BASIS, "density": "joint"}
_NEXT = {"kind": "continuation"}
SYSTEMS: dict[str, Values] = {
    "no-memory": {"stm_length": 0, "memory": None},
    "transformer-xl": {"memory": None} | _RELATIVE,
    "compressive": {"memory": {"kind": "compressive", "length": SEGMENT, "ratio": 4}} | _RELATIVE,
    "paper": {"memory": _PAPER},
    "gaussian": {"memory": {"basis": BASIS, "density": "gaussian"}},
    "gibbs": {"memory": {"basis": BASIS, "density": "gibbs"}},
    "joint": {"memory": _GIST},
    "associative": {"memory": _FACTS},
    "continuation": {"memory": _NEXT},
    "gist-and-next": {"memory": None, "memories": {"gist": _GIST, "next": _NEXT}},
    "full-attention": {"stm_length": 0, "memory": None},
}
"""What of `model:` is a system's own. Full attention also has a document in one segment."""


@dataclass(frozen=True)
class Sizes:
    """Of every run of a league."""

    hidden: int = 64
    layers: int = 2
    lanes: int = 16
    lr: float = 3e-3


def config(
    contest: Contest, system: str, seed: int, steps: int, sizes: Sizes, folder: Path, data: Path
) -> Values:
    """A run's config as plain values: what differs between systems is their part of `model:`."""
    whole = system == "full-attention"
    segment = contest.segments * SEGMENT if whole else SEGMENT
    window = 1 if whole else contest.segments
    batch: Values = {"lanes": sizes.lanes, "window_segments": window}
    if contest.first is not None and not whole and steps >= 9:
        # A multiple of 3: windows of a whole document begin where documents begin.
        batch["window_stages"] = {contest.first: steps // 9 * 3}
    return {
        "run": {"folder": str(folder), "steps": steps, "seed": seed},
        "data": {"train": str(data / "train"), "validation": str(data / "validation")},
        "model": {
            "family": "llama",
            "hidden_size": sizes.hidden,
            "layers": sizes.layers,
            "heads": contest.heads,
            "segment_length": segment,
            "stm_length": segment,
        }
        | SYSTEMS[system],
        "batch": batch,
        "optimizer": {"lr": sizes.lr, "weight_decay": 0.0},
        "schedule": {"warmup_steps": max(1, steps // 30)},
        "parallel": {"zero_stage": 1},
        "checkpoint": {"every": max(1, steps // 4)},
        "logging": {"every": max(1, steps // 30), "tensorboard": False},
    }


def model_of(values: Values, vocabulary: int) -> ModelConfig:
    """The model that a run's config describes. Raises UserError."""
    from infty_pretrain import config as configs

    return replace(configs.from_dict(values, "infty bench recall").model, vocab_size=vocabulary)


def parameters(model: ModelConfig) -> int:
    from infty.models.outline import outline

    return sum(p.size for p in outline(model).parameters)


def state_floats(model: ModelConfig) -> int:
    """Numbers that a lane carries from segment to segment in one layer, the short-term memory among them."""
    from infty.models.outline import outline

    fields = outline(model).fields["layers"]["0"]
    return sum(math.prod(field.shape) for field in fields.named().values())


def widened(values: Values, vocabulary: int, target: int) -> Values:
    """The config with its feed-forward layers so wide that the model has `target` parameters, or a few less.

    So systems are compared at equal size, whatever their memories need.
    """
    model = model_of(values, vocabulary)
    more = values | {"model": values["model"] | {"ffn_size": model.ffn_size + 1}}
    have = parameters(model)
    each = parameters(model_of(more, vocabulary)) - have
    if target < have:
        raise UserError(f"a model of {have:,} parameters cannot have {target:,}")
    size = model.ffn_size + (target - have) // each
    return values | {"model": values["model"] | {"ffn_size": size}}
