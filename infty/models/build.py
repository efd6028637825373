"""Building a model, whole or partitioned as it is made."""

from __future__ import annotations

import deepspeed
import torch

from infty.config import ModelConfig
from infty.memory.memory import ContinuousMemory
from infty.models.lm import InftyLM
from infty.parallel import groups, region


def build(config: ModelConfig, *, seed: int, sequence_parallel: bool = False, recompute: bool = False,
          partition: bool = False, bf16: bool = False) -> InftyLM:
    """A model with fresh weights that follow from `seed` alone, ready for `deepspeed.initialize`.

    With `partition` (ZeRO-3) every parameter is split over the data-parallel ranks as soon as it is made (in bf16 if
    asked for), so that no process ever holds more than one whole layer of the model.
    """
    torch.manual_seed(seed)
    memories = [config.memory_of(i) for i in range(config.layers)]
    for memory in {m for m in memories if m is not None}:
        # Solve the memory's operators first: inside zero.Init torch makes every tensor in the model's dtype, and they
        # need float64. What is made in there from the cached solutions is replaced afterwards.
        ContinuousMemory(memory, config.segment_length)
    # The precision goes in by a config: on a CPU the argument `dtype` is silently replaced by a 16-bit one. Without the
    # data-parallel group, ZeRO-3 would split tensor-parallel shards over all ranks: silently wrong, too.
    settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": bf16}, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(data_parallel_group=groups.data_group(), config_dict_or_path=settings, enabled=partition):
        model = InftyLM(config, sequence_parallel=sequence_parallel, recompute=recompute)
    if partition:
        for block, memory in zip(model.blocks, memories):
            if block.memory is not None:
                core = ContinuousMemory(memory, config.segment_length)
                block.memory.core = core.to(next(block.memory.core.buffers()).device)
    region.sum_stream_gradients(model, model.region)
    return model
