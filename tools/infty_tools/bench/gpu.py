"""`infty bench gpu`: everything that can be measured on one GPU, in one command and a few minutes."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from infty_tools.bench import figures, machine
from infty_tools.bench.step_systems import OFF, SIZES, Size, models
from infty_tools.options import (
    any_path,
    check_new_file,
    device_here,
    listed,
    one_of,
    several,
    whole,
)

TRAINED = {
    "tiny": SIZES["tiny"],
    "125m": replace(SIZES["125m"], lanes=8, segments=4),
    "350m": SIZES["350m"],
    "1.3b": replace(SIZES["1.3b"], lanes=2),
}
KINDS = tuple(models(SIZES["tiny"]))
STEPS = 8


def gpu(
    sizes: Annotated[
        str, typer.Option(parser=several(one_of(*TRAINED)), help="Comma-separated")
    ] = "125m,350m,1.3b",
    systems: Annotated[
        str, typer.Option(parser=several(one_of(*KINDS)), help="Comma-separated")
    ] = "no-memory,joint+continuation,gaussian",
    seconds: Annotated[
        int,
        typer.Option(
            parser=whole(1, 86_400), metavar="N", help="Begin nothing more after so much time"
        ),
    ] = 420,
    device: Annotated[str, typer.Option(parser=one_of("auto", "cpu", "cuda"))] = "auto",
    output: Annotated[
        Path, typer.Option(parser=any_path, metavar="PATH", help="JSON file with every figure")
    ] = Path("gpu.json"),
) -> None:
    """Kernels beside their plain forms, collectives of one rank, bf16 training steps, and what the planner expects.

    Example:

      infty bench gpu --output h100.json

    At most eight minutes on a card of the H100's class. What does not fit in memory or in the time is named. The file
    is written after every figure. Without a GPU it runs whole on the CPU, which shows that it runs (--sizes tiny).
    """
    check_new_file(output, "--output")
    from infty import hardware
    from infty_pretrain import launch

    began = time.monotonic()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    launch.quiet()
    import torch

    from infty_tools.bench import gpu_kernels, steps

    where = str(device_here(device))
    card = hardware.identify(torch.cuda.get_device_name()) if where != "cpu" else None
    found: dict[str, Any] = {"machine": machine.facts(where), "training": []}
    print(machine.sentence(found["machine"]))
    with steps.alone(where), tempfile.TemporaryDirectory(prefix="infty-gpu-") as folder:
        small = listed(sizes) == ["tiny"]
        shape = gpu_kernels.SHAPES["tiny" if small else "125m"]
        found["kernels"] = gpu_kernels.measured(shape, where, card)
        found["registers"] = gpu_kernels.registers()
        found["collectives"] = gpu_kernels.collectives(where, 1 if small else 64)
        figures.write(output, found)
        for size in listed(sizes):
            for system in listed(systems):
                row: dict[str, Any] = {"size": size, "system": system}
                if time.monotonic() - began > seconds:
                    row["problem"] = f"not measured: {seconds} seconds had passed"
                else:
                    row |= trained(TRAINED[size], system, Path(folder) / size, where, card)
                found["training"].append(row)
                figures.write(output, found)
    _beside_off(found["training"])
    found["seconds"] = time.monotonic() - began
    figures.write(output, found)
    show(found)
    print(f"wrote {output}")


def trained(size: Size, system: str, folder: Path, device: str, card: Any) -> dict[str, Any]:
    """Steps of one model in bf16: seconds, utilisation, bytes, and what the planner expects of them."""
    import torch

    from infty.hardware import GPUS
    from infty_pretrain import flops
    from infty_tools.bench import step_systems, steps

    data = folder / "data"
    if not data.exists():
        step_systems.dataset(size, folder)
    row = expected(size, system, data, card or GPUS["h100-80"])
    on_card = device.startswith("cuda")
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    model = None
    try:
        model = steps.trained(size, system, data, device, "bf16")
        seconds = steps.interleaved({system: model}, STEPS if on_card else 1, device)[system]
        row |= {"parameters": model.parameters, "tokens": size.tokens}
        row["seconds"] = steps.spread(seconds)
        row["tokens_per_second"] = size.tokens / min(seconds)
        if on_card:
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        if card is not None:
            work = flops.training_per_token(step_systems.config(size, system, data).model)
            row["mfu"] = row["tokens_per_second"] * work / card.peak("bf16")
    except torch.OutOfMemoryError as error:
        row["problem"] = f"out of memory: {str(error).splitlines()[0]}"
    if model is not None:
        model.end()
    del model
    gc.collect()
    if on_card:
        torch.cuda.empty_cache()
    return row


def expected(size: Size, system: str, data: Path, card: Any) -> dict[str, Any]:
    """What the planner says of such a step on a card."""
    from infty_tools.bench import step_systems
    from infty_tools.plan import search

    config = step_systems.config(size, system, data, "bf16")
    option = search.evaluate(config, search.of_config(config, 1), card, 1)
    return {
        "planned_for": card.name,
        "planned_seconds": option.cost.step_seconds,
        "planned_bytes": option.total,
    }


def _beside_off(rows: list[dict[str, Any]]) -> None:
    """Each row's speed beside that of the model without a memory."""
    off = {r["size"]: r["tokens_per_second"] for r in rows if r["system"] == OFF and "seconds" in r}
    for row in rows:
        if "seconds" in row and row["size"] in off:
            row["speed"] = row["tokens_per_second"] / off[row["size"]]


def show(found: dict[str, Any]) -> None:
    """Tables of kernels, collectives and training."""
    from rich.console import Console
    from rich.table import Table

    table = Table("kernel", "ms", "plain", "difference", "TFLOP/s", "GB/s", title="kernels")
    for row in found["kernels"]:
        name = row["name"] if row["kernel"] else f"{row['name']} (no Triton kernel here)"
        table.add_row(
            name,
            *(f"{row[key]:.3g}" for key in ("ms", "plain_ms", "difference")),
            *(f"{row[key]:.3g}" for key in ("tflops", "gb_per_second")),
        )
    Console().print(table)
    for row in found["collectives"]:
        print(f"{row['backend']} {row['name']}: {row.get('problem') or _said(row)}")
    table = Table(
        "size",
        "system",
        "ms",
        "planned",
        "tokens/s",
        "speed",
        "MFU",
        "GiB",
        "planned",
        title="bf16",
    )
    for row in found["training"]:
        if "seconds" not in row:
            print(f"{row['size']}, {row['system']}: {row['problem']}")
            continue
        table.add_row(
            row["size"],
            row["system"],
            f"{1e3 * row['seconds']['least']:,.0f}",
            f"{1e3 * row['planned_seconds']:,.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['speed']:.2f}" if "speed" in row else "-",
            f"{row['mfu']:.1%}" if "mfu" in row else "-",
            f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "-",
            f"{row['planned_bytes'] / 2**30:.1f}",
        )
    Console().print(table)


def _said(row: dict[str, Any]) -> str:
    return f"{row['ms']:.2f} ms for {row['mib']} MiB, {'right' if row['right'] else 'WRONG'}"
