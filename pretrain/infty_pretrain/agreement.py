"""Values of a config that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from infty.errors import UserError
from infty_pretrain import curriculum

if TYPE_CHECKING:
    from infty_pretrain.config import Config

Check = tuple[bool, str, str]
"""Whether it holds, the key, and what is wrong if not."""


def check_agreement(config: Config) -> None:
    """Raise UserError for the first key that contradicts another."""
    for part in (_run, _parallel, _windows, _split):
        for holds, key, problem in part(config):
            if not holds:
                raise UserError(f"{key}: {problem}")


def _run(config: Config) -> Iterator[Check]:
    yield (
        (config.run.steps is None) != (config.run.tokens is None),
        "run.steps" if config.run.tokens is None else "run.tokens",
        "give either run.steps or run.tokens",
    )
    yield (
        config.evaluation.every is None or config.data.validation is not None,
        "evaluation.every",
        "needs data.validation",
    )
    yield (
        config.train != "memory" or config.model.remembers,
        "train",
        "memory alone cannot learn: the model has none (model.memory)",
    )
    yield (
        config.train != "memory+lora" or config.model.lora is not None,
        "train",
        "memory+lora needs model.lora, such as {rank: 8}",
    )
    yield (
        config.train != "everything" or config.model.lora is None,
        "model.lora",
        "its updates are for projections that do not learn themselves: give train: memory+lora",
    )


def _parallel(config: Config) -> Iterator[Check]:
    parallel = config.parallel
    yield (
        config.precision == "fp32" or parallel.zero_stage > 0,
        "parallel.zero_stage",
        "bf16 needs a stage of 1 or more (stage 0 computes a wrong gradient norm under tensor parallelism)",
    )
    yield (
        not (parallel.sequence and parallel.tensor == 1),
        "parallel.sequence",
        "true needs parallel.tensor > 1",
    )
    tokens = [
        segments * config.model.segment_length for segments, _ in curriculum.stages(config.batch)
    ]
    yield (
        not parallel.sequence or all(n % parallel.tensor == 0 for n in tokens),
        "parallel.sequence",
        "the tokens of a window must be divisible by parallel.tensor",
    )


def _windows(config: Config) -> Iterator[Check]:
    wrong = curriculum.problem(config.batch)
    yield wrong is None, "batch.window_stages", str(wrong)
    needed = config.model.stm_length // config.model.segment_length + 2
    for name, section in config.model.sections().items():
        yield (
            not section.learns_to_write or config.batch.window_segments >= needed,
            "batch.window_segments",
            f"must be at least {needed}: how model.{name} writes is learned only where a window reads what it has "
            "written",
        )


def _split(config: Config) -> Iterator[Check]:
    """What tensor-parallel ranks share out evenly."""
    tensor = config.parallel.tensor
    for name in ("heads", "kv_heads", "ffn_size", "vocab_multiple"):
        value = getattr(config.model, name)
        yield (
            value % tensor == 0,
            f"model.{name}",
            f"{value} is not divisible by parallel.tensor {tensor}",
        )
