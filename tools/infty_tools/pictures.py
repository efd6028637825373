"""The pictures of docs/: the idea of a continuous memory, drawn with the memory itself, and results.

    python -m infty_tools.pictures docs/pictures

Segments are told apart by marks: a memory is linear in what is written, so a signal that is 1 in
one segment and 0 elsewhere shows which part of [0, 1] stands for that segment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infty import files
from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState
from infty_tools import plots

SEGMENT = 128
ORDINARY = MemoryConfig(basis=128, sticky="off")
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def written(config: MemoryConfig, segments: Tensor, attended: int | None = None) -> MemoryState:
    """The memory [1, 1, N, c] after segments [S, L, c]; attention rests on the segment `attended`
    before every write."""
    memory = ContinuousMemory(config, segments.shape[1])
    state = memory.empty(1, 1, segments.shape[2])
    for x in segments:
        if attended is not None and int(state.written) > attended:
            state = replace(state, histogram=_attention(memory, state, attended))
        state = memory.write(state, x[None, None], torch.ones(1, dtype=torch.bool))
    return state


def _attention(memory: ContinuousMemory, state: MemoryState, segment: int) -> Tensor:
    """Half of it on one segment, wherever that lies now, the rest even: [1, 1, D]."""
    bins = state.histogram.shape[-1]
    share = memory.at_centers(state.coefficients)[0, 0, :, segment].clamp(min=0)
    share = torch.nn.functional.interpolate(share[None, None], size=bins, mode="linear")
    return 0.5 * share / share.sum() + 0.5 / bins


def marks(count: int) -> Tensor:
    """[S, L, S]: 1 in a segment's own channel."""
    return torch.eye(count)[:, None].expand(-1, SEGMENT, -1)


def _rooms(axes: Any, config: MemoryConfig, count: int, title: str, **how: Any) -> None:
    """Which part of [0, 1] stands for which segment."""
    memory = ContinuousMemory(config, SEGMENT)
    signal = memory.at_centers(written(config, marks(count), **how).coefficients)[0, 0].clamp(min=0)
    share = signal / signal.sum(-1, keepdim=True).clamp(min=0.3)
    viridis = plots.pyplot().get_cmap("viridis")(torch.linspace(0, 1, count).tolist())
    colors = share @ torch.tensor(viridis[:, :3]).float() + 1 - share.sum(-1, keepdim=True)
    axes.imshow(
        colors[None].clamp(0, 1).tolist(), aspect="auto", extent=(0, 1, 0, 1), interpolation="none"
    )
    axes.set(title=title, yticks=[], xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1])


def contraction() -> Any:
    """A column for a policy, a row for a number of segments."""
    figure, grid = _figure(3, 2, (7, 3.6))
    for row, count in zip(grid, (2, 4, 8)):
        _rooms(row[0], ORDINARY, count, f"{count} segments, uniform")
        constant = replace(ORDINARY, contraction=0.5)
        _rooms(row[1], constant, count, f"{count} segments, constant 0.5")
    return figure


def sticky() -> Any:
    """The room of segments with and without a warp that follows attention."""
    figure, grid = _figure(1, 2, (7, 1.5))
    _rooms(grid[0], ORDINARY, 12, "twelve segments, sticky: off")
    warped = replace(ORDINARY, sticky="quantile", attention_span=4)
    _rooms(grid[1], warped, 12, "half of all attention on the third", attended=2)
    return figure


