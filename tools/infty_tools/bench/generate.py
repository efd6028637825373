"""`infty bench generate`: what a token costs after a long text, and how fast a long prompt is read."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infty_tools.bench import figures
from infty_tools.options import (
    FiguresOutput,
    check_new_file,
    device_here,
    listed,
    one_of,
    several,
    utf8,
    whole,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KINDS = ("continuation", "associative", "continuous", "none")
TOKENS = whole(1, 2**40)
VOCABULARY = 2048
AT_ONCE = 4096
"""Tokens that are given to the model in one call."""


def generate(
    memory: Annotated[
        str, typer.Option(parser=one_of(*KINDS), metavar="KIND", help=f"One of {', '.join(KINDS)}")
    ] = "continuation",
    hidden: Annotated[
        int, typer.Option(parser=whole(16, 2**16), metavar="N", help="Hidden size")
    ] = 256,
    layers: Annotated[int, typer.Option(parser=whole(1, 1_000), metavar="N", help="Layers")] = 4,
    heads: Annotated[int, typer.Option(parser=whole(1, 2**12), metavar="N", help="Heads")] = 8,
    segment: Annotated[
        int,
        typer.Option(
            parser=whole(1, 2**20), metavar="N", help="Tokens in a segment, and in the STM"
        ),
    ] = 256,
    contexts: Annotated[
        str,
        typer.Option(
            parser=several(TOKENS), metavar="N,...", help="Tokens read before tokens are written"
        ),
    ] = "1024,16384,131072,1048576",
    tokens: Annotated[
        int, typer.Option(parser=whole(1, 10**6), metavar="N", help="Tokens to write at each")
    ] = 64,
    prompt: Annotated[
        int,
        typer.Option(
            parser=whole(1, 2**24), metavar="N", help="Tokens of the prompt that is read for speed"
        ),
    ] = 4096,
    repeats: Annotated[
        int,
        typer.Option(
            parser=whole(1, 10_000), metavar="N", help="Readings of the prompt; the fastest counts"
        ),
    ] = 3,
    threads: Annotated[
        int,
        typer.Option(
            parser=whole(0, 4_096), metavar="N", help="CPU threads; 0 leaves torch's choice"
        ),
    ] = 1,
    device: Annotated[str, typer.Option(parser=utf8, help="cpu, cuda, or auto")] = "auto",
    output: FiguresOutput = None,
) -> None:
    """Time a token, and the process's size, after texts of up to 1,048,576 tokens; and the reading of a long prompt.

    The prompt is read by a Llama of the same shape in plain transformers, too. Weights are random: they change no time.

    Example:

      infty bench generate --hidden 768 --layers 12 --heads 12 --output generate.json
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    if output is not None:
        check_new_file(output, "--output")
    where = device_here(device)
    if threads:
        torch.set_num_threads(threads)
    model, llama = models(Shape(memory, hidden, layers, heads, segment), where)
    typer.echo(f"{memory}, hidden {hidden}, {layers} layers, segment {segment}, {where}")
    typer.echo(f"{'tokens read':>12} {'ms a token':>11} {'process MiB':>12} {'cache MiB':>10}")
    written = []
    for row in decoding(model, sorted({int(n) for n in listed(contexts)}), tokens, where):
        written.append(row)
        typer.echo(
            f"{row['context']:>12,} {1e3 * row['seconds']:>11.2f} {row['process_mib']:>12,.0f} "
            f"{row['cache_mib']:>10.2f}"
        )
    read = reading({"infty": model, "llama": llama}, prompt, repeats, where)
    for name, speed in read.items():
        typer.echo(f"{name} reads {prompt:,} tokens at {speed:,.0f} a second")
    if output is not None:
        figures.write(output, {"decoding": written, "prompt": prompt, "reading": read})
        typer.echo(f"wrote {output}")


@dataclass(frozen=True)
class Shape:
    """Of both models."""

    memory: str
    hidden: int
    layers: int
    heads: int
    segment: int


def models(shape: Shape, device: torch.device) -> tuple[Any, Any]:
    """An infty model and a Llama with random weights, alike but for the memories. Raises UserError."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from infty.config import ModelConfig
    from infty.hf.modeling_infty import InftyForCausalLM
    from infty.memory_kinds import KINDS as SECTIONS
    from infty_tools.export.weights import convert_config

    config = ModelConfig(
        family="llama",
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        segment_length=shape.segment,
        stm_length=shape.segment,
        tie_embeddings=True,
        memory=None if shape.memory == "none" else SECTIONS[shape.memory].section(),
    )
    torch.manual_seed(0)
    beside = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=config.ffn_size,
        tie_word_embeddings=True,
        max_position_embeddings=2**24,
    )
    made = InftyForCausalLM(convert_config(config)), LlamaForCausalLM(beside)
    return tuple(model.eval().to(device) for model in made)


def decoding(
    model: Any, contexts: list[int], tokens: int, device: torch.device
) -> Iterator[dict[str, float]]:
    """Read a text of random tokens once, and write from a copy of its cache where `contexts` say. Seconds are the
    median of the tokens'; sizes are MiB, of the process as it stands then."""
    import torch

    from infty.hf.cache_infty import InftyCache

    cache, generator = InftyCache(), torch.Generator().manual_seed(0)
    for context in contexts:
        with torch.no_grad():
            while cache.tokens < context:
                part = min(AT_ONCE, context - cache.tokens)
                ids = torch.randint(0, VOCABULARY, (1, part), generator=generator).to(device)
                model(ids, cache=cache, logits_to_keep=1)
            seconds = _written(model, copy.deepcopy(cache), ids[:, -1:], tokens, device)
        sizes = {"process_mib": _process_mib(), "cache_mib": _cache_mib(cache)}
        yield {"context": context, "seconds": seconds, **sizes}


def _written(model: Any, cache: Any, ids: Tensor, tokens: int, device: torch.device) -> float:
    taken = []
    for _ in range(tokens + 1):  # the first warms up
        begun = time.perf_counter()
        ids = model(ids, cache=cache, logits_to_keep=1).logits.argmax(-1)
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[1:])


def reading(
    models: dict[str, Any], prompt: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Tokens a second of each model, of the fastest reading of the same prompt; read in turn."""
    import torch

    ids = torch.randint(0, VOCABULARY, (1, prompt), device=device)
    best = dict.fromkeys(models, 0.0)
    with torch.no_grad():
        for _ in range(repeats + 1):
            for name, model in models.items():
                seconds = _seconds(lambda m=model: m(ids, use_cache=True, logits_to_keep=1), device)
                best[name] = max(best[name], prompt / seconds)
    return best


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _process_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cache_mib(cache: Any) -> float:
    sizes: list[int] = []
    for state in cache.states:
        state.map(lambda x: sizes.append(x.nbytes) or x)
    return sum(sizes) / 2**20
