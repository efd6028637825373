"""Values of the command line are checked before any work begins."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
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


def verbs(app: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(words, function) of every verb."""
    for command in app.registered_commands:
        yield " ".join((*before, command.name)), command.callback
    for group in app.registered_groups:
        yield from verbs(group.typer_instance, (*before, group.name))


def options() -> Iterator[tuple[str, set[type], Any]]:
    """(name, its types, what typer knows of it) of every option and argument of every verb."""
    for words, function in verbs(app):
        hints = get_type_hints(function, include_extras=True)
        for name in inspect.signature(function).parameters:
            hint = hints[name]
            info = next(
                (m for m in getattr(hint, "__metadata__", ()) if hasattr(m, "parser")), None
            )
            yield f"{words}:{name}", plain(get_args(hint)[0] if info else hint), info


def plain(hint: Any) -> set[type]:
    inner = [plain(part) for part in get_args(hint)]
    return set().union(*inner) if inner else {hint}


OPTIONS = {name: (kinds - {type(None)}, info) for name, kinds, info in options()}


def test_the_walk_finds_the_options():
    assert {"generate:max_new_tokens", "bench memory:batch", "submit:nodes"} <= OPTIONS.keys()
    assert len(OPTIONS) > 125


@pytest.mark.parametrize("name", [n for n, (kinds, _) in OPTIONS.items() if kinds != {bool}])
def test_every_option_is_read_by_a_parser_that_checks_it(name):
    """Whatever the type: no number without a range, no text that is empty or not UTF-8."""
    kinds, info = OPTIONS[name]
    assert info is not None and info.parser is not None
    assert info.min is None and info.max is None, "a range of typer's lets nan through"
    for text in [""] if Path in kinds else ["", "caf\udce9"]:
        with pytest.raises(typer.BadParameter):
            info.parser(text)


@pytest.mark.parametrize("name", [n for n, (kinds, _) in OPTIONS.items() if kinds & {int, float}])
def test_every_number_has_a_range_that_the_message_names(name):
    accepted = OPTIONS[name][1].parser.accepted
    outside = [accepted.least - 1, accepted.most * 2 + 1, "nan", "inf", "-inf", "1e400", "many"]
    outside += ["1.5"] if accepted.whole else []
    for value in outside:
        with pytest.raises(typer.BadParameter) as error:
            OPTIONS[name][1].parser(str(value))
        assert f"is not {accepted}" in error.value.message
        assert "from" in str(accepted) or "above" in str(accepted)


@pytest.mark.parametrize(
    ("words", "said_of_it"),
    [
        ("bench retention --tokens 512,nan", "nan is not a whole number from 1"),
        ("bench retention --policies uniform,2", "model.memory.contraction: 2.0 must be a number"),
        ("bench retention --out /dev/null/x", "/dev/null is no folder"),
        ("bench growth --sizes 1e-3,nan", "nan is not a number above 0 and below 1"),
        ("bench growth --warps off,of", "of is not one of off"),
        ("bench growth --densities gaussian,bell", "'bell' is not one of"),
        ("bench recall --systems joint,jont", "jont is not one of"),
        ("bench recall --tasks facts,fact", "fact is not one of"),
        ("bench recall --hidden 66 --tasks sorting", "model.heads"),
        ("bench memory --device warp9", "choose auto, cpu"),
        ("bench memory --device meta", "choose auto, cpu"),
        ("bench memory --heads 0", "from 1"),
        ("bench layouts --most 9", "from 1 to 8"),
        ("bench layouts --output /", "is a folder"),
        ("bench checkpoint --output /dev/null/x", "/dev/null is no folder"),
        ("bench faults --tries 0", "from 1"),
        ("bench inputs --seed -1", "from 0"),
        ("submit -c configs/demo.yaml --nodes 99999", "from 1 to 65,536"),
        ("submit -c configs/demo.yaml --memory lots", "such as 200G"),
        ("submit -c configs/demo.yaml --time noon", "24:00:00"),
        ("submit -c configs/demo.yaml --array a-b", "0-31%4"),
        ("submit -c configs/demo.yaml --verb train", "pretrain, evaluate, prepare"),
        ("plan -c configs/demo.yaml --gpus-per-node 5000", "from 1 to 1,024"),
        ("export --checkpoint x --output y --dtype int4", "float32, bfloat16, float16"),
    ],
)
def test_before_any_work_it_says_what_is_accepted(words, said_of_it):
    assert said_of_it in said(*words.split())


@pytest.mark.parametrize(
    "option, words",
    [
        ("--documents=0", "whole number from 1"),
        ("--tokens=1", "whole number from 2"),
        ("--tokens=-3", "whole number from 2"),
        ("--window=0", "whole number from 1"),
        ("--stride=0", "whole number from 1"),
        ("--memory=", "must be one or more of on, off, emptied, other"),
        ("--memory=on,of", "must be one or more of on, off, emptied, other"),
        ("--memory=on,on", "each once"),
        ("--plots=", "it is empty"),
        ("--plots=/dev/null", "is a file"),
        ("--plots=/dev/null/x", "/dev/null is no folder"),
        ("--lanes=0", "from 1"),
        ("--lanes=nan", "from 1"),
        ("--output=", "it is empty"),
        ("--output=/", "is a folder"),
        ("--output=/dev/null/x", "/dev/null is no folder"),
    ],
)
def test_evaluate(tmp_path, option, words):
    assert words in said("evaluate", tmp_path, "--data", tmp_path, option)


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
        ("--top-p=1.1", "from 0 to 1"),
        ("--max-new-tokens=0", "from 1"),
        ("--prompt= ", "nothing but space"),
        ("--read=", "it is empty"),
        ("--memory=", "it is empty"),
        ("--memory=a --memory=b", "bookmarks cannot be merged"),
        ("--save-memory=x", "name a text with --read"),
        ("--device=", "it is empty"),
    ],
)
def test_generate(tmp_path, option, words):
    assert words in said(
        "generate",
        "--model",
        tmp_path,
        *(["--prompt", "x"] * ("prompt" not in option)),
        *option.split(" --")[:1],
        *(f"--{more}" for more in option.split(" --")[1:]),
    )


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", "--input", "a", "--output", "b", "--input", "c"],
        ["evaluate", "a", "--data", "b", "--data", "b"],
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
        (["evaluate", "x" * 5000, "--data", "y"], "File name too long"),
        (["evaluate", "x", "--data", "a\nb"], "does not exist"),
        (["evaluate", "x", "--data", "y", "--lanes", "a\nb"], "whole number"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["infty", *words])
    codes = []
    monkeypatch.setattr(cli, "end", codes.append)
    cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert codes == [2] and len(lines) == 1 and said in lines[0]
