"""Building a model, whole or partitioned as it is made."""

from __future__ import annotations

import deepspeed
import torch

from infty.config import ModelConfig
from infty.models.lm import InftyLM
from infty.parallel import groups, region


def build(
    config: ModelConfig,
    *,
    seed: int,
    sequence_parallel: bool = False,
    recompute: bool = False,
    part_segments: int | None = None,
    partition: bool = False,
    bf16: bool = False,
) -> InftyLM:
    """A model with fresh weights that follow from `seed` alone, ready for `deepspeed.initialize`.

    With `partition` (ZeRO-3) every parameter is split over the data-parallel ranks as soon as it is made (in bf16 if
    asked for), so that no process ever holds more than one whole layer of the model.
    """
    torch.manual_seed(seed)
    # The precision goes in by a config: on a CPU the argument `dtype` is silently replaced by a 16-bit one. Without the
    # data-parallel group, ZeRO-3 would split tensor-parallel shards over all ranks: silently wrong, too.
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": 3},
    }
    with deepspeed.zero.Init(
        data_parallel_group=groups.data_group(), config_dict_or_path=settings, enabled=partition
    ):
        model = InftyLM(
            config,
            sequence_parallel=sequence_parallel,
            recompute=recompute,
            part_segments=part_segments,
        )
    region.sum_stream_gradients(model, model.region)
    return model
