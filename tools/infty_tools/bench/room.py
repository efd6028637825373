"""`infty bench room`: how well a few tokens of each segment can be read back, by the weight they are written with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty_tools.bench import figures
from infty_tools.bench.retention import AGES, correlation, moved
from infty_tools.options import SEED, check_folder, listed, new_folder, real, several, whole

if TYPE_CHECKING:
    from torch import Tensor

    from infty.memory import MemoryConfig


def room(
    fact: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Tokens in a fact.")
    ] = 10,
    weights: Annotated[
        str,
        typer.Option(
            parser=several(real(1, 1e6)),
            metavar="X,X",
            help="Comma-separated: how much more weight a fact's tokens have than others. 1 is room: even.",
        ),
    ] = "1,10,100,1000",
    every: Annotated[
        int,
        typer.Option(
            parser=whole(1, 2**20), metavar="N", help="One in so many segments has a fact."
        ),
    ] = 1,
    basis: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Basis functions.")
    ] = 512,
    segment: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Tokens in a segment.")
    ] = 512,
    segments: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Segments of the document.")
    ] = 64,
    channels: Annotated[
        int, typer.Option(parser=whole(1, 2**16), metavar="N", help="Channels of a token.")
    ] = 64,
    seed: Annotated[int, typer.Option(parser=SEED, metavar="N", help="Of the tokens.")] = 0,
    out: Annotated[
        Path | None, typer.Option(parser=new_folder, metavar="PATH", help="Folder for room.json.")
    ] = None,
) -> None:
    """Write noise in which each segment hides a fact, and read the facts' tokens back where they lie: no training, the
    best that a salience could do."""
    from infty.errors import UserError
    from infty.memory import MemoryConfig

    if fact >= segment:
        raise UserError(f"--fact: {fact} tokens must be fewer than those of a segment ({segment})")
    if out is not None:
        check_folder(out, "--out")
    rows = []
    for weight in map(float, listed(weights)):
        config = MemoryConfig(basis=basis, sticky="off", room="even" if weight == 1 else "salience")
        sizes = (segments, segment, fact, every, channels)
        rows.append({"weight": weight} | measure(config, weight, *sizes, seed))
    typer.echo(_table(rows))
    if out is not None:
        figures.write(out / "room.json", rows)
        typer.echo(f"wrote {out / 'room.json'}")


def measure(
    config: MemoryConfig,
    weight: float,
    segments: int,
    segment: int,
    fact: int,
    every: int,
    channels: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of one memory after a document of `segments` segments, whose tokens are noise.

    share: what the facts' tokens have of all room; tokens: how well a token of a fact agrees with the signal in the
    middle of its room (correlation over all channels); found: the share of these tokens to which what is read there is
    nearer (cosine) than to any other token of a fact; by_age: `found` in `AGES` parts of the document, oldest first;
    rest: correlation of the mean of a segment's other tokens with what is read where they lie.
    """
    import torch

    from infty.memory import ContinuousMemory
    from infty.memory.room import edges

    generator = torch.Generator().manual_seed(seed)
    core, active = ContinuousMemory(config, segment), torch.tensor([True])
    state = core.empty(1, 1, channels)
    tokens = torch.randn(segments, segment, channels, generator=generator)
    begins = torch.randint(0, segment - fact, (segments,), generator=generator)
    places = torch.arange(segment)
    marked = (places >= begins[:, None]) & (places < begins[:, None] + fact)
    marked &= (torch.arange(segments) % every == 0)[:, None]
    times = torch.empty(0, segment, dtype=torch.float64)  # where each segment's tokens lie now
    for x, mine in zip(tokens, marked):
        own = torch.where(mine, weight, 1.0)[None]
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        at = edges(zero, one, own)[0]
        plan = core.writing.plan(state, None, own)
        times = moved(times, (at[:-1] + at[1:]) / 2, core, state, plan)
        given = None if config.room == "even" else own
        with torch.no_grad():
            state = core.write(state, x[None, None], active, weights=given)
    found = _read(core.basis, state.coefficients, times)
    share = float(torch.where(marked, weight, 0.0).sum() / torch.where(marked, weight, 1.0).sum())
    return {"share": round(share, 4), **_figures(found, tokens, marked)}


def _read(basis: Any, coefficients: Tensor, times: Tensor) -> Tensor:
    """The signal at times [S, L]: [S, L, c]."""
    import torch

    from infty.memory.resample import sample

    return torch.stack([sample(basis, t[None, None], None, coefficients)[0, 0] for t in times])


def _figures(found: Tensor, tokens: Tensor, marked: Tensor) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    read, true = found[marked], tokens[marked]
    nearest = (F.normalize(read, dim=-1) @ F.normalize(true, dim=-1).T).argmax(-1)
    right = (nearest == torch.arange(len(true))).double()
    others = (~marked)[..., None]
    means = [(x * others).sum(1) / others.sum(1) for x in (found, tokens)]
    return {
        "tokens": round(correlation(read, true), 4),
        "found": round(float(right.mean()), 4),
        "by_age": [round(float(part.mean()), 4) for part in right.chunk(AGES)],
        "rest": round(correlation(*means), 4),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'weight':>8} {'share':>6} {'tokens':>7} {'found':>6} {'rest':>6}  found, oldest ... newest"
    ]
    for r in rows:
        ages = " ".join(f"{a:4.2f}" for a in r["by_age"])
        lines.append(
            f"{r['weight']:>8g} {r['share']:>6.3f} {r['tokens']:>7.3f} {r['found']:>6.3f} {r['rest']:>6.3f}  {ages}"
        )
    return "\n".join(lines)
