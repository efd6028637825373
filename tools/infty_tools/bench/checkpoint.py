"""`infty bench checkpoint`: how long training stands still for a checkpoint, written beside it or before it goes on."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from infty.errors import UserError
from infty_tools.bench import figures
from infty_tools.options import FiguresOutput, any_path, check_new_file, whole

STEPS, EVERY = 9, 3
SAID = re.compile(r"training paused for ([\d.]+) s, writing took ([\d.]+) s")


def checkpoint(
    hidden: Annotated[
        int, typer.Option(parser=whole(64, 2**16), metavar="N", help="Hidden size of the model")
    ] = 384,
    layers: Annotated[int, typer.Option(parser=whole(1, 1_000), metavar="N")] = 6,
    rounds: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Runs of each kind, in turn")
    ] = 2,
    folder: Annotated[
        Path | None,
        typer.Option(
            parser=any_path, metavar="PATH", help="On the disk to measure [the temporary folder]"
        ),
    ] = None,
    output: FiguresOutput = None,
) -> None:
    """Train one process with `checkpoint.overlap` on and off, in turn; report stalls and the length of the runs.

    Example:

      infty bench checkpoint --hidden 768 --layers 12 --folder /scratch
    """
    from infty_pretrain import launch

    launch.quiet()
    if hidden % 64:
        raise UserError(f"--hidden {hidden}: must be a multiple of 64")
    if folder is not None and not folder.is_dir():
        raise UserError(f"--folder {folder}: no such folder")
    if output is not None:
        check_new_file(output, "--output")
    with tempfile.TemporaryDirectory(prefix="infty-checkpoint-", dir=folder) as place:
        rows = measure(Path(place), hidden, layers, rounds)
    _show(rows)
    if output is not None:
        figures.write(output, rows)


def measure(place: Path, hidden: int, layers: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each run."""
    from rich.progress import track

    from infty_tools.bench import fault_runs

    data = fault_runs.dataset(place)
    rows = []
    for i in track(range(2 * rounds), description="runs", transient=True):
        overlap = i % 2 == 0
        run = place / f"run-{i}"
        path = _config(run, data, hidden, layers, overlap)
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "infty_tools", "pretrain", "--config", str(path)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        seconds = time.monotonic() - start
        if done.returncode:
            raise UserError(f"training ended with status {done.returncode}: {done.stderr[-2000:]}")
        found = SAID.findall(done.stdout)
        size = sum(p.stat().st_size for p in (run / "checkpoints" / f"step-{STEPS:08d}").iterdir())
        # The last checkpoint has nothing to be written beside.
        rows.append(
            {
                "overlap": overlap,
                "mib": size / 2**20,
                "run": seconds,
                "stalls": [float(stall) for stall, _ in found[:-1]],
                "writing": [float(written) for _, written in found[:-1]],
            }
        )
    return rows


def _config(run: Path, data: Path, hidden: int, layers: int, overlap: bool) -> Path:
    import yaml

    path = run.with_suffix(".yaml")
    path.write_text(
        yaml.safe_dump(
            {
                "run": {"folder": str(run), "steps": STEPS},
                "data": {"train": str(data)},
                "model": {
                    "hidden_size": hidden,
                    "layers": layers,
                    "heads": hidden // 64,
                    "segment_length": 64,
                    "stm_length": 64,
                    "memory": {"basis": 64},
                },
                "batch": {"lanes": 4, "window_segments": 2},
                "parallel": {"zero_stage": 1},
                "checkpoint": {"every": EVERY, "overlap": overlap},
                "logging": {"tensorboard": False},
            }
        )
    )
    return path


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "written",
        "training paused, s",
        "writing, s",
        "whole run, s",
        title=f"checkpoints of {rows[0]['mib']:,.0f} MiB; medians of {len(rows) // 2} run(s) each",
    )
    for overlap in (False, True):
        some = [r for r in rows if r["overlap"] == overlap]
        stall, writing = (
            statistics.median(x for r in some for x in r[name]) for name in ("stalls", "writing")
        )
        table.add_row(
            "while training goes on" if overlap else "before training goes on",
            f"{stall:.2f}",
            f"{writing:.2f}",
            f"{statistics.median(r['run'] for r in some):.1f}",
        )
    Console().print(table)
