"""`infty bench train`: what a whole step of training costs with each memory, beside the same model without one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from infty_tools.bench import figures, machine
from infty_tools.bench.step_systems import OFF, SIZES, SYSTEMS, Size
from infty_tools.options import (
    FiguresOutput,
    check_new_file,
    device_here,
    listed,
    one_of,
    several,
    whole,
)


def train(
    sizes: Annotated[
        str, typer.Option(parser=several(one_of(*SIZES)), help="Comma-separated")
    ] = "demo",
    systems: Annotated[
        str, typer.Option(parser=several(one_of(*SYSTEMS)), help="Comma-separated")
    ] = ",".join(SYSTEMS),
    rounds: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Steps of each, in turn")
    ] = 5,
    profile: Annotated[
        bool, typer.Option(help="Also say where the time of a step goes, by part")
    ] = True,
    precision: Annotated[str, typer.Option(parser=one_of("fp32", "bf16"))] = "fp32",
    threads: Annotated[
        int,
        typer.Option(
            parser=whole(0, 4_096), metavar="N", help="CPU threads; 0 leaves torch's choice"
        ),
    ] = 1,
    device: Annotated[str, typer.Option(parser=one_of("auto", "cpu", "cuda"))] = "auto",
    output: FiguresOutput = None,
) -> None:
    """Time whole steps of training (data, forward, backward, optimizer) of the same blocks with each memory.

    Example:

      infty bench train --sizes demo,512 --systems continuation,joint

    Steps of all systems are taken in turn, in one process. On a CPU the time is that which the process had, so that
    other programs matter little; on a GPU it is that on the wall. Models that do not fit in memory together are
    measured in several groups, each beside the model without a memory.
    """
    if output is not None:
        check_new_file(output, "--output")
    from infty_pretrain import launch

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    launch.quiet()
    import torch

    where = str(device_here(device))
    if where == "cpu" and threads:
        torch.set_num_threads(threads)
    found: dict[str, Any] = {"machine": machine.facts(where), "precision": precision, "sizes": {}}
    print(machine.sentence(found["machine"]))
    for name in listed(sizes):
        found["sizes"][name] = measured(
            SIZES[name], listed(systems), rounds, where, precision, profile
        )
        show(name, found["sizes"][name])
        if output is not None:
            figures.write(output, found)
    if output is not None:
        print(f"wrote {output}")


def measured(
    size: Size, systems: list[str], rounds: int, device: str, precision: str, profile: bool
) -> dict[str, Any]:
    """What a size's systems cost: `systems` by name, and what all have in common."""
    from rich.progress import Progress

    from infty_tools.bench import step_systems, steps

    rows: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory(prefix="infty-train-") as folder,
        steps.alone(device),
        Progress(transient=True) as progress,
    ):
        data = step_systems.dataset(size, Path(folder))
        for group in groups_of(size, systems, device):
            bar = progress.add_task(", ".join(group), total=(rounds + 1) * len(group))
            rows |= _group(size, group, data, rounds, device, precision, profile, progress, bar)
            progress.remove_task(bar)
    return {"tokens": size.tokens, "rounds": rounds, "systems": rows}


def groups_of(size: Size, systems: list[str], device: str) -> Iterator[list[str]]:
    """Systems that are measured together: as many as fit in half of the memory, with the one without in each group."""
    import psutil
    import torch

    free = psutil.virtual_memory().available
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info()[0]
    numbers = size.layers * 12 * size.hidden**2 + 2 * size.vocabulary * size.hidden
    each = 30 * numbers + 50 * size.tokens * size.hidden * size.layers * 4
    most = max(1, int(free / 2 / each) - 1)
    others = [system for system in systems if system != OFF]
    for i in range(0, max(1, len(others)), most):
        yield [OFF, *others[i : i + most]]


def _group(
    size: Size,
    group: list[str],
    data: Path,
    rounds: int,
    device: str,
    precision: str,
    profile: bool,
    progress: Any,
    bar: Any,
) -> dict[str, Any]:
    """Rows of systems that are measured together."""
    from infty_tools.bench import step_profile, steps

    models = {name: steps.trained(size, name, data, device, precision) for name in group}
    seconds = steps.interleaved(models, rounds, device, lambda: progress.advance(bar))
    least = min(seconds[OFF])
    rows = {}
    for name, model in models.items():
        rows[name] = {
            "parameters": model.parameters,
            "seconds": steps.spread(seconds[name]),
            "tokens_per_second": size.tokens / min(seconds[name]),
            "speed": least / min(seconds[name]),
        }
        if profile:
            rows[name]["parts"] = step_profile.profiled(model, device)
    for model in models.values():
        model.end()
    return rows


def show(name: str, found: dict[str, Any]) -> None:
    """A table of speeds, and one of where the time goes."""
    from rich.console import Console
    from rich.table import Table

    title = f"{name}: a step of {found['tokens']:,} tokens; fastest of {found['rounds']}"
    table = Table("system", "parameters", "ms", "median", "most", "tokens/s", "speed", title=title)
    for system, row in found["systems"].items():
        table.add_row(
            system,
            f"{row['parameters']:,}",
            *(f"{1000 * row['seconds'][key]:,.0f}" for key in ("least", "median", "most")),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed']:.2f}",
        )
    Console().print(table)
    rows = {system: row["parts"] for system, row in found["systems"].items() if "parts" in row}
    if not rows:
        return
    parts = sorted({p for row in rows.values() for p in row}, key=lambda p: -_most(rows, p))
    table = Table("ms", *parts, title=f"{name}: where the time of a step goes")
    for system, row in rows.items():
        table.add_row(system, *(f"{1000 * row.get(part, 0):,.0f}" for part in parts))
    Console().print(table)


def _most(rows: dict[str, dict[str, float]], part: str) -> float:
    return max(row.get(part, 0.0) for row in rows.values())
