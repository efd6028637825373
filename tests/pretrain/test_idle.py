"""A key that was written and changes nothing is told; a key added without a thought of that fails here."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from infty.memory.config import PER_LAYER
from infty.memory_kinds import KINDS
from infty_pretrain import config as configs
from infty_pretrain.config import Config
from infty_pretrain.idle import CONDITIONS, CONTINUOUS, idle_keys
from infty_tools.cli import app
from support import small_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
HIDDEN = "model.memory.signal=hidden"
CONSTANT = "model.memory.contraction=0.5"
LONG = ["run.steps=200"]
EVALUATES = [*LONG, "data.validation=held-out", "evaluation.every=2"]

# Keys that change something whatever the others are. (A value may still be what it would be without the key.)
ALWAYS = {
    "run": "folder seed steps tokens minutes stall_minutes",
    "data": "train",
    "batch": "lanes window_stages micro_batch",
    "optimizer": "lr betas eps weight_decay clip",
    "init": "from_",
    "parallel": "tensor zero_stage sequence recompute",
    "checkpoint": "keep_last minutes overlap",
    "logging": "every tensorboard peak_tflops",
    "faults": "patience quarantine",
    "model": "vocab_size hidden_size layers heads kv_heads head_size ffn_size segment_length window norm activation "
    "positions bias qkv_bias attention_out_bias mlp_bias qk_norm tie_embeddings norm_eps dropout init_std "
    "vocab_multiple memory memories lora",
}
ALWAYS_IN_MEMORY = {
    "continuous": "kind basis widths ridge signal contraction sticky samples precision density room gate output_gate "
    "kl_weight overrides",
    "compressive": "kind length ratio reconstruction_weight",
    "associative": "kind",
    "continuation": "kind key_size",
}

# (overrides with which a key has no effect, the key, overrides with which it has one)
CASES = [
    ("data.validation", ["data.validation=held-out"], EVALUATES),
    ("data.validation", [*EVALUATES, "evaluation.every=201"], EVALUATES),
    ("evaluation.every", [*EVALUATES, "evaluation.every=201"], EVALUATES),
    ("evaluation.windows", ["evaluation.windows=3"], [*EVALUATES, "evaluation.windows=3"]),
    (
        "schedule.min_ratio",
        ["schedule.kind=constant", "schedule.min_ratio=0.5"],
        ["schedule.kind=linear", "schedule.min_ratio=0.5"],
    ),
    ("schedule.min_ratio", ["schedule.warmup_steps=6", "schedule.min_ratio=0.5"], []),
    (
        "schedule.kind",
        ["schedule.warmup_steps=6", "schedule.kind=linear"],
        ["schedule.kind=linear"],
    ),
    ("schedule.warmup_steps", ["schedule.warmup_steps=6"], ["schedule.warmup_steps=5"]),
    (
        "faults.spike_window",
        [*LONG, "faults.spike_window=5", "faults.spike_sigma=null"],
        [*LONG, "faults.spike_window=5"],
    ),
    ("faults.spike_window", ["faults.spike_window=500"], ["faults.spike_window=5"]),
    ("faults.spike_sigma", ["faults.spike_sigma=3"], [*LONG, "faults.spike_sigma=3"]),
    ("optimizer.memory_lr", ["model.memory=null"], []),
    ("checkpoint.every", ["checkpoint.every=7"], ["checkpoint.every=6"]),
    ("checkpoint.keep_every", ["checkpoint.keep_every=4"], ["checkpoint.keep_every=6"]),
    (
        "checkpoint.memory",
        ["model.memory=null", "model.stm_length=0", "checkpoint.memory=reset"],
        ["model.memory=null", "checkpoint.memory=reset"],
    ),
    ("model.stm_length", ["model.stm_length=8", "model.stm_layers=[]"], ["model.stm_layers=[1]"]),
    ("model.sinks", ["model.sinks=2", "model.stm_length=0"], ["model.sinks=2"]),
    ("model.stm_layers", ["model.stm_length=0", "model.stm_layers=[1]"], ["model.stm_layers=[1]"]),
    (
        "optimizer.gate_lr",
        ["model.memory=null", "optimizer.gate_lr=0.1"],
        ["optimizer.gate_lr=0.1"],
    ),
    (
        "model.window_layers",
        ["model.window_layers=[0]"],
        ["model.window_layers=[0]", "model.window=4"],
    ),
    (
        "model.rope_scaling",
        ["model.positions=none", "model.rope_scaling={kind: linear, factor: 2}"],
        ["model.rope_scaling={kind: linear, factor: 2}"],
    ),
    (
        "model.rope_theta",
        ["model.positions=none", "model.rope_theta=5e5"],
        ["model.rope_theta=5e5"],
    ),
    (
        "model.family",
        [
            "model.norm=rmsnorm",
            "model.activation=swiglu",
            "model.positions=rotary",
            "model.bias=false",
            "model.tie_embeddings=false",
            "model.family=gpt2",
        ],
        ["model.norm=rmsnorm", "model.family=gpt2"],
    ),
    ("model.memory", ["model.memory.layers=[]"], ["model.memory.layers=[0]"]),
    ("model.memory.content", ["model.memory.content=residual"], [HIDDEN]),
    (
        "model.memory.sticky_heads",
        ["model.memory.sticky=off", "model.memory.sticky_heads=per_head"],
        ["model.memory.sticky_heads=per_head"],
    ),
    (
        "model.memory.sticky_seed",
        ["model.memory.sticky_seed=2"],
        ["model.memory.sticky_seed=2", "model.memory.sticky=multinomial", CONSTANT],
    ),
    ("model.memory.bins", ["model.memory.bins=32", "model.memory.density=joint"], []),
    ("logging.pictures", ["logging.pictures=5", "model.memory=null"], ["logging.pictures=5"]),
    (
        "model.memory.explore",
        ["model.memory.explore=0.2", CONSTANT],
        ["model.memory.explore=0.2"],
    ),
    (
        "model.memory.overrides.1.explore",
        ["model.memory.overrides={0: {explore: .2}, 1: {explore: .2, sticky: off}}"],
        ["model.memory.overrides={1: {explore: .2}}"],
    ),
    (
        "model.memory.attention_span",
        ["model.memory.attention_span=9", CONSTANT, "model.memory.sticky=quantile"],
        ["model.memory.attention_span=9"],
    ),
    *(
        (
            f"model.memory.{name}",
            [f"model.memory.{name}={value}", "model.memory.density=gibbs"],
            [f"model.memory.{name}={value}"],
        )
        for name, value in {
            "maps": "shared",
            "map_bias": "false",
            "sigma_floor": "1e-3",
            "sigma_clamp": "true",
        }.items()
    ),
    (
        "model.memory.kl_sigma",
        ["model.memory.kl_sigma=0.1"],
        ["model.memory.kl_sigma=0.1", "model.memory.kl_weight=1e-3"],
    ),
    (
        "batch.part_segments",
        ["batch.part_segments=3", "batch.window_segments=3"],
        ["batch.part_segments=2", "batch.window_segments=3"],
    ),
    (
        "batch.window_segments",
        ["batch.window_stages={2: 6}", "batch.window_segments=3"],
        ["batch.window_stages={2: 5}", "batch.window_segments=3"],
    ),
    (
        "model.memory.backprop",
        ["model.memory.backprop=false", "batch.window_segments=2"],
        ["model.memory.backprop=false", "batch.window_segments=3"],
    ),
    (
        "model.memories.more.kl_sigma",
        ["model.memories={more: {basis: 8, kl_sigma: 0.1}}"],
        ["model.memories={more: {basis: 8, kl_sigma: 0.1, kl_weight: 1e-3}}"],
    ),
]


def told(tmp_path: Path, overrides: list[str]) -> list[str]:
    """The keys of which is said that they have no effect."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    given = configs.written(path, ["checkpoint.every=3", *overrides])
    said = idle_keys(given, configs.from_dict(given))
    return [sentence.partition(" has no effect: ")[0] for sentence in said]


