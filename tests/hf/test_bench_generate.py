"""`infty bench generate`: a token costs the same after a long text, and the figures are written."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from infty_tools.bench.generate import KINDS
from infty_tools.cli import app

pytestmark = pytest.mark.usefixtures("single_process")
SMALL = "--hidden 32 --layers 1 --heads 2 --segment 16 --prompt 64 --repeats 1 --threads 1"


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_after_a_long_text_costs_what_it_costs_after_a_short_one(kind, tmp_path):
    """Sizes to the byte; times, on a busy machine, within a factor that a cost that grows would pass."""
    words = f"bench generate {SMALL} --memory {kind} --contexts 4096,64 --tokens 9"
    result = CliRunner().invoke(app, [*words.split(), "--output", str(tmp_path / "found.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "found.json").read_text())
    short, long = found["decoding"]
    assert (short["context"], long["context"]) == (64, 4096)
    assert short["cache_mib"] == long["cache_mib"] > 0
    assert long["process_mib"] < short["process_mib"] + 100
    assert long["seconds"] < 10 * short["seconds"]
    assert found["reading"].keys() == {"infty", "llama"} and min(found["reading"].values()) > 0
    assert "4,096" in result.output and "llama reads 64 tokens" in result.output
