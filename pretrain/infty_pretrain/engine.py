"""The model inside DeepSpeed: one optimizer step over a window of every lane."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from infty import parts
from infty.data.lanes import Window
from infty.layers.memories.base import Picture
from infty.models.build import build
from infty.models.lm import InftyLM, Output
from infty.parallel import groups, randomness
from infty.tree import Tree
from infty_pretrain.config import Config
from infty_pretrain.faults import quarantine
from infty_pretrain.faults.spikes import FaultHistory
from infty_pretrain.gauges import Gauges, Stopwatch
from infty_pretrain.learning import MEMORIES, is_gate, learns


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on every rank."""

    loss: float
    """Mean negative log-likelihood of the tokens that count and were read, nats, without penalties. Not finite where
    `skipped` is `loss`."""
    grad_norm: float
    """Global norm before clipping; not finite in a skipped step."""
    tokens: int
    """Tokens that counted in the window, whether they were learned from or not."""
    figures: dict[str, float]
    """Scalars of the memories by `layer.memory.figure`, mean over data-parallel ranks; empty unless asked for."""
    gauges: dict[str, float] = field(default_factory=dict)
    """What the optimizer's numbers look like, by their names in TensorBoard; empty unless asked for."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """What the memories show of this rank's first lane in the last micro-batch, by `layer.memory.picture`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """This rank's time in the parts of the step."""
    skipped: str | None = None
    """Why weights and optimizer were left as they were: `loss` (it is not finite), `spike` (it is far above recent
    ones), `gradient` (it is not finite); None: the step was taken."""
    quarantined: tuple[int, ...] = ()
    """Ids of lanes that read nothing, because their numbers were not finite, and go on with an empty memory."""


class Engine:
    """Owns the model, the optimizer and the state of this rank's lanes."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device
        model = build(
            config.model,
            seed=config.run.seed,
            sequence_parallel=config.parallel.sequence,
            recompute=config.parallel.recompute,
            part_segments=config.batch.part_segments,
            partition=config.parallel.zero_stage == 3,
            bf16=config.precision == "bf16",
        )
        for name, p in model.named_parameters():
            p.requires_grad_(learns(name, config.train))
        self.parameter_count = _count(model.parameters())
        self.trained_count = _count(p for p in model.parameters() if p.requires_grad)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
        )
        self.gauges = Gauges([group["label"] for group in optimizer.param_groups])
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        self.deepspeed = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self.settings(), mpu=groups.MPU()
        )[0]
        randomness.seed(config.run.seed)
        self.micro_batches = config.micro_batches(groups.data_size())
        lanes = config.batch.lanes // groups.data_size()
        self.lanes = range(groups.data_rank() * lanes, (groups.data_rank() + 1) * lanes)
        self.micro_lanes = lanes // self.micro_batches
        self.states = [
            self.model.initial_state(self.micro_lanes, device) for _ in range(self.micro_batches)
        ]
        self.faults = FaultHistory(config.faults)

    @property
    def model(self) -> InftyLM:
        return self.deepspeed.module

    def settings(self) -> dict:
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

    def step(self, window: Window, statistics: bool = False, pictures: bool = False) -> StepResult:
        """Forward, backward and update on one window of this rank's lanes; the lanes' states move on.

        `statistics` and `pictures` ask for what `StepResult` says of them.

        Lanes whose numbers are not finite are put in quarantine (infty_pretrain.faults). A step whose loss or
        gradient is not finite, or whose loss is a spike, is skipped: weights, moments and the optimizer's step count
        stay as they are, to the bit. The window counts as read, and the lanes' states move on as in any other step; a
        lane whose new state is not finite is put back to before the step. Where the loss is not finite even without
        the lanes in quarantine, the weights are at fault and no lane is: then those are put back, too, not emptied.
        """
        self.deepspeed.train()
        watch = Stopwatch()
        if statistics:
            self.gauges.before(self.deepspeed)
        states, quarantined = [], []
        total = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # summed nll; tokens that were not read
        # The engine averages gradients over ranks and micro-batches; the loss is a mean over all tokens that count.
        counted = max(1, window.tokens_in_step)
        scale = groups.data_size() * self.micro_batches / counted
        for i in range(self.micro_batches):
            last = i == self.micro_batches - 1
            part = window.select(slice(i * self.micro_lanes, (i + 1) * self.micro_lanes)).to(
                self.device
            )
            loss, out, bad, lost = self._read(part, self.states[i], statistics, pictures and last)
            total += torch.stack([out.nll_sum.double(), lost])
            if last:
                mean, blind = self._mean_loss(total, window.tokens_in_step)
                skipped = self.faults.verdict(mean)
                if skipped:  # makes every gradient NaN, so that the optimizer drops the step
                    loss = loss * math.nan
            norm = self._learn(loss * scale, last, watch)
            states.append(out.state)
            quarantined.append(bad)
        if not math.isfinite(norm):
            skipped = skipped or "gradient"
            states = [
                self._put_back(before, after, bad, blind)
                for before, after, bad in zip(self.states, states, quarantined)
            ]
        self.states = states
        lanes = () if blind else _ids(quarantined)
        self.faults.record(mean if window.tokens_in_step else math.nan, skipped, len(lanes))
        return StepResult(
            mean,
            norm,
            window.tokens_in_step,
            _mean_over_data(out.figures),
            self.gauges.after(self.deepspeed) if statistics else {},
            out.pictures,
            watch.seconds,
            skipped,
            lanes,
        )

    def _learn(self, loss: Tensor, last: bool, watch: Stopwatch) -> float:
        """A micro-batch's backward, and the update after the last one; see `update`."""
        watch.lap("forward")
        self.deepspeed.backward(loss)
        watch.lap("backward")
        with parts.part(parts.OPTIMIZER):
            norm = self.update(last)
        watch.lap("optimizer")
        return norm

    def _read(
        self, part: Window, state: Tree, *wanted: bool
    ) -> tuple[Tensor, Output, Tensor, Tensor]:
        """One micro-batch's forward, and a second one where a lane anywhere has numbers that are not finite.

        Returns the loss, the output, the lanes in quarantine (bool [data-parallel ranks, b], on the host) and the
        number of this rank's tokens that were to count and were not read (float64 scalar).
        """
        streams = randomness.states()
        loss, out = self._forward(part, state, *wanted)
        bad = torch.zeros(groups.data_size(), self.micro_lanes, dtype=torch.bool)
        if self.config.faults.quarantine:
            with parts.part(parts.CHECKS):
                bad = quarantine.agree(quarantine.faulty(out))
        if not bad.any():
            return loss, out, bad, torch.zeros((), dtype=torch.float64, device=self.device)
        del loss, out  # the first graph, before there is a second
        randomness.restore(streams)
        mine = bad[groups.data_rank()].to(self.device)
        empty = self.model.initial_state(self.micro_lanes, self.device)
        loss, out = self._forward(
            quarantine.reading_nothing(part, mine), empty.where(mine, state), *wanted
        )
        out = replace(out, state=empty.where(mine, out.state))
        return loss, out, bad, part.weights[mine].double().sum()

    def _forward(
        self, part: Window, state: Tree, statistics: bool, pictures: bool
    ) -> tuple[Tensor, Output]:
        return self.deepspeed(
            part.tokens,
            part.reset,
            state,
            labels=part.labels,
            weights=part.weights,
            statistics=statistics,
            pictures=pictures,
        )

    def _mean_loss(self, total: Tensor, tokens: int) -> tuple[float, bool]:
        """The step's loss over all data-parallel ranks, NaN where no token was read; and whether the weights must be
        at fault: it is not finite, though the lanes in quarantine have no part in it."""
        dist.all_reduce(total, group=groups.data_group())
        nll, lost = total.tolist()
        if tokens == 0:  # a window of text that is only read
            return nll, not math.isfinite(nll)
        return nll / (tokens - lost) if lost < tokens else math.nan, not math.isfinite(nll)

    def update(self, last: bool) -> float:
        """End a micro-batch; after the last, the optimizer acts, unless the gradient is not finite. Returns the norm.

        From ZeRO-1 on DeepSpeed itself drops a step whose norm is not finite and clears what it has gathered. (It takes
        the gradients that tensor-parallel ranks share from the first of them: a NaN that only another one has, which
        is a fault of the machine, is not seen.) At stage 0 it would take the step; but it only counts a micro-batch
        that is no boundary.
        """
        if self.config.parallel.zero_stage > 0 or not last:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm()) if last else math.nan
        norm = self._plain_norm()
        if not math.isfinite(norm):
            self.deepspeed.zero_grad()
            self.deepspeed.set_gradient_accumulation_boundary(False)
        self.deepspeed.step()
        self.deepspeed.set_gradient_accumulation_boundary(None)  # its own count again
        return norm

    def _put_back(self, before: Tree, after: Tree, bad: Tensor, blind: bool) -> Tree:
        """The states after a skipped step, by the rule of `step`."""
        lanes = quarantine.agree(quarantine.damaged(after))
        lanes = (lanes | bad if blind else lanes)[groups.data_rank()].to(self.device)
        return before.where(lanes, after)

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
        split += (
            0 * whole
        )  # a NaN on one rank alone is seen by all: they must agree on what is skipped
        dist.all_reduce(split, group=groups.tensor_group())
        return (split + whole).sqrt().item()

    def lane_state(self) -> Tree:
        """The state of all this rank's lanes, in order of lane id."""
        first, *others = self.states
        return first.zip(lambda *parts: torch.cat(parts), *others)

    def set_lane_state(self, state: Tree) -> None:
        """The inverse of `lane_state`."""
        n = self.micro_lanes
        self.states = [
            state.map(lambda x, i=i: x[i * n : (i + 1) * n].to(self.device))
            for i in range(self.micro_batches)
        ]