@pytest.mark.parametrize(("key", "without", "effective"), CASES)
def test_a_key_that_changes_nothing_is_told(tmp_path, key, without, effective):
    assert key in told(tmp_path, without)
    assert key not in told(tmp_path, effective)


def test_nothing_is_said_of_what_has_an_effect(tmp_path):
    assert told(tmp_path, []) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_key_of_this_repository_s_configs_has_an_effect(path):
    given = configs.written(path)
    assert idle_keys(given, configs.from_dict(given)) == []


def test_every_key_of_a_config_is_thought_of():
    conditional = {key for key, _, _ in CONDITIONS} | {"model.family"}
    always = {f"{section}.{name}" for section, names in ALWAYS.items() for name in names.split()}
    keys = {
        f"{section}.{field.name}"
        for section, kind in typing.get_type_hints(Config).items()
        if dataclasses.is_dataclass(kind)
        for field in dataclasses.fields(kind)
    }
    assert conditional <= keys <= conditional | always and not conditional & always
    assert conditional <= {key for key, _, _ in CASES}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_a_memory_is_thought_of(kind):
    conditional = {"backprop", "layers"} | ({key for key, _, _ in CONTINUOUS})
    keys = {field.name for field in dataclasses.fields(KINDS[kind].section)}
    always = set(ALWAYS_IN_MEMORY[kind].split())
    assert keys - conditional == always
    assert {f"model.memory.{key}" for key in conditional - {"layers"}} <= {k for k, _, _ in CASES}
    assert set(PER_LAYER) <= set(ALWAYS_IN_MEMORY["continuous"].split()) | conditional


@pytest.mark.parametrize("words", [["plan"], ["submit", "--nodes", "1", "--dry-run"]])
def test_a_plan_and_a_job_tell_it_too(words):
    config = ["-c", str(Path(__file__).parents[2] / "configs" / "pg19-125m.yaml")]
    said = CliRunner().invoke(app, [*words, *config, "model.memory.kl_sigma=0.1"]).output
    assert "note: model.memory.kl_sigma has no effect: kl_weight is 0" in said
