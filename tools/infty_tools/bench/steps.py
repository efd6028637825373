"""Steps of training whose time is taken: those of infty's own engine, and those of a model of transformers."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import torch
import torch.distributed as dist

from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule
from infty.parallel import groups
from infty.parts import DATA, LOSS, OPTIMIZER, part
from infty_pretrain.engine import Engine
from infty_tools.bench.step_systems import OFF, PLAIN, Size, config


class Trained(Protocol):
    """A model in training."""

    parameters: int

    def step(self) -> None:
        """Read data and take one optimizer step."""
        ...

    def end(self) -> None:
        """Let go of what it holds."""
        ...


class Infty:
    """The engine of `infty pretrain`, and its reader of lanes."""

    def __init__(self, size: Size, system: str, data: Path, device: str, precision: str) -> None:
        self.config = config(size, system, data, precision)
        self.documents = Documents.open(data)
        self.engine = Engine(self.config, device)
        self.parameters = self.engine.parameter_count
        schedule = LaneSchedule(self.documents.lengths, size.lanes, size.segment)
        self.reader = LaneReader(self.documents, schedule, self.engine.lanes)
        self.segments = size.segments

    def step(self) -> None:
        """See `Trained`."""
        with part(DATA):
            window = self.reader.next_window(self.segments)
        self.engine.step(window)

    def end(self) -> None:
        """See `Trained`."""
        self.engine.deepspeed.destroy()


class PlainLlama:
    """A Llama of transformers with AdamW; its attention sees all of the window before a token."""

    def __init__(self, size: Size, data: Path, device: str, precision: str) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        model = config(size, OFF, data).model
        self.size, self.device, self.precision = size, device, precision
        shape = LlamaConfig(
            vocab_size=model.padded_vocab,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            max_position_embeddings=size.segments * size.segment,
            use_cache=False,
        )
        torch.manual_seed(1)
        self.model = LlamaForCausalLM(shape).to(device).train()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.1)
        documents = Documents.open(data)
        schedule = LaneSchedule(documents.lengths, size.lanes, size.segment)
        self.reader = LaneReader(documents, schedule, range(size.lanes))

    def step(self) -> None:
        """See `Trained`."""
        with part(DATA):
            tokens = self.reader.next_window(self.size.segments).tokens.flatten(1).to(self.device)
        kind = torch.device(self.device).type
        with (
            part(LOSS),
            torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        with part(OPTIMIZER):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        loss.item()  # as infty's engine, which looks at every loss

    def end(self) -> None:
        """See `Trained`."""
        del self.model, self.optimizer


def trained(
    size: Size, system: str, data: Path, device: str = "cpu", precision: str = "fp32"
) -> Trained:
    """A model of this size with the memory of this system. `alone` must be entered."""
    if system == PLAIN:
        return PlainLlama(size, data, device, precision)
    return Infty(size, system, data, device, precision)


@contextmanager
def alone(device: str) -> Iterator[None]:
    """Process groups of this process alone, NCCL's on a GPU; those that are there already are used."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    # Only inference uses it, and it would be compiled here, for a minute and more.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed takes it for the number of a device
    started = not dist.is_initialized()
    if started:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        if not deepspeed.comm.is_initialized():
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        groups.initialize(tensor=1)
        yield
    finally:
        if started:
            groups.destroy()
            dist.destroy_process_group()


def clock(device: str) -> float:
    """Seconds: of a CPU those that this process has had, as others may share it; of a GPU those on the wall."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(
    models: dict[str, Trained], rounds: int, device: str, tell: Any = lambda: None
) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each model, taken in turn after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for i in range(-1, rounds):
        for name, model in models.items():
            start = clock(device)
            model.step()
            if i >= 0:
                seconds[name].append(clock(device) - start)
            tell()
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the most."""
    return {
        "least": min(seconds),
        "median": statistics.median(seconds),
        "most": max(seconds),
    }
