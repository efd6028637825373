"""Engines that meet a fault, beside engines that do not: what test_faults_in_steps compares. Runs on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import small_run
import torch
import torch.distributed as dist

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule, Window
from infty.parallel import groups
from infty_pretrain import canonical
from infty_pretrain.engine import Engine, StepResult

LAYOUTS = {  # of two processes
    "dp2-zero1-bf16-accumulation": {"parallel__zero_stage": 1, "precision": "bf16", "batch__micro_batch": 1},
    "dp2-zero2": {"parallel__zero_stage": 2},
    "dp2-zero3": {"parallel__zero_stage": 3},
    "tp2-zero3-bf16": {"parallel__tensor": 2, "parallel__zero_stage": 3, "precision": "bf16"},
    "tp2-zero0-accumulation-hidden": {"parallel__tensor": 2, "parallel__zero_stage": 0, "batch__micro_batch": 2,
                                      "model__memory__signal": "hidden"},
}


class Run:
    """A fresh engine and the windows it reads, the same for every `Run` of a layout."""

    def __init__(self, root: Path, **changes) -> None:
        config = small_run.config(root / "none", root / "data", **changes)
        groups.destroy()
        groups.initialize(tensor=config.parallel.tensor)
        documents = Documents.open(config.data.train)
        self.engine = Engine(config.with_vocab(documents.vocab_size), "cpu")
        self.engine.set_rate(1.0)
        lanes = LaneSchedule(documents.lengths, config.batch.lanes, config.model.segment_length, config.run.seed)
        self.reader = LaneReader(documents, lanes, self.engine.lanes)

    def window(self) -> Window:
        return self.reader.next_window(self.engine.config.batch.window_segments)

    def step(self) -> StepResult:
        return self.engine.step(self.window())

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights, moments, the optimizer's count, and the weights that the model computes with."""
        out = {f"{name}/{part}": x.clone() for name, parts in canonical.export(self.engine.deepspeed)
               for part, x in parts.items()}
        out |= {f"{name}/used": p.detach().clone() for name, p in self.engine.model.named_parameters()}
        return out | {"step": torch.tensor(canonical.optimizer_step(self.engine.deepspeed))}

    def states(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in self.engine.lane_state().tensors().items()}

    def close(self) -> None:
        self.engine.deepspeed.destroy()


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not equal to the bit."""
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


def spoil(engine: Engine, lane: int, what: str) -> None:
    """Put a NaN into one lane's state on the ranks that own it: into every float, or one coefficient of one head
    (on one tensor-parallel rank alone)."""
    if lane not in engine.lanes:
        return
    tensors = {k: v.clone() for k, v in engine.lane_state().tensors().items()}
    row = lane - engine.lanes[0]
    for tensor in tensors.values():
        if what == "state" and tensor.is_floating_point():
            tensor[row] = math.nan
    if what == "coefficient" and groups.tensor_rank() == groups.tensor_size() - 1:
        tensors["layers.1.memory.coefficients"][row, 0, 3, 2] = math.inf
    engine.set_lane_state(type(engine.states[0]).from_tensors(engine.lane_state(), tensors))


def silent(window: Window, row: int | None) -> Window:
    """The window with one lane that reads nothing, as lanes that have run dry do."""
    if row is None:
        return window
    tokens, labels, weights, reset = (x.clone() for x in (window.tokens, window.labels, window.weights, window.reset))
    tokens[row] = labels[row] = 0
    weights[row], reset[row] = 0, True
    return replace(window, tokens=tokens, labels=labels, weights=weights, reset=reset)


def emptied(engine: Engine, row: int | None) -> None:
    """Give one lane the state of a lane that has read nothing."""
    fresh = engine.model.initial_state(len(engine.lanes), "cpu").tensors()
    now = engine.lane_state().tensors()
    if row is not None:
        now = {k: torch.cat([v[:row], fresh[k][row:row + 1], v[row + 1:]]) for k, v in now.items()}
    engine.set_lane_state(type(engine.states[0]).from_tensors(engine.lane_state(), now))


def quarantine(root: Path, what: str, **changes) -> dict:
    """A step in which one lane is spoilt, and the next, beside a run in which it reads nothing from the start."""
    lane, got = 3, []  # the last rank's last
    for fault in (True, False):
        run = Run(root, **changes)
        run.step()
        row = lane - run.engine.lanes[0] if lane in run.engine.lanes else None
        window = run.window()
        lost = torch.tensor(0.0 if row is None else window.weights[row].sum().item())
        dist.all_reduce(lost, group=groups.data_group())
        if fault:
            spoil(run.engine, lane, what)
            result = run.engine.step(window)
        else:
            emptied(run.engine, row)
            result = run.engine.step(silent(window, row))
            emptied(run.engine, row)
        after, states = run.weights(), run.states()
        later = run.step()
        got.append((result, after, states, later, run.weights(), run.states()))
        run.close()
    (a, after, states, later, end, last), (b, after_b, states_b, later_b, end_b, last_b) = got
    counted = a.tokens - lost.item()
    return {"quarantined": (a.quarantined, b.quarantined, later.quarantined), "skipped": (a.skipped, later.skipped),
            "differ": differing(after, after_b) + differing(states, states_b) + differing(end, end_b)
            + differing(last, last_b), "norms": (a.grad_norm, b.grad_norm), "lost": lost.item(),
            "losses": (a.loss * counted / a.tokens, b.loss), "later": later == later_b}


def _spike(run: Run) -> None:
    run.engine.faults.losses.extend([0.1] * 100)


def _one_gradient(run: Run) -> Callable[[], None]:
    """One parameter's gradient has a NaN, on the last rank alone."""
    p = run.engine.model.norm.weight
    if dist.get_rank() != dist.get_world_size() - 1:
        return lambda: None
    return p.register_hook(lambda g: g.masked_fill(torch.arange(g.numel()) == 1, math.nan)).remove


