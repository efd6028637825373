"""The sorting experiment: configs that differ in what they compare, fit one GPU, and train."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from infty_pretrain import config as configs
from infty_tools.cli import app
from infty_tools.tasks.making import make
from infty_tools.tasks.sorting import Sorting

CONFIGS = Path(__file__).parents[2] / "configs"
LENGTHS = {"4k": 4096, "8k": 8192, "16k": 16384}
SYSTEMS = ("transformer-xl", "compressive", "infty-paper", "infty")


def values(length: str, system: str) -> dict:
    return yaml.safe_load((CONFIGS / f"sorting-{length}-{system}.yaml").read_text())


@pytest.mark.parametrize("length", LENGTHS)
def test_systems_differ_in_their_memory_alone(length):
    rest = []
    for system in SYSTEMS:
        one = values(length, system)
        assert one["run"].pop("folder") == f"runs/sorting-{length}-{system}"
        assert (one["model"].pop("memory", None) is None) == (system == "transformer-xl")
        rest.append(one)
    assert all(one == rest[0] for one in rest)
    assert (
        rest[0]["batch"]["window_segments"] * rest[0]["model"]["segment_length"] == LENGTHS[length]
    )


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_they_fit_one_gpu(length, system):
    path = CONFIGS / f"sorting-{length}-{system}.yaml"
    result = CliRunner().invoke(
        app,
        ["plan", "--config", str(path), "--nodes", "1", "--gpus-per-node", "1"],
        env={"COLUMNS": "200"},
    )
    assert result.exit_code == 0, result.exception
    model = configs.load(path).model
    assert (model.hidden_size, model.layers, model.heads, model.head_size, model.vocab_size) == (
        300,
        3,
        6,
        50,
        22,
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_they_train_on_their_data(tmp_path, system):
    """The very file, with segments that a test can afford."""
    make(Sorting(128), tmp_path / "data", samples=16, validation_samples=8, seed=0)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "infty_tools",
            "pretrain",
            "--config",
            str(CONFIGS / f"sorting-4k-{system}.yaml"),
            f"data.train={tmp_path / 'data' / 'train'}",
            f"data.validation={tmp_path / 'data' / 'validation'}",
            f"run.folder={tmp_path / 'run'}",
            "run.steps=2",
            "model.segment_length=32",
            "model.stm_length=32",
            "evaluation.every=2",
            "logging.tensorboard=false",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    row = json.loads((tmp_path / "run" / "validation.jsonl").read_text())
    assert row["off"]["tokens"] == 8 * 20 and 0 <= row["off"]["accuracy"] <= 1
    assert ("on" in row) == (system != "transformer-xl")
