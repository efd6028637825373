"""The planner's answer, for a person to read."""

from __future__ import annotations

from rich.columns import Columns
from rich.console import Console
from rich.table import Table

from infty.hardware import GPU
from infty_pretrain.config import Config
from infty_tools.plan import cost as plan_cost
from infty_tools.plan import memory as plan_memory
from infty_tools.plan.search import Option

GIB = 2**30


def show(
    config: Config,
    chosen: Option,
    fitting: list[Option],
    gpu: GPU,
    nodes: int,
    gpus_per_node: int,
    budget: int,
    note: str | None,
) -> None:
    """Print parameters, operations, bytes, traffic, speed, the ranked layouts and the assumptions."""
    console = Console(highlight=False)
    layout = chosen.layout
    console.print(
        f"[bold]{plan_memory.total(config.model):,} parameters[/bold] on {nodes} x {gpus_per_node} "
        f"{gpu.name}: {name(chosen)}; {config.batch.lanes} lanes x {config.batch.window_segments} segments x "
        f"{config.model.segment_length} tokens = {config.tokens_per_step:,} tokens a step"
    )
    if note:
        console.print(f"[yellow]{note}[/yellow]")
    console.print(
        Columns([_operations(chosen), _bytes(chosen, gpu), _step(chosen)], padding=(0, 1))
    )
    disk = plan_memory.checkpoint_bytes(config.model, layout)
    console.print(
        f"checkpoint: {sum(disk.values()) / GIB:.1f} GiB ({_listed(disk)}); "
        f"{plan_memory.lane_bytes(config.model, layout.width) / 2**20:.1f} MiB of it for each lane"
    )
    rate = chosen.cost.tokens_per_second
    console.print(
        f"[bold]{rate:,.0f} tokens/s[/bold] ({rate / layout.world:,.0f} a GPU, {mfu(chosen, gpu):.0%} of "
        f"peak): {budget:,} tokens in [bold]{budget / rate / 86400:,.1f} days[/bold], "
        f"{budget / rate * layout.world / 3600:,.0f} GPU hours"
    )
    if fitting:
        console.print("layouts that fit, fastest first:")
    for option in fitting:
        rate = option.cost.tokens_per_second
        console.print(
            f"  [bold]{rate:,.0f} tokens/s[/bold], {budget / rate / 86400:.1f} days, "
            f"{option.total / GIB:.1f} GiB: {name(option)}",
            soft_wrap=True,
        )
        console.print(
            f"    [dim]{' '.join(option.overrides())}[/dim]", soft_wrap=True
        )  # one line, to be copied
    console.print("[dim]assumed: " + "; ".join(plan_cost.ASSUMPTIONS) + "[/dim]")


def name(option: Option) -> str:
    """A layout in a few words."""
    l = option.layout
    extras = [
        word for word, on in (("sequence parallel", l.sequence), ("recompute", l.recompute)) if on
    ]
    return ", ".join(
        [
            f"{l.data} data x {l.tensor} tensor parallel",
            f"ZeRO-{l.zero_stage}",
            f"micro-batch {l.micro_lanes}",
            l.precision,
            *extras,
        ]
    )


def mfu(option: Option, gpu: GPU) -> float:
    """Useful operations (no recomputation) as a share of what the GPUs could do."""
    useful = 3 * sum(option.cost.flops_per_token.values()) * option.cost.tokens_per_second
    return useful / (
        option.layout.world * (gpu.bf16 if option.layout.precision == "bf16" else gpu.fp32)
    )


def _listed(bytes_: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value / GIB:.1f}" for kind, value in bytes_.items())


def _operations(option: Option) -> Table:
    parts = option.cost.flops_per_token
    total = sum(parts.values())
    table = _table("a token, forward", "GFLOP", "share")
    for part, value in parts.items():
        table.add_row(part, f"{value / 1e9:.3f}", f"{value / total:.0%}")
    table.add_row("sum", f"{total / 1e9:.3f}", "")
    table.add_row("training", f"{3 * total / 1e9:.2f}", "")
    return table


def _bytes(option: Option, gpu: GPU) -> Table:
    table = _table("on a rank", "GiB")
    for kind, value in option.bytes.items():
        table.add_row(kind, f"{value / GIB:.2f}")
    table.add_row(
        "sum", f"[{'green' if option.total <= gpu.memory else 'red'}]{option.total / GIB:.1f}[/]"
    )
    table.add_row("it has", f"{gpu.memory / GIB:.1f}")
    return table


def _step(option: Option) -> Table:
    sent = option.cost.bytes
    table = _table("a step", "ms", "GB sent")
    for kind, value in option.cost.seconds.items():
        table.add_row(
            kind, f"{1e3 * value:.1f}", f"{sent[kind] / 1e9:.3f}" if sent.get(kind) else ""
        )
    table.add_row("sum", f"{1e3 * option.cost.step_seconds:.1f}", f"{sum(sent.values()) / 1e9:.3f}")
    return table


def _table(title: str, *figures: str) -> Table:
    table = Table(title, box=None, padding=(0, 1, 0, 0))
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table
