"""The count of operations, which utilisation and `infty plan` rest on, beside torch's own count of a forward pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infty import hardware
from infty.config import ModelConfig
from infty.memory.config import MemoryConfig
from infty.memory.sections import CompressiveConfig
from infty.models.lm import InftyLM
from infty_pretrain import flops, monitor

LANES, SEGMENTS, L = 2, 4, 64
SMALL = {
    "vocab_size": 128,
    "hidden_size": 128,
    "layers": 2,
    "heads": 4,
    "segment_length": L,
    "stm_length": L,
    "memory": None,
}
# The second figure: what may be missing from either count, as a share. Exact where all work is matrix products;
# distances are projected once a window; a CPU's sparse write and the weights of a read are no matrix products.
MODELS = {
    "plain": ({}, 1e-9),
    "grouped heads, no short-term memory": ({"kv_heads": 2, "stm_length": 0}, 1e-9),
    "gpt2, relative": ({"family": "gpt2", "positions": "relative"}, 0.02),
    "relative": ({"positions": "relative"}, 0.02),
    "compressive": (
        {"positions": "relative", "memory": CompressiveConfig(length=32, ratio=4)},
        0.05,
    ),
    "heads": ({"memory": MemoryConfig(basis=64)}, 0.06),
    "hidden": ({"memory": MemoryConfig(basis=64, signal="hidden", gate=True)}, 0.06),
    "gibbs": ({"memory": MemoryConfig(basis=64, density="gibbs")}, 0.06),
}


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name):
    changes, tolerance = MODELS[name]
    config = ModelConfig(**SMALL | changes)
    model = InftyLM(config)
    tokens = torch.randint(0, 128, (LANES, SEGMENTS, L))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(
            tokens,
            torch.zeros(LANES, SEGMENTS, dtype=torch.bool),
            model.initial_state(LANES),
            labels=tokens,
        )
    # Plain attention computes the half of a segment's scores that a causal mask then hides.
    hidden_half = config.layers * 4 * config.heads * config.head_size * L / 2
    counted = counter.get_total_flops() / tokens.numel() - hidden_half
    assert sum(flops.forward_per_token(config).values()) == pytest.approx(counted, rel=tolerance)


# What torch.cuda.get_device_name says, and the TFLOP/s of bf16 in the data sheet.
@pytest.mark.parametrize(
    "reported, expected",
    [
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA L4", None),
    ],
)
def test_the_peak_of_what_a_driver_reports(monkeypatch, reported, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: reported)
    found = flops.peak("cuda:0", "bf16")
    assert (found and found.operations / 1e12) == expected and (found is None or not found.measured)


def test_a_run_in_fp32_is_measured_against_the_peak_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-40GB")
    assert flops.peak("cuda:0", "fp32").operations == 19.5e12


def test_every_gpu_of_the_table_is_found_by_what_it_reports():
    for gpu in hardware.GPUS.values():
        assert (
            all(hardware.identify(f"NVIDIA {name}") == gpu for name in gpu.reported)
            and gpu.reported
        )


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(
    "peak, key, words",
    [
        (flops.Peak(4e12, "the data sheet"), "mfu", None),
        (flops.Peak(4e12, "measured", measured=True), "mfu_of_measured_peak", None),
        (flops.Peak(0.5e12, "measured", measured=True), None, "above its peak of 0.5 (measured)"),
        (
            flops.Peak(0.5e12, "logging.peak_tflops"),
            None,
            "above its peak of 0.5 (logging.peak_tflops)",
        ),
    ],
)
def test_a_share_is_at_most_one_and_says_of_what(monkeypatch, capsys, peak, key, words):
    """1 TFLOP/s is done."""
    watching = object.__new__(monitor.Monitor)
    watching.rank, watching.peak, watching.config = 0, peak, SimpleNamespace(model=None)
    monkeypatch.setattr(flops, "training_per_token", lambda _: 1e9)
    assert watching.utilisation(1000.0) == ({key: 0.25} if key else {})
    assert watching.utilisation(1000.0) == ({key: 0.25} if key else {})
    said = capsys.readouterr().out
    assert said.count("no utilisation is shown") == (1 if words else 0) and (words or "") in said