def shape_of(p: torch.nn.Parameter) -> torch.Size:
    """The shape of this tensor-parallel rank's part, also where ZeRO-3 has split it over data-parallel ranks."""
    return getattr(p, "ds_shape", p.shape)


def whole_shape(p: torch.nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter with the parts of all tensor-parallel ranks."""
    shape = list(shape_of(p))
    if getattr(p, "tensor_model_parallel", False):
        shape[p.partition_dim] *= groups.tensor_size()
    return tuple(shape)


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Numbers in parameters, of all tensor-parallel ranks together."""
    return sum(math.prod(whole_shape(p)) for p in parameters)


def parameter_groups(model: InftyLM, config: Config) -> list[dict]:
    """Matrices decay, vectors and gates do not; the memories' parameters, and their gates, may have learning rates of
    their own."""
    given = config.optimizer
    memory = given.lr if given.memory_lr is None else given.memory_lr
    rates = {"base": given.lr, "memory": memory, "gate": given.gate_lr}
    if given.gate_lr is None:
        rates["gate"] = memory
    buckets: dict[tuple[bool, bool, bool], list] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            gate = is_gate(name) and given.gate_lr is not None
            decays = len(shape_of(p)) >= 2 and not is_gate(name)
            buckets.setdefault((gate, MEMORIES in name, decays), []).append(p)
    return [
        {
            "label": ("gate" if gate else "memory" if remembers else "base")
            + ("_matrices" if decays else "_vectors"),
            "params": parameters,
            "lr": rates["gate" if gate else "memory" if remembers else "base"],
            "weight_decay": given.weight_decay if decays else 0.0,
        }
        for (gate, remembers, decays), parameters in sorted(
            buckets.items(), key=lambda item: item[0]
        )
    ]


def _ids(lanes: list[Tensor]) -> tuple[int, ...]:
    """Ids of the lanes that are true in each micro-batch's bool [data-parallel ranks, b]."""
    return tuple(torch.cat(lanes, 1).flatten().nonzero().flatten().tolist())


def _mean_over_data(figures: dict[str, Tensor]) -> dict[str, float]:
    if not figures:
        return {}
    values = torch.stack([figure.double() for figure in figures.values()])
    dist.all_reduce(values, group=groups.data_group())
    return dict(zip(figures, (values / groups.data_size()).tolist()))