def content() -> Any:
    """What a query reads: a Gaussian, and the softmax over the signal."""
    torch.manual_seed(3)
    keys = torch.nn.functional.normalize(torch.randn(8, 16), dim=-1)
    keys[6] = keys[2]  # two passages on one subject
    state = written(ORDINARY, keys[:, None].expand(-1, SEGMENT, -1))
    signal = ContinuousMemory(ORDINARY, SEGMENT).at_centers(state.coefficients)[0, 0]
    places = torch.linspace(0, 1, len(signal))
    softmax = torch.softmax(8 * signal @ keys[2], 0)
    mean = (softmax * places).sum()
    variance = (softmax * (places - mean) ** 2).sum()
    gaussian = torch.softmax(-((places - mean) ** 2) / (2 * variance), 0)
    figure, axes = plots.pyplot().subplots(figsize=(7, 2.2), layout="constrained")
    for name, density in (
        ("one mean, one variance (gaussian)", gaussian),
        ("softmax (gibbs, joint)", softmax),
    ):
        axes.plot(places.tolist(), (density * len(places)).tolist(), label=name)
    for segment in (2, 6):
        axes.axvspan(segment / 8, (segment + 1) / 8, color="gray", alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 1), xlabel="place in the memory; grey: where the answer is", ylabel="density")
    axes.legend(fontsize=8)
    return figure


def functions() -> Any:
    """A signal of 32 segments, as 16, 64 and 256 functions keep it."""
    torch.manual_seed(1)
    heights = torch.randn(32)
    figure, axes = plots.pyplot().subplots(figsize=(7, 2.2), layout="constrained")
    axes.stairs(
        heights.tolist(), torch.linspace(0, 1, 33).tolist(), color="gray", label="32 segments"
    )
    for count in (16, 64, 256):
        config = MemoryConfig(basis=count, sticky="off")
        state = written(config, heights[:, None, None].expand(-1, SEGMENT, 1))
        signal = ContinuousMemory(config, SEGMENT).at_centers(state.coefficients)[0, 0, :, 0]
        axes.plot(
            torch.linspace(0, 1, count).tolist(), signal.tolist(), linewidth=1, label=f"N = {count}"
        )
    axes.set(xlim=(0, 1), xlabel="place in the memory", yticks=[])
    axes.legend(fontsize=8, ncols=4, loc="upper center")
    return figure


def demo() -> Any:
    """docs/results/demo-positions.json: `make demo` with and without its memory."""
    found = files.read_json(RESULTS / "demo-positions.json")["models"]
    figure, axes = plots.pyplot().subplots(figsize=(7, 2.6), layout="constrained")
    for model, name in zip(
        found, ("trained without a memory", "trained with the memory of what followed")
    ):
        rows = next(iter(model["memory"].values()))["by_position"]
        middle = [(max(row["from"], row["to"] / 4) * row["to"]) ** 0.5 for row in rows]
        axes.plot(middle, [row["nll"] for row in rows], marker="o", markersize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="tokens of the play read so far", ylabel="nats a token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def sorting() -> Any:
    """docs/results/sorting.json: every system with its memory on and off."""
    found = files.read_json(RESULTS / "sorting.json")["accuracy"]
    figure, axes = plots.pyplot().subplots(figsize=(7, 2.2), layout="constrained")
    names = list(found)[::-1]
    axes.barh(names, [100 * found[name]["on"] for name in names], label="as trained")
    off = [100 * found[name].get("off", 0) for name in names]
    axes.barh(names, off, height=0.4, label="long-term memory off")
    axes.axvline(5, color="gray", linewidth=0.8)
    axes.set(xlabel="right symbols, % (chance: 5)", xlim=(0, 100))
    axes.legend(fontsize=8)
    return figure


PICTURES: dict[str, Callable[[], Any]] = {
    "contraction": contraction,
    "sticky": sticky,
    "content": content,
    "functions": functions,
    "demo": demo,
    "sorting": sorting,
}


def draw(folder: Path) -> list[Path]:
    """Write every picture into `folder` as SVG with its text as text; returns their paths."""
    plots.pyplot().rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "infty", "font.size": 9, "axes.titlesize": 9}
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in PICTURES.items():
        paths.append(folder / f"{name}.svg")
        figure = picture()
        with files.whole(paths[-1]) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None}, facecolor="white")
        plots.pyplot().close(figure)
    return paths


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    return plots.pyplot().subplots(rows, columns, figsize=size, layout="constrained", sharex=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures"))
