"""Engines that meet a fault, beside engines that do not: what test_faults_in_steps compares. Runs on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule, Window
from infty.parallel import groups
from infty_pretrain.checkpoint import canonical
from infty_pretrain.engine import Engine, StepResult
from support import small_run

LAYOUTS = {  # of two processes
    "dp2-zero1-bf16-accumulation": {
        "parallel__zero_stage": 1,
        "precision": "bf16",
        "batch__micro_batch": 1,
    },
    "dp2-zero2": {"parallel__zero_stage": 2},
    "dp2-zero3": {"parallel__zero_stage": 3},
    "tp2-zero3-bf16": {"parallel__tensor": 2, "parallel__zero_stage": 3, "precision": "bf16"},
    "tp2-zero0-accumulation-hidden": {
        "parallel__tensor": 2,
        "parallel__zero_stage": 0,
        "batch__micro_batch": 2,
        "model__memory__signal": "hidden",
    },
}


class SplitEngine(Engine):
    """At ZeRO-3 small parameters, too, are split and gathered for each pass, as a large model's are."""

    def settings(self) -> dict:
        settings = super().settings()
        if self.config.parallel.zero_stage == 3:
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings


class Run:
    """A fresh engine and the windows it reads, the same for every `Run` of a layout."""

    def __init__(self, root: Path, **changes) -> None:
        config = small_run.config(root / "none", root / "data", **changes)
        groups.initialize(tensor=config.parallel.tensor)
        documents = Documents.open(config.data.train)
        self.engine = SplitEngine(config.with_vocab(documents.vocab_size), "cpu")
        self.engine.set_rate(1.0)
        lanes = LaneSchedule(
            documents.lengths, config.batch.lanes, config.model.segment_length, config.run.seed
        )
        self.reader = LaneReader(documents, lanes, self.engine.lanes)

    def window(self) -> Window:
        return self.reader.next_window(self.engine.config.batch.window_segments)

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights, moments, the optimizer's count, and the weights that the model computes with."""
        out = {
            f"{name}/{part}": x.clone()
            for name, parts in canonical.export(self.engine.deepspeed)
            for part, x in parts.items()
        }
        out |= {
            f"{name}/used": getattr(p, "ds_tensor", p.data).clone()
            for name, p in self.engine.model.named_parameters()
        }
        return out | {"step": torch.tensor(canonical.optimizer_step(self.engine.deepspeed))}

    def states(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in self.engine.lane_state().named().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


def spoil(engine: Engine, lane: int, what: str) -> None:
    """Put a NaN into one lane's state on the ranks that own it: into every float, or one coefficient of one head
    (on one tensor-parallel rank alone)."""
    if lane not in engine.lanes:
        return
    tensors = {k: v.clone() for k, v in engine.lane_state().named().items()}
    row = lane - engine.lanes[0]
    for tensor in tensors.values():
        if what == "state" and tensor.is_floating_point():
            tensor[row] = math.nan
    if what == "coefficient" and groups.tensor_rank() == groups.tensor_size() - 1:
        tensors["layers.1.memories.memory.signal.coefficients"][row, 0, 3, 2] = math.inf
    engine.set_lane_state(engine.lane_state().from_named(tensors))


def silent(window: Window, row: int | None) -> Window:
    """The window with one lane that reads nothing, as lanes that have run dry do."""
    if row is None:
        return window
    tokens, labels, weights, reset = (
        x.clone() for x in (window.tokens, window.labels, window.weights, window.reset)
    )
    tokens[row] = labels[row] = 0
    weights[row], reset[row] = 0, True
    return replace(window, tokens=tokens, labels=labels, weights=weights, reset=reset)


def emptied(engine: Engine, row: int | None) -> None:
    """Give one lane the state of a lane that has read nothing."""
    fresh = engine.model.initial_state(len(engine.lanes), "cpu").named()
    now = engine.lane_state().named()
    if row is not None:
        now = {
            k: torch.cat([v[:row], fresh[k][row : row + 1], v[row + 1 :]]) for k, v in now.items()
        }
    engine.set_lane_state(engine.lane_state().from_named(now))


def _spike(engine: Engine) -> Callable[[], None]:
    engine.faults.losses.extend([0.1] * 100)
    return engine.faults.losses.clear


def _gradient(engine: Engine) -> Callable[[], None]:
    """One parameter's gradient has a NaN, on the last rank alone. DeepSpeed looks at what tensor-parallel ranks share
    on the first of them only; at stage 0 the engine itself looks everywhere."""
    shared = engine.config.parallel.zero_stage == 0
    p = engine.model.norm.weight if shared else engine.model.embedding.weight
    if dist.get_rank() != dist.get_world_size() - 1:
        return lambda: None
    return p.register_hook(lambda g: g.masked_fill(torch.arange(g.shape[-1]) == 1, math.nan)).remove


def _loss(engine: Engine) -> Callable[[], None]:
    """Whatever is read, no loss is finite."""
    return engine.model.norm.register_forward_hook(lambda m, i, o: o * math.nan).remove


SKIPS = {"spike": _spike, "gradient": _gradient, "loss": _loss}
LANES = {
    "state": 3,
    "coefficient": 1,
}  # the lane that is spoilt; of data-parallel ranks the second's and the first's
STEPS = ("spike", None, "state", "coefficient", None, "gradient", None, "loss", None)


def one_step(run: Run, fault: str | None, harmed: bool) -> tuple[StepResult | None, int]:
    """A step in which something goes wrong (`harmed`), or what it should come to: one lane reads nothing, or the window
    is passed by without a backward pass. Returns also the number of tokens of the lane."""
    engine, window = run.engine, run.window()
    if fault in LANES:
        lane = LANES[fault]
        row = lane - engine.lanes[0] if lane in engine.lanes else None
        lost = torch.tensor(0.0 if row is None else window.weights[row].sum().item())
        dist.all_reduce(lost, group=groups.data_group())
        if harmed:
            spoil(engine, lane, fault)
            return engine.step(window), int(lost.item())
        emptied(engine, row)
        result = engine.step(silent(window, row))
        emptied(engine, row)
        return result, int(lost.item())
    if fault is None:
        return engine.step(window), 0
    if harmed:
        mend = SKIPS[fault](engine)
        result = engine.step(window)
        mend()
        return result, 0
    _read_only(engine, window, keep=fault == "loss")
    return None, 0


def _read_only(engine: Engine, window: Window, keep: bool) -> None:
    """Move the lanes' states (or not) and the random streams on, with nothing else."""
    engine.deepspeed.train()
    n = engine.micro_lanes
    with torch.no_grad():
        for i, state in enumerate(engine.states):
            part = window.select(slice(i * n, (i + 1) * n))
            out = engine.deepspeed(
                part.tokens, part.reset, state, labels=part.labels, weights=part.weights
            )[1]
            engine.states[i] = state if keep else out.state


def compared(root: Path, **changes) -> list[dict]:
    """All of STEPS, harmed and as they should come to: for each, the results and the tensors that differ."""
    histories = []
    for harmed in (True, False):
        run = Run(root, **changes)
        history = [(None, 0, {}, run.states())]
        for fault in STEPS:
            result, lost = one_step(run, fault, harmed)
            history.append((result, lost, run.weights(), run.states()))
        run.engine.deepspeed.destroy()
        histories.append(history)
    out = []
    for i, fault in enumerate(STEPS, 1):
        (a, lost, weights, states), (b, _, weights_b, states_b) = (h[i] for h in histories)
        before = histories[0][i - 1]
        out.append(
            {
                "fault": fault,
                "harmed": a,
                "expected": b,
                "lost": lost,
                "differ": differing(weights, weights_b) + differing(states, states_b),
                "learned": differing(weights, before[2]) if i > 1 else [],
                "moved": differing(states, before[3]),
            }
        )
    return out


def all_layouts(root: Path) -> dict[str, list[dict]]:
    return {layout: compared(root, **changes) for layout, changes in LAYOUTS.items()}
