"""`infty bench sorting`: the ∞-former's sorting task, scaled down to a laptop, on every system of the harness.

Every system is trained by `infty pretrain` on the same sequences, in the same order, with the same blocks and the same
optimizer; one section of the config differs. The window holds a whole sequence, so gradients reach all that was
written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from infty.errors import UserError
from infty_tools import plots
from infty_tools.bench import figures
from infty_tools.options import SEED, check_folder, listed, new_folder, one_of, real, several, whole

SEGMENTS = 8
"""Segments of a sequence; a short-term memory holds one."""
SYSTEMS = (
    "no-memory",
    "transformer-xl",
    "compressive",
    "infty-paper",
    "infty-paper-backprop",
    "infty",
)
PUBLISHED = {
    "transformer-xl": (91, 63, 35),
    "compressive": (86, 77, 72),
    "infty-paper": (87, 83, 80),
}
"""Accuracy in per cent at 4k, 8k and 16k tokens, read off figure 3 of Martins et al. (2022)."""


def sorting(
    length: Annotated[
        int,
        typer.Option(
            parser=whole(1, 2**24), metavar="N", help="Tokens of a sequence, in 8 segments"
        ),
    ] = 256,
    steps: Annotated[
        int, typer.Option(parser=whole(1, 10**9), metavar="N", help="Training steps")
    ] = 1500,
    systems: Annotated[
        str, typer.Option(parser=several(one_of(*SYSTEMS)), help="Comma-separated")
    ] = ",".join(SYSTEMS),
    hidden: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Hidden size")
    ] = 64,
    layers: Annotated[int, typer.Option(parser=whole(1, 1_000), metavar="N")] = 2,
    lanes: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Sequences a step")
    ] = 16,
    lr: Annotated[
        float, typer.Option(parser=real(0, 100, above=True), metavar="X", help="Peak learning rate")
    ] = 3e-3,
    jobs: Annotated[
        int | None,
        typer.Option(
            parser=whole(1, 4_096), metavar="N", help="Systems trained side by side [one per core]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(parser=SEED, metavar="N", help="Of data and weights")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=new_folder, metavar="PATH", help="Folder for runs, sorting.json and sorting.png"
        ),
    ] = None,
) -> None:
    """Train every system on the sorting task; report the accuracy on held-out sequences.

    The answer is given but for its next token (teacher forcing): 5 % is chance, about 18 % is knowing which symbols
    are still missing.

    Example:

      infty bench sorting --systems transformer-xl,infty --steps 1000 --out sorting
    """
    from infty_pretrain import config as configs_of_runs

    chosen = listed(systems)
    if length % (8 * SEGMENTS):
        raise UserError(f"--length {length}: must be a multiple of {8 * SEGMENTS}")
    if out is not None and out.exists():
        raise UserError(f"--out {out} exists: give a new folder")
    if out is not None:
        check_folder(out, "--out")
        plots.pyplot()
    for name in chosen:  # all are checked before one begins
        values = config(name, Path("runs"), length, steps, hidden, layers, lanes, lr, seed)
        configs_of_runs.from_dict(values, f"--systems {name}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        configs = {
            name: config(name, folder, length, steps, hidden, layers, lanes, lr, seed)
            for name in chosen
        }
        rows = measure(configs, folder, length, seed, jobs or os.cpu_count() or 1)
    _show(rows, length)
    if out is not None:
        figures.write(out / "sorting.json", rows)
        _plot(rows, length, out / "sorting.png")
        print(f"wrote {out / 'sorting.json'} and {out / 'sorting.png'}")


def config(
    name: str,
    folder: Path,
    length: int,
    steps: int,
    hidden: int,
    layers: int,
    lanes: int,
    lr: float,
    seed: int,
) -> dict[str, Any]:
    """A run's config as plain values; only what `_memories` says differs between systems."""
    segment = length // SEGMENTS
    model = {
        "family": "llama",
        "hidden_size": hidden,
        "layers": layers,
        "heads": 4,
        "segment_length": segment,
        "positions": "relative",
        "stm_length": segment,
    } | _memories(segment)[name]
    return {
        "run": {"folder": str(folder / name), "steps": steps, "seed": seed},
        "data": {
            "train": str(folder / "data" / "train"),
            "validation": str(folder / "data" / "validation"),
        },
        "model": model,
        "batch": {"lanes": lanes, "window_segments": SEGMENTS},
        "optimizer": {"lr": lr, "weight_decay": 0.0},
        "schedule": {"warmup_steps": max(1, steps // 30)},
        "parallel": {"zero_stage": 1},
        "checkpoint": {"every": steps},
        "logging": {"every": max(1, steps // 30), "tensorboard": False},
        "evaluation": {"every": max(1, steps // 12), "windows": 10**6},
    }


def _memories(segment: int) -> dict[str, dict[str, Any]]:
    """What each system has beyond the segment. Long memories hold as many numbers as two segments do."""
    basis = 2 * segment
    # The preset's widths are made for 512 functions.
    paper = {
        "preset": "paper-sorting",
        "basis": basis,
        "samples": basis,
        "widths": [5.12 / basis, 25.6 / basis],
        "precision": "float32",
    }
    return {
        "no-memory": {"stm_length": 0, "memory": None},
        "transformer-xl": {"memory": None},
        "compressive": {"memory": {"kind": "compressive", "length": segment, "ratio": 4}},
        "infty-paper": {"memory": paper},
        "infty-paper-backprop": {
            "memory": paper | {"backprop": True}
        },  # gradients reach what is written
        "infty": {"memory": {"basis": basis}},
    }


def measure(
    configs: dict[str, dict[str, Any]], folder: Path, length: int, seed: int, jobs: int
) -> list[dict]:
    """Make the data, train, and read what the evaluations found: a row a system."""
    from infty_pretrain import launch

    launch.quiet()
    from infty_tools.tasks.making import make
    from infty_tools.tasks.sorting import Sorting

    lanes, steps = next((c["batch"]["lanes"], c["run"]["steps"]) for c in configs.values())
    if not (folder / "data").exists():
        make(Sorting(length), folder / "data", lanes * steps, validation_samples=256, seed=seed)
    from rich.progress import Progress

    with ThreadPoolExecutor(jobs) as pool, Progress(transient=True) as progress:
        bars = {name: progress.add_task(name, total=steps) for name in configs}
        running = [
            pool.submit(
                _train,
                name,
                values,
                folder,
                jobs,
                lambda done, bar=bars[name]: progress.update(bar, completed=done),
            )
            for name, values in configs.items()
        ]
        return [r.result() for r in running]


def _train(name: str, values: dict[str, Any], folder: Path, jobs: int, tell: Any) -> dict[str, Any]:
    """One `infty pretrain`, in a process of its own."""
    import yaml

    path, run = folder / f"{name}.yaml", Path(values["run"]["folder"])
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with (
        open(folder / f"{name}.log", "w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "infty_tools", "pretrain", "--config", str(path)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": threads},
        ) as process,
    ):
        while process.poll() is None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                tell(len(_rows(run / "metrics.jsonl")))
    if process.returncode:
        raise UserError(
            f"training {name} ended with status {process.returncode}: "
            f"{(folder / f'{name}.log').read_text()[-2000:]}"
        )
    curve = [
        (row["step"], {mode: f["accuracy"] for mode, f in row.items() if mode != "step"})
        for row in _rows(run / "validation.jsonl")
    ]
    losses = _rows(run / "metrics.jsonl")
    last = curve[-1][1]
    seconds = [row["seconds_per_step"] for row in losses if "seconds_per_step" in row]
    return {
        "system": name,
        "accuracy": last.get("on", last["off"]),
        "without_memory": last["off"],
        "loss": sum(r["loss"] for r in losses[-50:]) / len(losses[-50:]),
        "seconds_per_step": sorted(seconds)[len(seconds) // 2],
        "curve": [[step, modes.get("on", modes["off"])] for step, modes in curve],
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _show(rows: list[dict[str, Any]], length: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "system",
        "accuracy",
        "memory off",
        "loss",
        "s/step",
        "published 4k / 8k / 16k",
        title=f"sorting, {length} tokens in {SEGMENTS} segments",
    )
    for r in rows:
        published = " / ".join(str(v) for v in PUBLISHED.get(r["system"], ())) or "-"
        table.add_row(
            r["system"],
            f"{100 * r['accuracy']:.1f}%",
            f"{100 * r['without_memory']:.1f}%",
            f"{r['loss']:.3f}",
            f"{r['seconds_per_step']:.2f}",
            published,
        )
    Console().print(table)


def _plot(rows: list[dict[str, Any]], length: int, path: Path) -> None:
    colours = {name: f"C{i}" for i, name in enumerate(SYSTEMS)}
    figure, (left, right) = plots.pyplot().subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for r in rows:
        left.plot(
            *zip(*((step, 100 * value) for step, value in r["curve"])),
            "o-",
            ms=3,
            color=colours[r["system"]],
            label=r["system"],
        )
    left.axhline(5, color="k", ls=":", lw=1)
    left.set(
        xlabel="steps",
        ylabel="accuracy, %",
        ylim=(0, 100),
        title=f"here: {length} tokens, {SEGMENTS} segments",
    )
    left.legend(fontsize=7)
    for name, values in PUBLISHED.items():
        right.plot(["4k", "8k", "16k"], values, "o-", ms=3, color=colours[name], label=name)
    right.set(xlabel="tokens", title="published (full size)")
    right.legend(fontsize=7)
    figure.tight_layout()
    plots.save(figure, path)
