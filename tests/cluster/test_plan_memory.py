"""The planner's bytes against bytes counted in real runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infty import hardware
from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.sections import CompressiveConfig
from infty_pretrain import config as configs
from infty_tools import processes
from infty_tools.bench.layout_training import window
from infty_tools.plan import activations as plan_activations
from infty_tools.plan import memory as plan_memory
from infty_tools.plan import search as plan_search
from infty_tools.plan.memory import Layout, parameters
from support import left_out, measured
from support.small import VARIANTS

MODEL = ModelConfig(
    vocab_size=2000,
    hidden_size=384,
    layers=2,
    heads=6,
    segment_length=64,
    stm_length=64,
    memory=MemoryConfig(basis=64),
)
TOLERANCE = 0.05
# Tensor-parallel ranks of two processes: stages and precisions, all measured in the same two processes.
LAYOUTS = {1: [(0, "fp32"), (1, "fp32"), (2, "bf16"), (3, "fp32")], 2: [(3, "bf16"), (3, "fp32")]}
MICRO = (1, 2, 4)
"""Lanes of a micro-batch with which states are counted that are alive at once, of 4 lanes in 2 processes."""


def _layout(stage: int, precision: str, tensor: int, lanes: int = 4, world: int = 2) -> Layout:
    data = world // tensor
    return Layout(tensor, data, stage, False, False, lanes // data, 1, 2, precision)


def _config(stage: int, precision: str, tensor: int, micro: int | None = None) -> configs.Config:
    batch = configs.BatchConfig(lanes=4, window_segments=2, micro_batch=micro)
    return configs.Config(
        run=configs.RunConfig(steps=10),
        model=MODEL,
        batch=batch,
        precision=precision,
        parallel=configs.ParallelConfig(tensor=tensor, zero_stage=stage),
    )


def _micro(tensor: int) -> list[int]:
    return [m for m in MICRO if m <= 4 // (2 // tensor)]


def _measure(tensor: int) -> tuple[list[dict[str, int]], list[int], list[int]]:
    data = window(MODEL, 4, 2)
    states = [
        measured.training_bytes(_config(stage, precision, tensor), data)
        for stage, precision in LAYOUTS[tensor]
    ]
    lanes = [
        measured.lane_states_bytes(_config(3, "fp32", tensor, micro), data)
        for micro in _micro(tensor)
    ]
    return (
        states,
        lanes,
        [_activations(MODEL, sequence) for sequence in (False, True)] if tensor > 1 else [],
    )


@pytest.mark.parametrize("tensor", LAYOUTS)
def test_two_processes(tensor):
    """Weights, masters, moments, gradients and lanes of a rank; the lanes' states that are alive at once,
    with and without accumulation; activations under tensor parallelism."""
    with left_out.attention_in_bf16():
        ranks = processes.run(2, _measure, tensor, tensor=tensor)
    for i, (stage, precision) in enumerate(LAYOUTS[tensor]):
        layout = _layout(stage, precision, tensor)
        planned = plan_memory.model_states(MODEL, layout)
        planned["lanes"] = layout.micro_lanes * plan_memory.lane_bytes(MODEL, layout.width, tensor)
        found = {kind: max(states[i][kind] for states, _, _ in ranks) for kind in planned}
        if stage in (
            1,
            2,
        ):  # DeepSpeed holds on to at most one whole gradient, which counts as working memory
            largest = max(p.local(tensor) for p in parameters(MODEL)) * layout.width
            least = planned.pop("gradients")
            assert 0.95 * least <= found.pop("gradients") <= 1.05 * (least + largest)
        assert planned == pytest.approx(found, rel=TOLERANCE), (stage, precision)
    for micro, counted in zip(_micro(tensor), zip(*(lanes for _, lanes, _ in ranks)), strict=True):
        layout = plan_search.of_config(_config(3, "fp32", tensor, micro), 2)
        planned = plan_search.evaluate(
            _config(3, "fp32", tensor), layout, hardware.find("h100-80"), 8
        ).bytes["lanes"]
        assert planned == pytest.approx(max(counted), rel=TOLERANCE), layout
    for sequence, counted in zip((False, True), zip(*(activations for _, _, activations in ranks))):
        planned = plan_activations.activations(
            MODEL, Layout(2, 1, 1, sequence, False, 2, 1, 4, "fp32"), "cpu"
        )
        assert planned == pytest.approx(max(counted), rel=TOLERANCE)


def _activations(config: ModelConfig, sequence: bool = False, precision: str = "fp32") -> int:
    """What autograd holds after a window of four segments of two lanes."""
    from infty.models.lm import InftyLM

    model = InftyLM(config, sequence_parallel=sequence)
    model = model.bfloat16() if precision == "bf16" else model
    data = window(config, lanes=2, segments=4, resets=0)
    kept = measured.Saved(model)
    with kept:
        model(
            data["tokens"],
            data["reset"],
            model.initial_state(2),
            labels=data["labels"],
            weights=data["weights"],
        )
    return kept.bytes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [*VARIANTS, "book"])
def test_activations(name, precision, single_process):
    """A window of four segments of every variant: within 5 % of what autograd holds."""
    config = ModelConfig(
        vocab_size=1000,
        hidden_size=128,
        layers=2,
        heads=4,
        segment_length=64,
        memory=MemoryConfig(basis=256),
    )
    if name in VARIANTS:  # wide enough for a model's own tensors to outweigh bookkeeping
        given = VARIANTS[name]
        longer = (
            {"memory": replace(given.memory, length=48)}
            if isinstance(given.memory, CompressiveConfig)
            else {}
        )
        config = replace(
            given,
            hidden_size=96,
            head_size=3 * given.head_size,
            segment_length=32,
            stm_length=32 if given.stm_length else 0,
            ffn_size=None,
            **longer,
        )
    planned = plan_activations.activations(
        config, Layout(1, 1, 1, False, False, 2, 1, 4, precision), "cpu"
    )
    with left_out.attention_in_bf16():
        counted = _activations(config, precision=precision)
    assert planned == pytest.approx(counted, rel=TOLERANCE)


def test_what_is_frozen_has_no_gradients_and_no_optimizer_state():
    """A test of training (tests/adapt) sees the same of real runs."""
    config = replace(VARIANTS["continuation"], hidden_size=96, head_size=24)
    memory = sum(p.size for p in plan_memory.parameters(config) if ".memories." in p.name)
    whole = plan_memory.total(config)
    layout = Layout(1, 1, 0, False, False, 2, 1, 4, "fp32", train="memory")
    states = plan_memory.model_states(config, layout)
    assert (states["weights"], states["moments"]) == (4 * whole, 8 * memory)
    assert states["gradients"] == 4 * memory
    assert plan_memory.checkpoint_bytes(config, layout)["moments"] == 8 * memory


def test_deepspeeds_defaults_are_the_ones_assumed():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig(stage=3)
    assert defaults.reduce_bucket_size == plan_memory.REDUCE_BUCKET
    assert defaults.param_persistence_threshold == plan_memory.PERSISTENT
    assert defaults.max_live_parameters == plan_memory.LIVE
    assert defaults.prefetch_bucket_size == plan_memory.PREFETCH
    assert defaults.sub_group_size == plan_memory.SUB_GROUP


def test_a_checkpoints_lanes_are_those_of_all_ranks():
    whole = plan_memory.checkpoint_bytes(MODEL, _layout(3, "bf16", 2))["lanes"]
    assert whole == pytest.approx(4 * plan_memory.lane_bytes(MODEL, 2), rel=1e-12)