def _blind(run: Run) -> Callable[[], None]:
    """Whatever is read, no loss is finite."""
    return run.engine.model.norm.register_forward_hook(lambda m, i, o: o * math.nan).remove


FAULTS = {"spike": _spike, "gradient": _one_gradient, "loss": _blind}


def skip(root: Path, why: str, first: bool = False, **changes) -> dict:
    """A step that is skipped, and the next, beside a run that passes the window by without a backward pass."""
    got = []
    for fault in (True, False):
        run = Run(root, **changes)
        if not first:
            run.step()
        before, states = (None if first else run.weights()), run.states()
        window, result = run.window(), None
        if fault:
            mend = FAULTS[why](run)
            result = run.engine.step(window)
            run.engine.faults.losses.clear()
            if mend is not None:
                mend()
        else:
            _read_only(run.engine, window, keep=why == "loss")
        touched = [] if first else differing(before, run.weights())
        moved = run.states()
        later = run.step()
        got.append((result, touched, moved, later, run.weights(), run.states()))
        run.close()
    (result, touched, moved, later, end, last), (_, _, moved_b, later_b, end_b, last_b) = got
    return {"result": result, "touched": touched, "still": differing(states, moved),
            "differ": differing(moved, moved_b) + differing(end, end_b) + differing(last, last_b),
            "later": (later.loss, later.grad_norm, later.skipped) == (later_b.loss, later_b.grad_norm, None)}


def _read_only(engine: Engine, window: Window, keep: bool) -> None:
    """Move the lanes' states (or not) and the random streams on, with nothing else."""
    engine.deepspeed.train()
    n = engine.micro_lanes
    with torch.no_grad():
        for i, state in enumerate(engine.states):
            part = window.select(slice(i * n, (i + 1) * n))
            out = engine.deepspeed(part.tokens, part.reset, state, labels=part.labels, weights=part.weights)[1]
            engine.states[i] = state if keep else out.state


def all_cases(root: Path) -> dict[tuple, dict]:
    """In every process: each layout meets each fault."""
    out = {}
    for layout, changes in LAYOUTS.items():
        for what in ("state", "coefficient"):
            out[layout, what] = quarantine(root, what, **changes)
        for why in FAULTS:
            out[layout, why] = skip(root, why, **changes)
        out[layout, "first"] = skip(root, "spike", first=True, **changes)
    return out
