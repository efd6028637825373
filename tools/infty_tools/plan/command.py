"""`infty plan`: what a run needs, how fast it would be, and the best layout for a cluster. Starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infty.errors import UserError
from infty_tools.options import ConfigChanges, ConfigFile, utf8, whole

if TYPE_CHECKING:
    from infty_pretrain.config import Config
    from infty_tools.plan.search import Option

GIB = 2**30
MOST_NODES = 65_536
MOST_GPUS = 1_024
"""In a machine."""


def plan(
    overrides: ConfigChanges = None,
    config: ConfigFile = Path("config.yaml"),
    nodes: Annotated[
        int,
        typer.Option("--nodes", "-N", parser=whole(1, MOST_NODES), metavar="N", help="Machines"),
    ] = 1,
    gpus_per_node: Annotated[
        int,
        typer.Option(
            "--gpus-per-node", parser=whole(1, MOST_GPUS), metavar="N", help="GPUs in each"
        ),
    ] = 8,
    gpu: Annotated[
        str, typer.Option("--gpu", parser=utf8, help="Such as a100-80, h100-80, h200-141")
    ] = "h100-80",
    tokens: Annotated[
        str | None, typer.Option("--tokens", parser=utf8, help="Token budget, such as 10B")
    ] = None,
    layouts: Annotated[
        int,
        typer.Option(
            "--layouts", parser=whole(1, 10_000), metavar="N", help="How many layouts to show"
        ),
    ] = 5,
) -> None:
    """Say what a run needs and how fast it would be, and rank the layouts that fit.

    Exits with status 2, and says what to change, when the config does not fit.

    Example:

      infty plan --config configs/pg19-1.3b.yaml --nodes 4 --gpus-per-node 8 --gpu h100-80 --tokens 30B
    """
    from infty import hardware
    from infty_pretrain import idle, launch
    from infty_tools.plan import report as plan_report
    from infty_tools.plan import search as plan_search

    launch.quiet()
    device = hardware.find(gpu)
    resolved, note = with_vocab(idle.load(config, overrides))
    budget = parse_count(tokens) if tokens else resolved.total_tokens
    chosen = plan_search.evaluate(
        resolved, plan_search.of_config(resolved, nodes * gpus_per_node), device, gpus_per_node
    )
    fitting = plan_search.search(resolved, nodes, gpus_per_node, device)
    plan_report.show(
        resolved, chosen, fitting[:layouts], device, nodes, gpus_per_node, budget, note
    )
    refuse_unless_it_fits(resolved, chosen, fitting, device, nodes, gpus_per_node)


def with_vocab(config: Config) -> tuple[Config, str | None]:
    """Fill in the vocabulary from the dataset, or assume one; returns the config and what was assumed."""
    if config.model.vocab_size is not None:
        return config, None
    from infty.data.documents import Documents

    try:
        return config.with_vocab(Documents.open(config.data.train).vocab_size), None
    except UserError:
        return config.with_vocab(
            32_000
        ), "model.vocab_size is not given and data.train is not here: 32,000 assumed"


def refuse_unless_it_fits(
    config: Config, chosen: Option, fitting: list[Option], gpu, nodes: int, gpus_per_node: int
) -> None:
    """Raise UserError when the config's own layout needs more than a GPU has."""
    from infty_tools.plan.search import advice

    if chosen.total > gpu.memory:
        kind, most = max(chosen.bytes.items(), key=lambda item: item[1])
        raise UserError(
            f"this layout does not fit: a rank needs {chosen.total / GIB:.1f} GiB, a {gpu.name} has "
            f"{gpu.memory / GIB:.1f} to give; most of it, {most / GIB:.1f} GiB, are {kind}. "
            + advice(config, fitting, gpu, nodes, gpus_per_node)
        )


def parse_count(text: str) -> int:
    """`10B`, `300M`, `5e9` or `1000` as a number. Raises UserError."""
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e18:
        raise UserError(f"--tokens {text} is not a number of tokens: write 10B, 300M or 5e9")
    return int(value)
