"""Values of the command line are checked before any work begins."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools import cli
from infty_tools.cli import app


def said(*arguments: object) -> str:
    """What a command that is refused says, in one line."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert isinstance(result.exception, UserError) or result.exit_code == 2, (
        result.output,
        result.exception,
    )
    return " ".join(f"{result.exception} {result.output}".replace("│", " ").split())


@pytest.mark.parametrize(
    "option, words",
    [
        ("--windows=0", "whole number from 1"),
        ("--windows=-3", "whole number from 1"),
        ("--lanes=0", "from 1"),
        ("--lanes=nan", "from 1"),
        ("--output=", "it is empty"),
        ("--output=/", "is a folder"),
        ("--output=/dev/null/x", "/dev/null is no folder"),
    ],
)
def test_evaluate(tmp_path, option, words):
    assert words in said("evaluate", "--checkpoint", tmp_path, "--data", tmp_path, option)


@pytest.mark.parametrize("size", ["5 gigs", "5", "GB", "-1GB", "0GB", "nanGB", "1e9GB", "5GB5", ""])
def test_export(tmp_path, size):
    assert "is not a size" in said(
        "export", "--checkpoint", tmp_path, "--output", tmp_path / "x", "--max-shard", size
    )


@pytest.mark.parametrize(
    "option, words",
    [
        ("--prompt=caf\udce9", "not UTF-8"),
        ("--seed=-1", "from 0"),
        ("--seed=99999999999999999999", "from 0"),
        ("--temperature=nan", "--temperature"),
        ("--temperature=inf", "--temperature"),
        ("--top-p=nan", "--top-p"),
    ],
)
def test_generate(tmp_path, option, words):
    assert words in said(
        "generate", "--model", tmp_path, *(["--prompt", "x"] * ("prompt" not in option)), option
    )


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "--input", "a", "--output", "b", "--input", "c"],
        ["evaluate", "--checkpoint", "a", "--data", "b", "--data", "b"],
        ["pretrain", "-c", "a.yaml", "--config", "b.yaml"],
        ["bench", "inputs", "--seed", "1", "--seed", "2"],
    ],
)
def test_an_option_that_is_given_twice_is_refused(words):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "it is given 2 times: give it once" in result.output


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"])
def test_one_rank_speaks_of_words_that_all_were_given(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", ["infty", "evaluate", "--lanes", "0"])
    monkeypatch.setattr(cli, "end", lambda code: None)
    for rank, lines in (("0", 1), ("3", 0)):
        monkeypatch.setenv(name, rank)
        cli.main()
        assert capsys.readouterr().err.count("error: ") == lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--tokens", "inf", "-c", "configs/demo.yaml"], "--tokens inf is not a number"),
        (["evaluate", "--checkpoint", "x" * 5000, "--data", "y"], "File name too long"),
        (["evaluate", "--checkpoint", "x", "--data", "a\nb"], "does not exist"),
        (["evaluate", "--checkpoint", "x", "--data", "y", "--lanes", "a\nb"], "whole number"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["infty", *words])
    codes = []
    monkeypatch.setattr(cli, "end", codes.append)
    cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert codes == [2] and len(lines) == 1 and said in lines[0]
