"""`infty bench growth`: what a small perturbation has become after up to 1,000 segments.

The whole model is in the loop: what is read decides where the sticky warp samples, the warp moves the signal, and the
signal decides what is read. Lanes of one batch read the same text; all but the first read it through embeddings that
are multiplied by 1 + size * noise, as other weights, another machine or another order of sums would move them. A lane
does not depend on its neighbours, so what a lane differs from the first by comes from its perturbation alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty.errors import UserError
from infty_tools.bench import figures
from infty_tools.options import (
    SEED,
    check_folder,
    listed,
    new_folder,
    real,
    several,
    utf8,
    whole,
)

if TYPE_CHECKING:
    from torch import Tensor

    from infty.hf.modeling_infty import InftyForCausalLM

SEGMENT = 32
"""Tokens in a segment of the model that is made here."""
MARKS = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Segments after which a table shows the difference."""


def growth(
    policies: Annotated[
        str,
        typer.Option(
            parser=several(utf8),
            help="Comma-separated: uniform, doubling, learned, or a share such as 0.5.",
        ),
    ] = "uniform,doubling,learned,0.5",
    densities: Annotated[
        str | None,
        typer.Option(
            parser=several(utf8), help="Comma-separated; left out: every family that reads."
        ),
    ] = None,
    warps: Annotated[
        str,
        typer.Option(
            parser=several(utf8),
            help="Comma-separated: off, quantile, multinomial (which needs a share).",
        ),
    ] = "off,quantile,multinomial",
    sizes: Annotated[
        str,
        typer.Option(
            parser=several(real(0, 1, above=True, below=True)),
            help="Comma-separated relative sizes of the perturbation.",
        ),
    ] = "1e-7,1e-5,1e-3",
    segments: Annotated[
        int,
        typer.Option(parser=whole(2, 10**6), metavar="N", help="Segments of 32 tokens to read."),
    ] = 1000,
    seeds: Annotated[
        int, typer.Option(parser=whole(1, 10_000), metavar="N", help="Perturbations of each size.")
    ] = 2,
    train: Annotated[
        int,
        typer.Option(
            parser=whole(0, 10**6),
            metavar="N",
            help="Steps of training on the sorting task first; 0: random weights.",
        ),
    ] = 0,
    basis: Annotated[
        int,
        typer.Option(
            parser=whole(8, 2**16),
            metavar="N",
            help="Basis functions: the gain of the feedback grows with their number.",
        ),
    ] = 512,
    stepwise: Annotated[
        int,
        typer.Option(
            parser=whole(0, 10**6),
            metavar="N",
            help="Segments to read also token by token, in float32 and bfloat16.",
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option(parser=SEED, metavar="N", help="Seed of weights and perturbations.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(parser=new_folder, metavar="PATH", help="Folder for growth.json.")
    ] = None,
) -> None:
    """Perturb a model's embeddings; report the relative difference of its logits, segment by segment.

    Example:

      infty bench growth --policies uniform --densities gaussian --train 300 --stepwise 40
    """
    found = [float(size) for size in listed(sizes)]
    cases = list(_cases(policies, densities, warps))
    if out is not None:
        check_folder(out, "--out")
    for policy, density, warp in cases:
        _memory(policy, density, warp, basis)
    rows: list[dict[str, Any]] = []
    typer.echo(_head(segments))
    for policy, density, warp in cases:
        model = make(_memory(policy, density, warp, basis), seed)
        if train:
            teach(model, train, seed)
        case = {"policy": policy, "density": density, "warp": warp, "trained": train}
        measured = measure(model, segments, found, seeds, seed)
        if stepwise:
            measured += token_by_token(model, stepwise, seed)
        for row in measured:
            rows.append(case | row)
            typer.echo(_line(rows[-1]))
    if out is not None:
        figures.write(out / "growth.json", rows)
        typer.echo(f"wrote {out / 'growth.json'}")


def make(memory: dict[str, Any], seed: int = 0) -> InftyForCausalLM:
    """A small model: 2 layers of 64 with 4 heads, segments of 32 tokens, random weights, strong density maps."""
    import torch

    from infty.hf.configuration_infty import InftyConfig
    from infty.hf.modeling_infty import InftyForCausalLM
    from infty_tools.tasks.sorting import SYMBOLS

    torch.manual_seed(seed)
    model = InftyForCausalLM(
        InftyConfig(
            vocab_size=SYMBOLS + 2,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192,
            segment_length=SEGMENT,
            initializer_range=0.1,
            memories={"memory": memory},
        )
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("weight_mu", "weight_sigma")):
                p.mul_(5)  # fresh ones are kept small, so that densities lie where their biases say
    return model.eval()


def teach(
    model: InftyForCausalLM, steps: int, seed: int = 0, sequences: int = 16, peak: float = 3e-3
) -> float:
    """Train on the sorting task, sequences of 8 segments; returns the mean loss of the last tenth of the steps."""
    import numpy as np
    import torch

    from infty_tools.tasks.sorting import SYMBOLS, sequence

    random = np.random.default_rng(seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=steps + 1, pct_start=0.05
    )
    losses = []
    for _ in range(steps):
        texts = np.stack([sequence(8 * SEGMENT - SYMBOLS, random) for _ in range(sequences)])
        ids = torch.from_numpy(texts)
        labels = ids.masked_fill(torch.arange(ids.shape[1]) <= ids.shape[1] - SYMBOLS - 1, -100)
        loss = model(ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def measure(
    model: InftyForCausalLM, segments: int, sizes: list[float], seeds: int = 2, seed: int = 0
) -> list[dict[str, Any]]:
    """A row for each size of perturbation: what it has become after each segment.

    `difference` has the root mean square of a segment's difference in logits, relative to that of the logits (which are
    centred), the largest of the `seeds`; `grown` is the largest difference after the first ten segments over the
    largest within them, from the first read of the memory on.
    """
    import torch

    from infty.hf.cache_infty import InftyCache

    length = model.config.segment_length
    ids = text(segments * length, seed)
    factors = _factors(model, sizes, seeds, seed)
    cache, found = InftyCache(), []
    for part in ids.split(length):
        with torch.no_grad():
            x = model.get_input_embeddings()(part) * factors[:, part]
            logits = model(inputs_embeds=x, cache=cache, use_cache=True).logits
        found.append(_difference(logits[1:], logits[:1]))
    difference = (
        torch.stack(found, 1).unflatten(0, (len(sizes), seeds)).amax(1)
    )  # [sizes, segments]
    return [_row(size, found) for size, found in zip(sizes, difference.tolist())]


def _row(size: float | str, difference: list[float]) -> dict[str, Any]:
    early = max(difference[1:11] or difference)
    late = max(difference[11:] or difference[-1:])
    return {"size": size, "grown": late / max(early, 1e-30), "difference": difference}


def token_by_token(model: InftyForCausalLM, segments: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for float32 and one for bfloat16: one token at a time against a segment at a time, as in `measure`."""
    import copy

    import torch

    from infty.hf.cache_infty import InftyCache

    length = model.config.segment_length
    ids = text(segments * length, seed)[None]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        twin = copy.deepcopy(model).to(dtype)
        cache, found = InftyCache(), []
        with torch.no_grad():
            whole = twin(ids).logits.float()
            for token in ids.split(1, dim=1):
                found.append(twin(token, cache=cache, use_cache=True).logits.float())
        pairs = zip(torch.cat(found, 1).split(length, 1), whole.split(length, 1))
        name = str(dtype).removeprefix("torch.")
        rows.append(_row(f"tokens {name}", [float(_difference(a, b)) for a, b in pairs]))
    return rows


def text(tokens: int, seed: int = 0) -> Tensor:
    """int64 [tokens]: a sequence of the sorting task, without its answer."""
    import numpy as np
    import torch

    from infty_tools.tasks.sorting import sequence

    return torch.from_numpy(sequence(tokens, np.random.default_rng([seed, 1]))[:tokens])


def _factors(model: InftyForCausalLM, sizes: list[float], seeds: int, seed: int) -> Tensor:
    """float32 [1 + sizes * seeds, V, e]: what the embeddings of each lane are multiplied by; the first lane's by 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = model.get_input_embeddings().weight.shape
    noise = torch.randn(seeds, *shape, generator=generator)
    return torch.cat([torch.ones(1, *shape), *(1 + size * noise for size in sizes)])


def _difference(logits: Tensor, reference: Tensor) -> Tensor:
    """[lanes]: root mean square of the difference over that of the reference; logits [lanes, t, V]."""
    reference = reference - reference.mean(-1, keepdim=True)
    logits = logits - logits.mean(-1, keepdim=True)
    return (logits - reference).square().mean((1, 2)).sqrt() / reference.square().mean().sqrt()


def _cases(policies: str, densities: str | None, warps: str) -> Any:
    """Every combination that exists: (policy, density, warp). Raises UserError when there is none."""
    from infty.memory import contraction
    from infty.memory.config import WARPS

    for warp in listed(warps):
        if warp not in WARPS:
            raise UserError(f"--warps: {warp} is not one of {', '.join(WARPS)}")
    families = listed(densities) if densities else _families()
    found = [(p, d, w) for p in listed(policies) for d in families for w in listed(warps)]
    shares = [p for p in listed(policies) if contraction.policy(_contraction(p)).constant]
    found = [case for case in found if case[0] in shares or case[2] != "multinomial"]
    if not found:
        raise UserError(
            "--warps: multinomial needs a constant share among the --policies, such as 0.5"
        )
    for case in found:
        _memory(*case, basis=64)
    return found


def _memory(policy: str, density: str, warp: str, basis: int) -> dict[str, Any]:
    """The fields of a memory, checked. Raises UserError."""
    from infty.memory import MemoryConfig

    if density not in _families():
        raise UserError(f"--densities: '{density}' is not one of {', '.join(_families())}")
    kept = _contraction(policy)
    fields = {"basis": basis, "contraction": kept, "density": density, "sticky": warp}
    MemoryConfig(**fields)
    return fields


def _contraction(policy: str) -> float | str:
    """What a config says for a policy of --policies. Raises UserError."""
    from infty.memory import contraction

    try:
        return contraction.written(policy)
    except UserError as error:
        raise UserError(f"--policies: {error}") from error


def _families() -> list[str]:
    """The densities that read a signal themselves: only their reads can move its warp."""
    from infty.memory.densities import FAMILIES

    return [name for name, family in FAMILIES.items() if not family.attends]


def _marks(segments: int) -> list[int]:
    return [m for m in MARKS if m < segments] + [segments]


def _head(segments: int) -> str:
    columns = " ".join(f"{mark:>7}" for mark in _marks(segments))
    return f"{'policy':<9} {'density':<9} {'warp':<11} {'size':<15} {'grown':>8}  difference after segment {columns}"


def _line(row: dict[str, Any]) -> str:
    size = row["size"] if isinstance(row["size"], str) else f"{row['size']:.0e}"
    found = row["difference"]
    shown = " ".join(f"{found[mark - 1]:7.0e}" for mark in _marks(len(found)))
    return (
        f"{row['policy']:<9} {row['density']:<9} {row['warp']:<11} {size:<15} {row['grown']:8.1f}  "
        f"{'':>24} {shown}"
    )
