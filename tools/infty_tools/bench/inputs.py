"""`infty bench inputs`: give every command inputs that are changed at random; see that each ends well."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from infty.errors import UserError
from infty_tools.bench import ledger
from infty_tools.bench.input_trials import GOOD
from infty_tools.options import SEED, any_path, check_new_file, several, utf8, whole


def inputs(
    trials: Annotated[
        int,
        typer.Option(
            parser=whole(1, 10**9), metavar="N", help="Trials, divided evenly among the kinds"
        ),
    ] = 2000,
    kinds: Annotated[
        str | None,
        typer.Option(
            parser=several(utf8), help="Comma-separated [all]; a part of a name is enough"
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(parser=SEED, metavar="N", help="The same seed makes the same trials"),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Ledger (JSON lines): what is in it is not tried again, unless it ended badly",
        ),
    ] = None,
) -> None:
    """Change configs, command lines, texts, datasets, checkpoints and exports at random, and give them to infty.

    Example:

      infty bench inputs --trials 200 --kinds config,texts --output inputs.jsonl

    Each trial has to end right, or with status 2 and exactly one sentence: no traceback, no input changed, and no
    result left by a command that failed. Ends with status 1 if a trial did not. Takes about half a second a trial.
    """
    chosen = chosen_kinds(kinds)
    if output is not None:
        check_new_file(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
    done = read_ledger(output, seed)
    from rich.progress import track

    preload()
    with tempfile.TemporaryDirectory(prefix="infty-inputs-") as folder:
        harness = Harness(Path(folder), seed)
        rows = []
        for number in track(range(trials), description="inputs"):
            kind = chosen[number % len(chosen)]
            row = done.get((kind, number // len(chosen)))
            if row is None or row["outcome"] not in GOOD:
                row = harness.trial(kind, number // len(chosen))
                ledger.write_row(output, row)
            rows.append(row)
    show(rows)
    if output is not None:
        print(f"wrote {output}")
    if any(row["outcome"] not in GOOD for row in rows):
        raise typer.Exit(1)


def chosen_kinds(words: str | None) -> list[str]:
    """Names of kinds of inputs that have one of the comma-separated words. Raises UserError."""
    from infty_tools.bench.input_kinds import KINDS

    if words is None:
        return list(KINDS)
    found = []
    for word in (w.strip().lower() for w in words.split(",")):
        matches = [kind for kind in KINDS if word and word in kind]
        if not matches:
            raise UserError(
                f"--kinds: no kind of input has '{word}' in its name; there are: {', '.join(KINDS)}"
            )
        found += [kind for kind in matches if kind not in found]
    return found


def preload() -> None:
    """Do the imports that the commands need, once: every trial is a fork of this process."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from infty_pretrain import launch

    launch.quiet()
    import torch

    torch.set_num_threads(1)
    for module in (
        "infty_tools.evaluate.run",
        "infty_pretrain.trainer",
        "infty_tools.cli",
        "infty_tools.export.exporter",
        "infty_tools.writer",
    ):
        importlib.import_module(module)


class Harness:
    """Makes and judges trials in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        from infty_tools.bench.input_kinds import Inputs

        self.seed = seed
        self.folder = folder
        self.commit = ledger.commit()
        (folder / "right").mkdir()
        self.inputs = Inputs(folder / "right")

    def trial(self, kind: str, number: int) -> dict[str, Any]:
        """One trial as a row of the ledger; a trial is made of the seed, its kind and its number alone."""
        from infty_tools.bench.input_kinds import KINDS
        from infty_tools.bench.input_trials import carry_out

        # "../.." of its inputs is still a folder of this bench.
        place = self.folder / "trials" / "trial"
        (place / "inputs").mkdir(parents=True)
        trial = KINDS[kind](self.inputs, place, random.Random(f"{self.seed} {kind} {number}"))
        ending = carry_out(trial, place / "inputs")
        shutil.rmtree(place)
        return {
            "seed": self.seed,
            "kind": kind,
            "number": number,
            "mutation": trial.mutation,
            "outcome": ending.outcome,
            "seconds": round(ending.seconds, 3),
            "commit": self.commit,
            "said": ending.said,
        }


def read_ledger(path: Path | None, seed: int) -> dict[tuple[str, int], dict[str, Any]]:
    """The last row of each trial of a seed, by kind and number; a line cut short by a kill is left out."""
    return {(row["kind"], row["number"]): row for row in ledger.rows(path) if row["seed"] == seed}


def show(rows: list[dict[str, Any]]) -> None:
    """A table of kinds by outcomes, and every trial that ended badly."""
    from rich.console import Console
    from rich.table import Table

    outcomes = sorted({row["outcome"] for row in rows}, key=lambda name: (name not in GOOD, name))
    table = Table("inputs", "tried", *outcomes)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in (*kinds, "all"):
        some = [row for row in rows if kind in (row["kind"], "all")]
        counts = Counter(row["outcome"] for row in some)
        table.add_row(
            kind,
            str(len(some)),
            *(str(counts[name]) for name in outcomes),
            end_section=kind == kinds[-1],
        )
    Console().print(table)
    for row in rows:
        if row["outcome"] not in GOOD:
            print(
                f"{row['kind']} {row['number']} ({row['mutation']}): {row['outcome']}\n{row['said']}"
            )
