"""The recipes of CONTRIBUTING.md, run as they stand, and what `make check` and pre-commit run."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from infty import config as model_config
from infty.config import ModelConfig
from infty.errors import UserError
from infty.layers.memories.base import Layout
from infty.memory import contraction, densities
from infty.memory.basis import GaussianBasis
from infty.memory.config import MemoryConfig
from infty.memory.reading import Parameter, statistics
from infty.memory_kinds import memory_of
from infty.models.lm import InftyLM
from infty_pretrain import config as configs
from support import twins

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "layers": 1,
    "heads": 2,
    "segment_length": 8,
    "vocab_multiple": 8,
}


def recipe(name: str) -> types.ModuleType:
    """The module that a recipe's block of code makes."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(rf"```python recipe={name}\n(.*?)```", page, re.DOTALL)
    module = types.ModuleType(f"recipe_{name}")
    sys.modules[module.__name__] = module  # where dataclasses look up their annotations
    exec(compile(block[1], f"CONTRIBUTING.md: {name}", "exec"), module.__dict__)
    return module


def trained(config: ModelConfig) -> InftyLM:
    """A model after one backward pass over a window of six segments."""
    torch.manual_seed(1)
    model = InftyLM(config)
    tokens = torch.randint(0, config.vocab_size, (2, 6, config.segment_length))
    reset = torch.zeros(2, 6, dtype=torch.bool)
    loss, _ = model(tokens, reset, model.initial_state(2), tokens, statistics=True)
    loss.backward()
    assert torch.isfinite(loss)
    return model


def test_a_contraction_policy(monkeypatch, single_process):
    Floor = recipe("policy").Floor
    monkeypatch.setitem(contraction.NAMED, "floor", Floor)
    plan = contraction.policy("floor").plan(torch.tensor([0, 1, 100]))
    assert plan.keep.tolist() == [0, 0.5, 15 / 16]
    written = {"model": {"memory": {"basis": "16", "bins": "16", "contraction": "floor"}}}
    memory = configs.from_dict(written | {"run": {"steps": "1"}}).model.memory
    assert memory.contraction == "floor"
    trained(ModelConfig(**SMALL, memory=memory))


def test_a_density(monkeypatch, single_process):
    monkeypatch.setitem(densities.FAMILIES, "box", None)  # taken out again after the test
    Box = recipe("density").Box
    basis = GaussianBasis(8, (0.1,))
    mu, sigma = 0.6, 0.15
    box = Box(torch.tensor([[[mu]]]), torch.tensor([[[sigma**2]]]))
    half = 3**0.5 * sigma
    t = torch.linspace(mu - half, mu + half, 10_001, dtype=torch.float64)
    expected = basis.evaluate(t, torch.float64).mean(0)
    torch.testing.assert_close(
        box.expectation(basis)[0, 0, 0].double(), expected, rtol=1e-3, atol=1e-4
    )
    assert box.outside().item() == pytest.approx(0, abs=1e-6)
    assert {"mu", "sigma"} <= statistics(box, 4).keys()
    assert box.histogram(4).sum().item() == pytest.approx(1)
    trains_and_has_a_twin("box", "weight_mu")


def trains_and_has_a_twin(density: str, parameter: str) -> None:
    """A family of densities that the product has not heard of: gradients, costs and the transformers twin."""
    memory = MemoryConfig(basis=16, bins=16, density=density)
    model = trained(ModelConfig(**SMALL, memory=memory))
    maps = model.blocks[0].memories["memory"].maps
    assert maps.get_parameter(parameter).grad.abs().sum() > 0
    layout = Layout(tensor=1, lanes=1, segments=4, width=4)
    costs = memory_of(memory).costs(model.config, 0, memory, layout)
    assert costs.reads > 0 and costs.saved > 0
    for signal in ("heads", "hidden"):
        config = replace(twins.LLAMA, memory=replace(memory, signal=signal))
        model, twin = twins.pair(config)
        ids = twins.tokens(2, 48)
        with torch.no_grad():
            expected = twins.training_logits(model, ids)
            first = twin(ids[:, :13])
            rest = twin(ids[:, 13:], past_key_values=first.past_key_values)
        twins.close(torch.cat([first.logits, rest.logits], 1), expected)


def test_a_density_with_a_parameter_of_its_own(monkeypatch, single_process):
    class Sharp(densities.Gibbs):
        """Several modes, as sharp as a head learns them to be."""

        @classmethod
        def parameters(cls, memory, rows):
            return {"log_sharpness": Parameter((rows,), value=torch.zeros(rows))}

        @classmethod
        def place(cls, memory, q, keys, weights):
            sharpness = weights["log_sharpness"].float().exp().view(*q.shape[1:3], 1, 1)
            return super().place(memory, q * sharpness.to(q.dtype), keys, weights)

    monkeypatch.setitem(densities.FAMILIES, "sharp", Sharp)
    trains_and_has_a_twin("sharp", "log_sharpness")


def test_a_model_family(monkeypatch, single_process):
    monkeypatch.setattr(model_config, "FAMILIES", dict(model_config.FAMILIES))
    recipe("family")
    config = ModelConfig(**SMALL, family="plain", memory=MemoryConfig(basis=16, bins=16))
    assert (config.positions, config.tie_embeddings) == ("none", True)
    assert trained(config).head is None


def test_every_family_can_be_named_in_a_config():
    named = typing.get_args(typing.get_type_hints(ModelConfig)["family"])
    assert set(model_config.FAMILIES) == set(named)


def test_a_verb(tmp_path):
    app = typer.Typer()
    app.command()(recipe("verb").lines)
    (tmp_path / "book.txt").write_text("one\n\nthree\n")
    done = CliRunner().invoke(app, [str(tmp_path / "book.txt"), "--least", "1"])
    assert (done.exit_code, done.stdout) == (0, "2\n")
    missing = CliRunner().invoke(app, [str(tmp_path / "none.txt")])
    assert isinstance(missing.exception, UserError)


def test_make_check_runs_what_continuous_integration_and_the_hooks_run():
    def commands(target: str) -> str:
        asked = ["make", "-n", target]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    said = commands("check")
    tools = ("ruff format", "ruff check", "mypy")
    assert all(tool in said for tool in tools)
    assert "ruff format --check" in said  # it changes nothing
    assert "make check" in (ROOT / ".ci" / "run").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = [hook["entry"] for hook in hooks]
    assert all(any(tool in entry for entry in entries) for tool in tools)
    for entry in entries:
        assert entry.startswith(".venv-infty/bin/"), entry


def test_the_pages_name_files_that_exist():
    """What CONTRIBUTING.md calls a file or a folder of the repository is one."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:infty|pretrain|tools|tests)/[\w/.]+)`", page)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
