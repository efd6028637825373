"""The planner's answer, for a person to read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from infty_pretrain.config import Config
from infty_tools import plan_cost, plan_memory, plan_parameters
from infty_tools.plan_gpus import GPU
from infty_tools.plan_search import Option

GIB = 2**30


def show(config: Config, chosen: Option, fitting: list[Option], gpu: GPU, nodes: int, gpus_per_node: int,
         budget: int, note: str | None) -> None:
    """Print parameters, operations, bytes, traffic, speed, the ranked layouts and the assumptions."""
    console = Console(highlight=False)
    layout = chosen.layout
    console.print(f"[bold]{plan_parameters.total(config.model):,} parameters[/bold] on {nodes} x {gpus_per_node} "
                  f"{gpu.name}: {name(chosen)}; {config.batch.lanes} lanes x {config.batch.window_segments} segments x "
                  f"{config.model.segment_length} tokens = {config.tokens_per_step:,} tokens a step")
    if note:
        console.print(f"[yellow]{note}[/yellow]")
    console.print(_operations(chosen))
    console.print(_bytes(chosen, gpu))
    disk = plan_memory.checkpoint_bytes(config.model, layout)
    console.print(f"checkpoint: {sum(disk.values()) / GIB:.1f} GiB ({_listed(disk)}); "
                  f"{plan_memory.lane_bytes(config.model, layout.width) / 2**20:.1f} MiB of it for each lane")
    console.print(_traffic(chosen))
    rate = chosen.cost.tokens_per_second
    console.print(f"[bold]{rate:,.0f} tokens/s[/bold] ({rate / layout.world:,.0f} a GPU, {mfu(chosen, gpu):.0%} of "
                  f"peak): {budget:,} tokens in [bold]{budget / rate / 86400:,.1f} days[/bold], "
                  f"{budget / rate * layout.world / 3600:,.0f} GPU hours")
    if fitting:
        console.print(_ranked(fitting, gpu, budget))
    console.print("[dim]assumed: " + "; ".join(plan_cost.ASSUMPTIONS) + "[/dim]")


def name(option: Option) -> str:
    """A layout in a few words."""
    l = option.layout
    extras = [word for word, on in (("sequence parallel", l.sequence), ("recompute", l.recompute)) if on]
    return ", ".join([f"{l.data} data x {l.tensor} tensor parallel", f"ZeRO-{l.zero_stage}",
                      f"micro-batch {l.micro_lanes}", l.precision, *extras])


def mfu(option: Option, gpu: GPU) -> float:
    """Useful operations (no recomputation) as a share of what the GPUs could do."""
    useful = 3 * sum(option.cost.flops_per_token.values()) * option.cost.tokens_per_second
    return useful / (option.layout.world * (gpu.bf16 if option.layout.precision == "bf16" else gpu.fp32))


def _listed(bytes_: dict[str, float]) -> str:
    return ", ".join(f"{kind} {value / GIB:.1f}" for kind, value in bytes_.items())


def _operations(option: Option) -> Table:
    parts = option.cost.flops_per_token
    table = Table("operations a token, forward", *parts, "sum", box=None)
    total = sum(parts.values())
    table.add_row("GFLOP", *(f"{v / 1e9:.3f}" for v in parts.values()), f"{total / 1e9:.3f}")
    table.add_row("share", *(f"{v / total:.0%}" for v in parts.values()), f"training: {3 * total / 1e9:.2f}")
    return table


def _bytes(option: Option, gpu: GPU) -> Table:
    table = Table("GiB on a rank", *option.bytes, "sum", "of", box=None)
    table.add_row("", *(f"{v / GIB:.2f}" for v in option.bytes.values()),
                  f"[{'green' if option.total <= gpu.memory else 'red'}]{option.total / GIB:.1f}[/]",
                  f"{gpu.memory / GIB:.1f}")
    return table


def _traffic(option: Option) -> Table:
    sent, seconds = option.cost.bytes, option.cost.seconds
    table = Table("a step", *seconds, "sum", box=None)
    table.add_row("sent by a rank, GB", "", f"{sent['memory'] / 1e9:.3f}", "", f"{sent['tensor parallel'] / 1e9:.2f}",
                  f"{sent['data parallel'] / 1e9:.2f}", "", f"{sum(sent.values()) / 1e9:.2f}")
    table.add_row("ms", *(f"{1e3 * v:.1f}" for v in seconds.values()), f"{1e3 * option.cost.step_seconds:.1f}")
    return table


def _ranked(options: list[Option], gpu: GPU, budget: int) -> Table:
    table = Table("layouts that fit, fastest first", "GiB", "tokens/s", "days", "overrides", box=None)
    for option in options:
        rate = option.cost.tokens_per_second
        table.add_row(name(option), f"{option.total / GIB:.1f}", f"{rate:,.0f}", f"{budget / rate / 86400:.1f}",
                      "[dim]" + " ".join(option.overrides()) + "[/dim]")
    return table
