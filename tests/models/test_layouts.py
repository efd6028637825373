"""The same training in every layout: real processes, gloo, DeepSpeed's ZeRO stages, against one process."""

from __future__ import annotations

import ctypes
import json
import math
import resource
from dataclasses import replace

import psutil
import pytest
import torch
from typer.testing import CliRunner

from infty.config import ModelConfig
from infty_tools import processes
from infty_tools.bench import layouts as bench_layouts
from infty_tools.cli import app
from support.small import LLAMA, VARIANTS

STEPS = 20
CONFIGS = {name: replace(config, init_std=0.05) for name, config in VARIANTS.items()}
CONFIGS["ungrouped"] = replace(
    CONFIGS["llama"], kv_heads=4
)  # four key/value heads can be split over four ranks

TWO = {
    name: [
        {"tensor": 2, "stage": 3},
        {"tensor": 1, "stage": 3},
        {"tensor": 2, "stage": 1, "sequence": True},
    ]
    for name in (
        "llama",
        "hidden",
        "per-head sticky",
        "truncated",
        "gibbs-hidden",
        "relative",
        "compressive",
    )
}
TWO |= {
    name: [{"tensor": 2, "stage": 3}, {"tensor": 2, "stage": 1, "sequence": True}]
    for name in (
        "learned",
        "salience",
        "unlike layers",
        "sparsemax",
        "joint",
        "gist and facts",
        "continuation",
        "continuation untied",
        "continuation wide",
        "wide heads",
    )
}
TWO["surprise"] = [
    {"tensor": 2, "stage": 3, "part_segments": 2},
    {"tensor": 2, "stage": 1, "sequence": True, "part_segments": 1},
]
FOUR = {
    name: [
        {"tensor": 2, "stage": 3, "recompute": True},
        {"tensor": 4, "stage": 3, "sequence": True},
        {"tensor": 2, "stage": 2, "accumulation": 2},
        {"tensor": 2, "stage": 0},
    ]
    for name in ("ungrouped", "hidden-gpt2")
}
HALF = [
    {"tensor": 2, "stage": 3, "bf16": True},
    {"tensor": 2, "stage": 1, "bf16": True, "recompute": True},
]


def train_all(
    configs: dict[str, ModelConfig], layouts: dict[str, list[dict]]
) -> dict[str, list[dict]]:
    """Runs in every process: one layout of one config after another."""
    from infty_tools.bench import layout_training as module

    return {
        name: [module.train(configs[name], STEPS, **layout) for layout in several]
        for name, several in layouts.items()
    }


@pytest.fixture(scope="module")
def reference() -> dict[str, list[dict]]:
    """One process, ZeRO-1, every config; the llama also in bf16."""
    wanted = {name: [{"stage": 1}] for name in (*TWO, *FOUR)}
    wanted["llama"] = [{"stage": 1}, {"stage": 1, "bf16": True}]
    return processes.run(1, train_all, CONFIGS, wanted)[0]


@pytest.fixture(scope="module")
def in_two() -> list[dict[str, list[dict]]]:
    return processes.run(2, train_all, CONFIGS, TWO | {"llama": TWO["llama"] + HALF})


@pytest.fixture(scope="module")
def in_four() -> list[dict[str, list[dict]]]:
    return processes.run(4, train_all, CONFIGS, FOUR)


@pytest.mark.parametrize("name", TWO)
def test_two_processes_train_as_one(name, reference, in_two):
    check(name, reference, in_two, TWO[name])


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_train_as_one(name, reference, in_four):
    check(name, reference, in_four, FOUR[name])


def check(name: str, reference: dict, ranks: list[dict], layouts: list[dict]) -> None:
    expected = reference[name][0]
    assert expected["losses"][-1] < expected["losses"][0]
    for results in ranks:
        for layout, got in zip(layouts, results[name]):
            assert got["losses"] == pytest.approx(expected["losses"], rel=1e-5), layout
            if layout["stage"] > 0:  # DeepSpeed reports no norm at stage 0 in fp32
                assert got["norms"] == pytest.approx(expected["norms"], rel=1e-5), layout
            for key, weight in expected["weights"].items():
                torch.testing.assert_close(
                    got["weights"][key],
                    weight,
                    rtol=1e-5,
                    atol=5e-6,
                    msg=lambda m, n=key, where=layout: f"{where} {n}: {m}",
                )


