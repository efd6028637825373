"""`infty plan`: what it says, what it ranks, what it refuses."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infty import hardware
from infty.errors import UserError
from infty_pretrain import config as configs
from infty_tools.cli import app
from infty_tools.plan import search as plan_search
from infty_tools.plan.command import parse_count

CONFIGS = Path(__file__).parents[2] / "configs"
CLUSTERS = {"125m": 1, "1.3b": 4, "7b": 16}
GPU = hardware.find("h100-80")


def _plan(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_configs_fit_the_clusters_they_name(name):
    result = _plan(
        "--config",
        str(CONFIGS / f"pg19-{name}.yaml"),
        "--nodes",
        str(CLUSTERS[name]),
        "--tokens",
        "10B",
    )
    assert result.exit_code == 0, result.exception
    for said in (
        "parameters",
        "GFLOP",
        "on a rank",
        "GiB",
        "GB sent",
        "tokens/s",
        "10,000,000,000 tokens in",
        "days",
        "assumed:",
        "layouts that fit",
    ):
        assert said in result.output


def test_what_cannot_fit_is_refused_with_what_to_change():
    result = _plan(
        "--config",
        str(CONFIGS / "pg19-7b.yaml"),
        "--gpu",
        "a100-40",
        "batch.lanes=16",
        "parallel.zero_stage=1",
        "parallel.tensor=1",
        "parallel.sequence=false",
        "batch.micro_batch=null",
    )
    assert isinstance(result.exception, UserError)
    assert "does not fit" in str(result.exception) and "It fits" in str(result.exception)
    assert "parallel.zero_stage=3" in str(result.exception) or "parallel.tensor=" in str(
        result.exception
    )


def test_nothing_fits_a_small_gpu_however_many():
    result = _plan(
        "--config",
        str(CONFIGS / "pg19-7b.yaml"),
        "--gpu",
        "rtx4090-24",
        "--nodes",
        "1",
        "--gpus-per-node",
        "1",
        "batch.lanes=1",
        "batch.micro_batch=1",
        "parallel.tensor=1",
        "parallel.sequence=false",
    )
    assert "No layout" in str(result.exception)


def test_a_layout_that_cannot_be_spread_names_the_key():
    result = _plan("--config", str(CONFIGS / "pg19-125m.yaml"), "--nodes", "3")
    assert "batch.lanes" in str(result.exception)


def test_unknown_gpu_names_the_nearest():
    with pytest.raises(UserError, match="did you mean h100-80"):
        hardware.find("h100")


@pytest.mark.parametrize(
    "text, value", [("10B", 10**10), ("300M", 3 * 10**8), ("5e9", 5 * 10**9), ("7", 7)]
)
def test_token_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "B", "ten", "-1M"])
def test_odd_token_counts_are_refused(text):
    with pytest.raises(UserError):
        parse_count(text)


def test_everything_ranked_fits_and_is_a_valid_run():
    config = configs.load(CONFIGS / "pg19-1.3b.yaml")
    options = plan_search.search(config, 2, 8, GPU)
    speeds = [o.cost.tokens_per_second for o in options]
    assert options and speeds == sorted(speeds, reverse=True)
    for option in options[:20]:
        assert option.total <= GPU.memory
        again = configs.load(CONFIGS / "pg19-1.3b.yaml", option.overrides())
        assert plan_search.of_config(again, 16) == option.layout


def test_more_sharding_needs_less():
    """Along the ladder of stages, and with recompute, a rank keeps less; traffic grows from stage 2 to 3."""
    config = configs.load(CONFIGS / "pg19-1.3b.yaml")
    layout = plan_search.of_config(config, 32)

    def option(**changes):
        return plan_search.evaluate(config, dataclasses.replace(layout, **changes), GPU, 8)

    held = [
        sum(option(zero_stage=s).bytes[k] for k in ("weights", "masters", "moments", "gradients"))
        for s in (0, 1, 2, 3)
    ]
    assert held == sorted(held, reverse=True) and held[0] > 4 * held[3]
    assert option(recompute=True).bytes["activations"] < option().bytes["activations"] / 4
    assert option(recompute=True).cost.tokens_per_second < option().cost.tokens_per_second
    parts = option(window_segments=16, part_segments=2)
    assert parts.bytes["activations"] < option(window_segments=16).bytes["activations"] / 4
    assert parts.cost.tokens_per_second < option(window_segments=16).cost.tokens_per_second
    at_once = option(part_segments=layout.window_segments)
    assert at_once.bytes == option().bytes and at_once.cost == option().cost


def test_planning_imports_no_deepspeed():
    import subprocess

    code = (
        "import sys; sys.argv = ['infty', 'plan', '-c', sys.argv[1]]\n"
        "from infty_tools import cli\n"
        "try: cli.main()\nexcept SystemExit: pass\nassert 'deepspeed' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(CONFIGS / "pg19-125m.yaml")],
        check=True,
        capture_output=True,
    )
