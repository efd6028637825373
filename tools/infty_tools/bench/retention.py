"""`infty bench retention`: what a memory still knows of a long document, by age, chunk size and policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty_tools import plots
from infty_tools.bench import figures
from infty_tools.options import SEED, check_folder, listed, new_folder, real, several, utf8, whole

if TYPE_CHECKING:
    from torch import Tensor

    from infty.memory import ContinuousMemory, MemoryConfig, MemoryState
    from infty.memory.contraction import Plan

AGES = 10
"""Parts of a document, oldest first, that are reported apart."""
POINTS = 4
"""Places at which a chunk is read back; their mean is compared with the chunk's mean."""


def retention(
    policies: Annotated[
        str,
        typer.Option(
            parser=several(utf8),
            help="Comma-separated: uniform, doubling, a share such as 0.5, or a preset "
            "such as paper-gpt2.",
        ),
    ] = "uniform,doubling,0.5,paper-gpt2",
    basis: Annotated[
        str,
        typer.Option(
            parser=several(whole(1, 2**16)),
            metavar="N,N",
            help="Comma-separated numbers of basis functions.",
        ),
    ] = "512",
    tokens: Annotated[
        str,
        typer.Option(
            parser=several(whole(1, 2**40)), metavar="N,N", help="Comma-separated document lengths."
        ),
    ] = "8192,32768,102400",
    chunks: Annotated[
        str,
        typer.Option(
            parser=several(whole(1, 2**20)),
            metavar="N,N",
            help="Comma-separated chunk sizes in tokens.",
        ),
    ] = "16,64,512",
    segment: Annotated[
        int, typer.Option(parser=whole(1, 2**20), metavar="N", help="Tokens in a segment.")
    ] = 512,
    channels: Annotated[
        int,
        typer.Option(
            parser=whole(1, 2**16), metavar="N", help="Independent signals that are averaged over."
        ),
    ] = 32,
    attention: Annotated[
        float,
        typer.Option(
            parser=real(0, 1),
            metavar="X",
            help="Share of attention that rests on one early segment, for sticky "
            "memories; 0 measures without warps.",
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(parser=SEED, metavar="N", help="Seed of the noise.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=new_folder, metavar="PATH", help="Folder for retention.json and retention.png."
        ),
    ] = None,
) -> None:
    """Write noise with a mean for each chunk; correlate what is read back with the true means."""
    sizes, lengths = _numbers(chunks), sorted(_numbers(tokens))
    _check(sizes, lengths, segment)
    if out is not None:
        check_folder(out, "--out")
        plots.pyplot()
    chosen = {
        (name, size): _config(name, size, attention > 0)
        for name in listed(policies)
        for size in _numbers(basis)
    }
    rows: list[dict[str, Any]] = []
    for (name, size), config in chosen.items():
        found = measure(
            config, [n // segment for n in lengths], sizes, segment, channels, seed, attention
        )
        rows += [{"policy": name, "basis": size, **row} for row in found]
    typer.echo(_table(rows))
    if out is not None:
        figures.write(out / "retention.json", rows)
        _plot(rows, out / "retention.png")
        typer.echo(f"wrote {out / 'retention.json'} and {out / 'retention.png'}")


def measure(
    config: MemoryConfig,
    segments: list[int],
    chunks: list[int],
    segment: int = 512,
    channels: int = 32,
    seed: int = 0,
    attention: float = 0.0,
) -> list[dict[str, Any]]:
    """Figures for one memory after each of `segments` segments, for every chunk size.

    A row has tokens, chunk, correlation, mse (relative to the variance of the means), limit (the correlation of
    the best linear code with N numbers), and by_age: correlations in `AGES` parts of the document, oldest first.
    With `attention` in (0, 1], that share of past attention rests on the segment a tenth into the longest document
    (the rest is even), and a row says how much of [0, 1] that segment fills and the correlation there.
    """
    import torch

    from infty.memory import ContinuousMemory

    generator = torch.Generator().manual_seed(seed)
    core = ContinuousMemory(config, segment)
    state, active = core.empty(1, len(chunks), channels), torch.tensor([True])
    truth: list[list[Tensor]] = [[] for _ in chunks]
    parts = segment // min(chunks)
    within = (torch.arange(parts * POINTS, dtype=torch.float64) + 0.5) / (parts * POINTS)
    times = within.new_empty(0, len(within))  # where each segment's samples lie now
    attended, rows = max(segments) // 10, []
    for k in range(max(segments)):
        x = torch.randn(1, len(chunks), segment, channels, generator=generator)
        for i, chunk in enumerate(chunks):
            means = torch.randn(segment // chunk, channels, generator=generator)
            x[0, i] += means.repeat_interleave(chunk, 0)
            truth[i].append(x[0, i].unflatten(0, (-1, chunk)).mean(1))
        if attention and k > attended:
            state = core.with_histogram(
                state, _focus(times[attended], attention, config.bins), active
            )
        times = moved(times, within, core, state, core.writing.plan(state))
        with torch.no_grad():
            state = core.write(state, x, active)
        if k + 1 in segments:
            for i, chunk in enumerate(chunks):
                found = _read_back(core, state.coefficients[:, i : i + 1], times, segment // chunk)
                row = _figures(found, torch.cat(truth[i]), config.basis)
                if attention and k > attended:
                    mine = slice(attended * segment // chunk, (attended + 1) * segment // chunk)
                    edge = (
                        (times[attended, -1] - times[attended, 0]) * len(within) / (len(within) - 1)
                    )
                    row |= {
                        "attended": round(correlation(found[mine], truth[i][attended]), 4),
                        "room": round(float(edge), 4),
                    }
                rows.append({"tokens": (k + 1) * segment, "chunk": chunk, **row})
    return rows


def moved(
    times: Tensor, within: Tensor, core: ContinuousMemory, state: MemoryState, plan: Plan
) -> Tensor:
    """Where the samples of every segment [segments, n] lie after the next write, which is `plan`: one more row, of the
    new segment's at `within` [n]."""
    import torch

    keep, end = float(plan.keep), float(plan.end)
    if len(times) == 0:
        keep, end = 0.0, 1.0
    elif not bool(plan.append):
        if core.config.sticky != "off":  # each part of the signal gets its share of room
            room = core.writing.room(state)[0, 0]
            below = torch.cat([room.new_zeros(1), room.cumsum(0)])
            at = (times * len(room)).clamp(max=len(room) - 1e-9)
            times = below[at.long()] + at.frac() * room[at.long()]
        times = times * keep
    return torch.cat([times, (keep + (end - keep) * within)[None]])


def _focus(times: Tensor, attention: float, bins: int) -> Tensor:
    """Past attention [1, 1, bins]: a share rests around `times`, two hundredths wide, the rest is even."""
    import torch

    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    peak = torch.special.ndtr((edges - times.mean()) / 0.02).diff()
    return (attention * peak / peak.sum() + (1 - attention) / bins).float()[None, None]


def _read_back(core: ContinuousMemory, coefficients: Tensor, times: Tensor, parts: int) -> Tensor:
    """Means of the signal over `parts` even parts of every segment: [segments * parts, c]."""
    import torch

    from infty.memory.resample import sample

    pieces = [
        sample(core.basis, t, None, coefficients)[0, 0]
        for t in times.reshape(1, 1, -1).split(1 << 15, -1)
    ]
    return torch.cat(pieces).unflatten(0, (len(times) * parts, -1)).mean(1)


def _figures(found: Tensor, truth: Tensor, basis: int) -> dict[str, Any]:
    ages = [round(correlation(a, b), 4) for a, b in zip(found.chunk(AGES), truth.chunk(AGES))]
    return {
        "correlation": round(correlation(found, truth), 4),
        "mse": round(float((found - truth).square().mean() / truth.var()), 4),
        "limit": round(math.sqrt(min(1.0, basis / len(truth))), 4),
        "by_age": ages,
    }


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two tensors of one shape, over all elements."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))


def _config(name: str, basis: int, warped: bool) -> MemoryConfig:
    from infty.errors import UserError
    from infty.memory import MemoryConfig, contraction
    from infty.memory.presets import PRESETS, preset

    sticky = "quantile" if warped else "off"
    if name in PRESETS:
        return preset(name, basis=basis, samples=basis, sticky=sticky, precision="float32")
    try:
        kept = contraction.written(name)
    except UserError as error:
        presets = ", ".join(sorted(PRESETS))
        raise UserError(f"--policies: {error}; nor is it a preset: {presets}") from error
    return MemoryConfig(basis=basis, contraction=kept, sticky=sticky)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in listed(text)]


def _check(chunks: list[int], lengths: list[int], segment: int) -> None:
    from infty.errors import UserError

    for chunk in chunks:
        if segment % chunk:
            raise UserError(f"--chunks: {chunk} does not divide a segment of {segment} tokens")
    for length in lengths:
        if length % segment:
            raise UserError(
                f"--tokens: {length} is not a multiple of the segment of {segment} tokens"
            )


def _table(rows: list[dict[str, Any]]) -> str:
    head = f"{'policy':<18} {'N':>5} {'tokens':>8} {'chunk':>6} {'corr.':>6} {'limit':>6} {'mse':>6}  oldest ... newest"
    lines = [head]
    for r in rows:
        ages = " ".join(f"{a:5.2f}" for a in r["by_age"])
        lines.append(
            f"{r['policy']:<18} {r['basis']:>5} {r['tokens']:>8} {r['chunk']:>6} {r['correlation']:>6.3f} "
            f"{r['limit']:>6.3f} {r['mse']:>6.2f}  {ages}"
            + (f"  attended: {r['attended']:.3f}, room {r['room']:.3f}" if "attended" in r else "")
        )
    return "\n".join(lines)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Correlation against document length, and against age at the longest length; one column a chunk size."""
    chunks = sorted({r["chunk"] for r in rows})
    kinds = sorted({(r["policy"], r["basis"]) for r in rows})
    longest = max(r["tokens"] for r in rows)
    figure, axes = plots.pyplot().subplots(
        2, len(chunks), figsize=(3.6 * len(chunks), 5.6), squeeze=False, sharey=True
    )
    for column, chunk in enumerate(chunks):
        above, below = axes[0][column], axes[1][column]
        for policy, basis in kinds:
            mine = [
                r for r in rows if (r["policy"], r["basis"], r["chunk"]) == (policy, basis, chunk)
            ]
            above.plot(
                [r["tokens"] for r in mine],
                [r["correlation"] for r in mine],
                "o-",
                ms=3,
                label=f"{policy}, N={basis}",
            )
            ages = next(r["by_age"] for r in mine if r["tokens"] == longest)
            below.plot([(i + 0.5) / len(ages) for i in range(len(ages))], ages, "o-", ms=3)
        limit = {
            r["tokens"]: r["limit"]
            for r in rows
            if r["chunk"] == chunk and r["basis"] == kinds[0][1]
        }
        above.plot(list(limit), list(limit.values()), "k:", label=f"linear limit, N={kinds[0][1]}")
        above.set(xscale="log", title=f"chunks of {chunk} tokens", xlabel="tokens in the document")
        below.set(xlabel="place in the document (0 = oldest)", title=f"{longest:,} tokens")
    for row in axes:
        row[0].set(ylabel="correlation", ylim=(-0.05, 1.03))
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    plots.save(figure, path)
