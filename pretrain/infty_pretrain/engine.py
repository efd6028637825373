"""The model inside DeepSpeed: one optimizer step over a window of every lane."""

from __future__ import annotations

from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from infty.data.lanes import Window
from infty.models.build import build
from infty.models.lm import InftyLM
from infty.parallel import groups, randomness
from infty.state import LaneState
from infty_pretrain.config import Config


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank."""

    loss: float
    """Mean negative log-likelihood of the tokens that count, nats, without regulariser."""
    grad_norm: float
    """Global norm before clipping."""
    tokens: int
    statistics: dict[str, Tensor] | None
    """Figures of the memories, [layers with a memory] each, mean over data-parallel ranks."""


class Engine:
    """Owns the model, the optimizer and the state of this rank's lanes."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device
        model = build(config.model, seed=config.run.seed, sequence_parallel=config.parallel.sequence,
                      recompute=config.parallel.recompute, partition=config.parallel.zero_stage == 3,
                      bf16=config.precision == "bf16")
        self.parameter_count = sum(
            shape_of(p).numel() * (groups.tensor_size() if getattr(p, "tensor_model_parallel", False) else 1)
            for p in model.parameters())
        optimizer = torch.optim.AdamW(_parameter_groups(model, config), lr=config.optimizer.lr,
                                      betas=config.optimizer.betas, eps=config.optimizer.eps)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.deepspeed = deepspeed.initialize(model=model, optimizer=optimizer, config=self._settings(),
                                              mpu=groups.MPU())[0]
        randomness.seed(config.run.seed)
        self.micro_batches = config.micro_batches(groups.data_size())
        lanes = config.batch.lanes // groups.data_size()
        self.lanes = range(groups.data_rank() * lanes, (groups.data_rank() + 1) * lanes)
        self.micro_lanes = lanes // self.micro_batches
        self.states = [self.model.initial_state(self.micro_lanes, device) for _ in range(self.micro_batches)]

    @property
    def model(self) -> InftyLM:
        return self.deepspeed.module

    def _settings(self) -> dict:
        config = self.config
        return {
            "train_batch_size": config.batch.lanes,
            "gradient_accumulation_steps": config.micro_batches(groups.data_size()),
            "gradient_clipping": config.optimizer.clip,
            "bf16": {"enabled": config.precision == "bf16"},
            "zero_optimization": {"stage": config.parallel.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**12,
        }

    def set_rate(self, factor: float) -> float:
        """Set every group's learning rate to this share of its peak; return the first."""
        for group, peak in zip(self.deepspeed.optimizer.param_groups, self.peak_rates):
            group["lr"] = peak * factor
        return self.config.optimizer.lr * factor

    def step(self, window: Window, statistics: bool = False) -> StepResult:
        """Forward, backward and update on one window of this rank's lanes; the lanes' states move on."""
        self.deepspeed.train()
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        figures = None
        # The engine averages gradients over ranks and micro-batches; the loss is a mean over all tokens that count.
        counted = max(1, window.tokens_in_step)
        scale = groups.data_size() * self.micro_batches / counted
        for i in range(self.micro_batches):
            part = window.select(slice(i * self.micro_lanes, (i + 1) * self.micro_lanes)).to(self.device)
            loss, out = self.deepspeed(part.tokens, part.reset, self.states[i], labels=part.labels,
                                       weights=part.weights, statistics=statistics)
            self.deepspeed.backward(loss * scale)
            norm = self._plain_norm() if self.config.parallel.zero_stage == 0 else None
            self.deepspeed.step()
            self.states[i] = out.state
            nll += out.nll_sum.double()
            figures = out.statistics or figures
        dist.all_reduce(nll, group=groups.data_group())
        norm = float(self.deepspeed.get_global_grad_norm()) if norm is None else norm
        return StepResult((nll / counted).item(), norm, window.tokens_in_step, _mean_over_data(figures))

    def _plain_norm(self) -> float:
        """Global gradient norm where DeepSpeed reports none (stage 0), over tensor-parallel ranks."""
        split = torch.zeros((), dtype=torch.float64, device=self.device)
        whole = torch.zeros_like(split)
        for p in self.model.parameters():
            if p.grad is not None:
                square = p.grad.double().square().sum()
                if getattr(p, "tensor_model_parallel", False):
                    split += square
                else:
                    whole += square
        dist.all_reduce(split, group=groups.tensor_group())
        return (split + whole).sqrt().item()

    def lane_state(self) -> LaneState:
        """The state of all this rank's lanes, in order of lane id."""
        tensors = [s.tensors() for s in self.states]
        return LaneState.from_tensors(self.states[0], {k: torch.cat([t[k] for t in tensors]) for k in tensors[0]})

    def set_lane_state(self, state: LaneState) -> None:
        """The inverse of `lane_state`."""
        n = self.micro_lanes
        self.states = [state.map(lambda x, i=i: x[i * n:(i + 1) * n].to(self.device)) for i in
                       range(self.micro_batches)]


def shape_of(p: torch.nn.Parameter) -> torch.Size:
    """The shape of this tensor-parallel rank's part, also where ZeRO-3 has split it over data-parallel ranks."""
    return getattr(p, "ds_shape", p.shape)


def _parameter_groups(model: InftyLM, config: Config) -> list[dict]:
    """Matrices decay, vectors do not; the long-term memory's parameters may have a learning rate of their own."""
    given = config.optimizer.memory_lr
    rates = {True: config.optimizer.lr if given is None else given, False: config.optimizer.lr}
    buckets: dict[tuple[bool, bool], list] = {}
    for name, p in model.named_parameters():
        buckets.setdefault((".memory." in name, len(shape_of(p)) >= 2), []).append(p)
    decay = {True: config.optimizer.weight_decay, False: 0.0}
    return [{"params": parameters, "lr": rates[memory], "weight_decay": decay[matrix]}
            for (memory, matrix), parameters in sorted(buckets.items())]


def _mean_over_data(figures: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    if figures is None:
        return None
    for value in figures.values():
        dist.all_reduce(value, group=groups.data_group())
        value /= groups.data_size()
    return {k: v.cpu() for k, v in figures.items()}
