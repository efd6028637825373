"""Train a small model for some steps in one layout: what `infty bench layouts` and the tests of parallelism compare."""

from __future__ import annotations

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters

from infty.config import ModelConfig
from infty.models.build import build
from infty.models.lm import InftyLM
from infty.parallel import groups

LANES = 4


def window(
    config: ModelConfig, lanes: int, segments: int, seed: int = 0, resets: float = 0.2
) -> dict:
    """Random tokens, labels, weights and resets for one window; every lane begins a document in segment 0 of seed 0."""
    g = torch.Generator().manual_seed(seed)
    shape = (lanes, segments, config.segment_length)
    reset = torch.rand(lanes, segments, generator=g) < resets
    if seed == 0:
        reset[:, 0] = True
    tokens = torch.randint(0, config.vocab_size, shape, generator=g)
    return {
        "tokens": tokens,
        "labels": (5 * tokens + 3)
        % config.vocab_size,  # something that can be learnt in a few steps
        "weights": (torch.rand(shape, generator=g) < 0.9).float(),
        "reset": reset,
    }


def train(
    config: ModelConfig,
    steps: int,
    *,
    tensor: int = 1,
    stage: int = 0,
    sequence: bool = False,
    recompute: bool = False,
    part_segments: int | None = None,
    accumulation: int = 1,
    segments: int = 3,
    bf16: bool = False,
) -> dict:
    """Losses, gradient norms and final weights (whole, by name) of `steps` steps; the state is carried along."""
    groups.initialize(tensor=tensor)
    model = build(
        config,
        seed=1,
        sequence_parallel=sequence,
        recompute=recompute,
        part_segments=part_segments,
        partition=stage == 3,
        bf16=bf16,
    )
    engine = _engine(model, stage, accumulation, bf16)
    lanes = LANES // groups.data_size() // accumulation
    states = [model.initial_state(lanes) for _ in range(accumulation)]
    losses, norms = [], []
    for step in range(steps):
        batch = window(config, LANES, segments, seed=step)
        total = batch["weights"].sum()
        loss_sum = torch.zeros((), dtype=torch.float64)
        for micro in range(accumulation):
            first = (micro * groups.data_size() + groups.data_rank()) * lanes
            part = {k: v[first : first + lanes] for k, v in batch.items()}
            loss, out = engine(
                part["tokens"],
                part["reset"],
                states[micro],
                labels=part["labels"],
                weights=part["weights"],
            )
            states[micro] = out.state
            # The engine averages over data-parallel ranks and accumulation steps; the loss is a mean over all tokens.
            engine.backward(loss * (groups.data_size() * accumulation / total))
            engine.step()
            loss_sum += loss.detach().double()
        dist.all_reduce(loss_sum, group=groups.data_group())
        losses.append((loss_sum / total).item())
        norm = engine.get_global_grad_norm()
        norms.append(None if norm is None else float(norm))
    result = {"losses": losses, "norms": norms, "weights": _whole_weights(model)}
    engine.destroy()
    return result


def _engine(model: InftyLM, stage: int, accumulation: int, bf16: bool) -> deepspeed.DeepSpeedEngine:
    settings = {
        "train_batch_size": LANES,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
    }
    # A large eps: with the usual one Adam turns a gradient of rounding size into a whole step, and hides differences.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    return deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        model_parameters=model.parameters(),
        config=settings,
        mpu=groups.MPU(),
    )[0]


def _whole_weights(model: InftyLM) -> dict[str, torch.Tensor]:
    """Every parameter with its tensor-parallel parts put together."""
    whole = {}
    for name, p in model.named_parameters():
        with GatheredParameters([p]):
            part = p.detach().clone()
        if getattr(p, "tensor_model_parallel", False):
            parts = [torch.empty_like(part) for _ in range(groups.tensor_size())]
            dist.all_gather(parts, part, group=groups.tensor_group())
            part = torch.cat(parts, p.partition_dim)
        whole[name] = part
    return whole
