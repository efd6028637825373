"""`infty bench gpu` runs whole on a CPU with a tiny model, so that the first time on a card is not the first time."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from infty.hardware import GPUS
from infty_tools.bench import gpu as bench_gpu
from infty_tools.bench import gpu_kernels
from infty_tools.cli import app


@pytest.mark.usefixtures("single_process")
def test_it_runs_whole(tmp_path):
    path = tmp_path / "gpu.json"
    words = ["--sizes", "tiny", "--systems", "no-memory,gaussian", "--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", "gpu", *words, "--output", str(path)])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["kernels"]] == [
        "read, fp32",
        "read, bf16",
        "grid of a write",
        "histogram",
    ]
    assert all(row["difference"] < 0.02 for row in found["kernels"])
    assert {row["name"]: row["right"] for row in found["collectives"] if "right" in row}[
        "all_reduce"
    ]
    off, on = found["training"]
    assert off["speed"] == 1 and on["speed"] > 0 and on["planned_bytes"] > off["planned_bytes"] > 0
    assert on["planned_for"] == "h100-80" and "mfu" not in on and "peak_bytes" not in on
    assert "bf16" in result.output


def test_what_does_not_fit_or_comes_too_late_is_named(tmp_path, monkeypatch):
    from infty_tools.bench import steps

    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nMore words")

    monkeypatch.setattr(steps, "trained", full)
    size = bench_gpu.TRAINED["tiny"]
    row = bench_gpu.trained(size, "joint", tmp_path / "tiny", "cpu", GPUS["h200-141"])
    assert row["problem"] == "out of memory: CUDA out of memory. Tried to allocate 3 GiB."
    assert row["planned_for"] == "h200-141" and row["planned_seconds"] > 0


@pytest.mark.parametrize("size", [name for name in bench_gpu.TRAINED if name != "tiny"])
def test_the_planner_expects_that_every_size_fits_an_h100(size, tmp_path):
    row = bench_gpu.expected(
        bench_gpu.TRAINED[size], "joint+continuation", tmp_path / "data", GPUS["h100-80"]
    )
    assert row["planned_bytes"] < 0.8 * GPUS["h100-80"].memory


def test_shares_of_a_card_are_told():
    shape = gpu_kernels.SHAPES["tiny"]
    row = gpu_kernels.measured(shape, "cpu", GPUS["h100-80"])[0]
    assert row["share_of_peak"] == pytest.approx(row["tflops"] / 67)
    assert row["share_of_bandwidth"] == pytest.approx(row["gb_per_second"] / 3350)
