"""Checkpoints cross from one process to four and back, over tensor and data parallelism and every stage of ZeRO: the
losses go on as they would have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infty_tools import processes
from support import small_run, small_training

STEPS, STOP = 6, 3
PLAIN = {"model__dropout": 0.0, "run__steps": STEPS}
SOURCES = {"one-zero0": {"parallel__zero_stage": 0}, "one-zero2": {"parallel__zero_stage": 2}}
FOUR = {  # in four processes, from each of the sources
    "tp4-zero3": {"parallel__tensor": 4, "parallel__zero_stage": 3},
    "dp4-zero1": {"parallel__zero_stage": 1},
    "tp2dp2-zero2": {"parallel__tensor": 2, "parallel__zero_stage": 2},
    "dp4-zero0": {"parallel__zero_stage": 0},
}
BACK = {  # from four processes (as named above, from their first step) to one
    "tp4-zero3": {"parallel__zero_stage": 1},
    "dp4-zero1": {"parallel__zero_stage": 3},
    "tp2dp2-zero2": {"parallel__zero_stage": 0},
}


def begin(root: Path) -> list[int]:
    """One process: the sources, stopped, and one of them to its end."""
    codes = [
        small_training.train(root / name, root / "data", STOP, **PLAIN | how)
        for name, how in SOURCES.items()
    ]
    small_training.copy(root / "one-zero0", root / "whole")
    return [
        *codes,
        small_training.train(root / "whole", root / "data", **PLAIN | SOURCES["one-zero0"]),
    ]


def in_four(root: Path) -> list[int]:
    """Four processes: on from each source, and runs of their own, stopped."""
    codes = []
    for name, layout in FOUR.items():
        for source in SOURCES:
            small_training.copy(root / source, root / f"{source}-{name}")
            codes.append(
                small_training.train(root / f"{source}-{name}", root / "data", **PLAIN | layout)
            )
        if name in BACK:
            codes.append(
                85 - small_training.train(root / name, root / "data", STOP, **PLAIN | layout)
            )
    return codes


def back(root: Path) -> list[int]:
    return [
        small_training.train(root / name, root / "data", **PLAIN | layout)
        for name, layout in BACK.items()
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small_run.write_dataset(root / "data")
    assert processes.run(1, begin, root) == [[85, 85, 0]]
    assert {code for codes in processes.run(4, in_four, root) for code in codes} == {0}
    assert processes.run(1, back, root) == [[0] * len(BACK)]
    return root


@pytest.mark.parametrize(
    "name", [*(f"{source}-{name}" for source in SOURCES for name in FOUR), *BACK]
)
def test_the_losses_go_on(root, name):
    got, expected = (torch.tensor(small_run.curve(root / n)) for n in (name, "whole"))
    assert len(got) == STEPS
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