def test_bf16_trains_as_one_process_does_to_bf16_rounding(reference, in_two):
    """bf16 has 8 bits: a relative rounding of 0.4 % in every product. What the layouts round differently moves the
    losses of 20 steps by no more than what bf16 itself moves them, beside float32."""
    full, half = reference["llama"]
    assert half["losses"] == pytest.approx(full["losses"], rel=1e-2)
    moved = max(abs(a - b) for a, b in zip(half["losses"], full["losses"]))
    assert moved > 0
    for results in in_two:
        for layout, got in zip(HALF, results["llama"][-len(HALF) :]):
            assert got["losses"] == pytest.approx(half["losses"], rel=0, abs=moved), layout
            assert got["norms"] == pytest.approx(half["norms"], rel=1e-2), layout


LARGE = replace(
    LLAMA,
    vocab_size=4000,
    hidden_size=768,
    heads=12,
    head_size=64,
    kv_heads=12,
    layers=8,
    ffn_size=2048,
)


M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def growth(partition: bool) -> list[int]:
    """Bytes of a model's parameters, and by how much making it lets this process's memory grow at the most."""
    from infty.models.build import build
    from infty_tools.plan.memory import total

    ctypes.CDLL(None).mallopt(
        M_MMAP_THRESHOLD, 2**16
    )  # what is freed is given back, and no hole that stays is counted
    before = psutil.Process().memory_info().rss  # of a process that was forked after all imports
    build(LARGE, seed=1, partition=partition)
    return [4 * total(LARGE), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]


def test_no_process_holds_the_whole_model_while_zero_3_makes_it():
    for (size, whole), (_, parts) in zip(
        processes.run(2, growth, False), processes.run(2, growth, True)
    ):
        assert size > 200 * 2**20 and whole > size
        assert parts < 0.75 * whole and parts < size, (size, whole, parts)


@pytest.mark.parametrize(
    "kind, harm, status",
    [
        ("nothing", 1.0, 0),
        ("losses", 1 + 3e-5, 1),
        ("losses", math.nan, 1),
        ("norms", 1 + 3e-5, 1),
        ("weights", 1 + 3e-5, 1),
        ("weights", math.nan, 1),
        ("norms", 1 + 3e-6, 0),
    ],
)
def test_the_benchmark_fails_where_any_process_differs(monkeypatch, tmp_path, kind, harm, status):
    def result(factor: float = 1.0) -> dict:
        good = {"losses": [4.0, 3.0], "norms": [2.0, 1.0], "weights": {"w": 2 * torch.eye(3)}}
        harmed = {
            "losses": [4.0, 3.0 * factor],
            "norms": [2.0, factor],
            "weights": {"w": 2 * factor * torch.eye(3)},
        }
        return good | {k: v for k, v in harmed.items() if k == kind}

    harmed = set()

    def run(world: int, _function, config, wanted: list, _steps: int, **_) -> list:
        """Layouts are trained a few at a time: one of each signal is harmed, in its last process."""
        ranks = [[result()] * len(wanted) for _ in range(world)]
        if world > 1 and config.family not in harmed:
            harmed.add(config.family)
            ranks[-1][-1] = result(harm)
        return ranks

    monkeypatch.setattr(processes, "run", run)
    path = tmp_path / "rows.json"
    done = CliRunner().invoke(app, ["bench", "layouts", "--most", "2", "--output", str(path)])
    assert done.exit_code == status, done.output
    assert "largest relative difference" in done.output and (
        "differ by more than 1e-05" in done.output
    ) == bool(status)
    assert (
        sum(
            row[k] > 1e-5
            for row in map(json.loads, path.read_text().splitlines())
            for k in bench_layouts.KINDS
        )
        == 2 * status
    )
