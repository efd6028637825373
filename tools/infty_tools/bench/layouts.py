"""`infty bench layouts`: the same training in every parallel layout, against one process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from infty_tools.bench import ledger
from infty_tools.options import any_path, check_new_file, whole

KINDS = ("loss", "norm", "weights")
LAYOUT = ("tensor", "stage", "sequence", "recompute", "accumulation")
AT_ONCE = 8
"""Layouts that are trained by the same processes: starting them takes longer than a layout."""
MOST = 1e-5
"""Largest relative difference that counts as the same: a few times the roundings of float32 that 20 steps add up."""


def layouts(
    steps: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Optimizer steps of every run")
    ] = 20,
    most: Annotated[
        int, typer.Option(parser=whole(1, 8), metavar="N", help="Most processes at once")
    ] = 8,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Ledger (JSON lines): layouts that are in it, of this commit, are not trained again",
        ),
    ] = None,
) -> None:
    """Compare losses, gradient norms and weights of all layouts with those of one process.

    Example:

      infty bench layouts --steps 20 --most 4

    Tensor parallel 1, 2, 4 x data parallel 1, 2 x ZeRO 0 to 3 x sequence parallel x recompute x accumulation x signal,
    in real processes over gloo, fp32; every process is compared. Exits with status 1 where anything differs by more
    than 1e-5. Takes about half an hour on two cores; stopped, it goes on where it was when started again with the same
    --output.
    """
    if output is not None:
        check_new_file(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
    from rich.progress import track

    from infty.memory.signals import SIGNALS

    sitting = Sitting(output, steps)
    rows: list[ledger.Row] = []
    for signal in SIGNALS:
        worlds = [w for w in (1, 2, 4, 8) if w <= most]
        for world in track(worlds, description=f"signal: {signal}"):
            rows += sitting.trained(signal, world)
    _show(rows)
    if any(row[kind] is not None and row[kind] > MOST for row in rows for kind in KINDS):
        raise typer.Exit(1)


class Sitting:
    """Trains layouts that are not in the ledger yet; a row of another commit or number of steps counts for nothing."""

    def __init__(self, path: Path | None, steps: int) -> None:
        self.path, self.steps = path, steps
        self.common = {"steps": steps, "commit": ledger.commit()}
        self.references: dict[str, Any] = {}
        self.done = {
            key_of(row): row for row in ledger.rows(path) if self.common.items() <= row.items()
        }

    def trained(self, signal: str, world: int) -> list[ledger.Row]:
        """Rows of all layouts of so many processes, a few layouts at a time."""
        wanted = [{"signal": signal, "processes": world, **layout} for layout in grid(world)]
        missing = [row for row in wanted if key_of(row) not in self.done]
        for i in range(0, len(missing), AT_ONCE):
            for row in self._train(signal, world, missing[i : i + AT_ONCE]):
                self.done[key_of(row)] = row
                ledger.write_row(self.path, row)
        return [self.done[key_of(row)] for row in wanted]

    def _train(self, signal: str, world: int, wanted: list[ledger.Row]) -> list[ledger.Row]:
        from infty_tools import processes

        config = model(signal)
        if signal not in self.references:
            alone = processes.run(1, several, config, [{"stage": 1}], self.steps)
            self.references[signal] = alone[0][0]
        layouts = [{name: row[name] for name in LAYOUT} for row in wanted]
        ranks = processes.run(world, several, config, layouts, self.steps, timeout=3600)
        return [
            {**row, **worst([difference(self.references[signal], r) for r in same]), **self.common}
            for row, same in zip(wanted, zip(*ranks, strict=True), strict=True)
        ]


def key_of(row: ledger.Row) -> tuple:
    """What tells a layout from the others."""
    return tuple(row[name] for name in ("signal", "processes", *LAYOUT))


def model(signal: str) -> Any:
    """A small model with everything that parallelism touches: groups of heads that four ranks can split, a short-term
    memory, tied embeddings for one signal and untied for the other."""
    from infty.config import ModelConfig
    from infty.memory.config import MemoryConfig
    from infty.memory.signals import SIGNALS

    of_attention = SIGNALS[signal].of_attention
    memory = MemoryConfig(basis=16, bins=16, kl_weight=1e-2, signal=signal, gate=not of_attention)
    return ModelConfig(
        family="llama" if of_attention else "gpt2",
        vocab_size=61,
        hidden_size=64,
        layers=2,
        heads=8,
        kv_heads=4,
        segment_length=8,
        stm_length=8,
        vocab_multiple=8,
        init_std=0.05,
        memory=memory,
    )


def grid(world: int) -> list[dict[str, Any]]:
    """Every layout of so many processes."""
    out = []
    for tensor, stage, sequence, recompute, accumulation in itertools.product(
        (1, 2, 4), (0, 1, 2, 3), (False, True), (False, True), (1, 2)
    ):
        if world in (tensor, 2 * tensor) and not (sequence and tensor == 1):
            out.append(
                {
                    "tensor": tensor,
                    "stage": stage,
                    "sequence": sequence,
                    "recompute": recompute,
                    "accumulation": accumulation,
                }
            )
    return out


def several(config: Any, wanted: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Runs in every process: one layout after another."""
    from infty_tools.bench import layout_training

    return [layout_training.train(config, steps, **layout) for layout in wanted]


def difference(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, float | None]:
    """Largest relative differences of losses and norms, and of weights by the size of their tensor; infinite where
    something is not a number."""

    def relative(name: str) -> float | None:
        if got[name][0] is None:  # DeepSpeed reports no norm at stage 0 in fp32
            return None
        return largest(abs(a - b) / abs(a) for a, b in zip(expected[name], got[name], strict=True))

    weights = largest(
        float((got["weights"][k] - w).abs().max() / w.abs().max().clamp(min=1e-12))
        for k, w in expected["weights"].items()
    )
    return {"loss": relative("losses"), "norm": relative("norms"), "weights": weights}


def largest(differences: Iterable[float]) -> float:
    """The largest of some differences; NaN, which max() may pass over, counts as infinite."""
    return max(math.inf if math.isnan(d) else d for d in differences)


def worst(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The largest difference of each kind, None where none was reported."""
    return {
        kind: max((r[kind] for r in rows if r[kind] is not None), default=None) for kind in KINDS
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "signal",
        "tensor",
        "data",
        "ZeRO",
        "layouts",
        "loss",
        "norm",
        "weights",
        title="largest relative difference to one process",
    )

    def key(row: dict[str, Any]) -> tuple:
        return row["signal"], row["tensor"], row["processes"] // row["tensor"], row["stage"]

    for group, members in itertools.groupby(sorted(rows, key=key), key):
        members = list(members)
        found = worst(members).values()
        table.add_row(
            *map(str, group), str(len(members)), *("-" if w is None else f"{w:.1e}" for w in found)
        )
    Console().print(table)
    print(f"{len(rows)} layouts; the worst loss differs by {max(r['loss'] for r in rows):.1e}")
    for row in rows:
        wrong = [kind for kind in KINDS if row[kind] is not None and row[kind] > MOST]
        if wrong:
            print(f"{' and '.join(wrong)} differ by more than {MOST:.0e}: {row}")
