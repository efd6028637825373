"""Whether the processes' software, devices, network and clocks are what a run needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from infty.errors import UserError
from infty_pretrain.config import Config
from infty_pretrain.launch import Launch
from infty_tools.doctor.findings import Finding, everywhere

PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers")
PINNED = {"deepspeed": "0.19.8", "megatron-core": "0.16.1"}
SKEW = 2.0
"""Seconds that clocks may differ: logs and deadlines are compared between nodes."""
PATIENCE = timedelta(seconds=120)
"""How long processes wait for each other."""


def connect(here: Launch) -> None:
    """Join the other processes over gloo, which works whatever their devices are."""
    dist.init_process_group("gloo", rank=here.rank, world_size=here.world, timeout=PATIENCE)


def versions() -> Finding:
    """Of Python and what the training relies on."""
    found = {p: installed_version(p) for p in PACKAGES}
    text = ", ".join(f"{p} {v}" for p, v in found.items())
    wrong = [f"{p}=={v}" for p, v in PINNED.items() if found[p] != v]
    return Finding(
        "versions",
        f"Python {platform.python_version()}, {text}",
        not wrong,
        f"this version relies on {' and '.join(wrong)}: pip install {' '.join(wrong)}",
    )


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def devices(here: Launch) -> Finding:
    """A GPU for this process, or a CPU run."""
    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists()
        return Finding(
            "devices",
            f"no GPU that PyTorch sees; {len(os.sched_getaffinity(0))} CPU cores",
            not driver,
            f"there is an NVIDIA driver, but torch {torch.__version__} was built without CUDA or sees no "
            "device: install a CUDA build of torch, and ask Slurm for GPUs (--gpus-per-node)",
        )
    count = torch.cuda.device_count()
    name = torch.cuda.get_device_name(0)
    return Finding(
        "devices",
        f"{count} x {name} for a process to choose from",
        here.own_gpu(count) is not None,
        f"process {here.local_rank} of a node that shows {count} GPU(s): start one process per GPU",
    )


def gpus(here: Launch) -> list[str | None]:
    """Which GPU each process has: the node's name and the device's UUID, or None."""
    index = here.own_gpu(torch.cuda.device_count())
    mine = None
    if index is not None:
        mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(index).uuid}"
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(everything, mine)
    return everything


def own_gpus(everyones: list[str | None]) -> Finding:
    """Whether no two processes share a GPU."""
    owned = [gpu for gpu in everyones if gpu is not None]
    twice = next((gpu for gpu in owned if owned.count(gpu) > 1), None)
    ranks = [rank for rank, gpu in enumerate(everyones) if gpu == twice]
    return Finding(
        "a GPU each",
        f"{len(set(owned))} GPU(s) for {len(everyones)} process(es)",
        twice is None,
        f"ranks {', '.join(map(str, ranks))} have the same GPU: start one process per GPU",
    )


def same_versions() -> Finding:
    """Whether all nodes run the same software."""
    everything: list = [None] * dist.get_world_size()
    mine = (sys.version_info[:2], *(installed_version(p) for p in ("infty", *PACKAGES)))
    dist.all_gather_object(everything, mine)
    odd = [rank for rank, other in enumerate(everything) if other != everything[0]]
    return Finding(
        "same software",
        f"infty {installed_version('infty')} on {len(everything)} process(es)",
        not odd,
        f"ranks {odd[:8]} run other versions than rank 0: use one environment on all nodes",
    )


def layout(config: Config | None, here: Launch) -> Finding:
    """Whether the config can be spread over this many processes."""
    if config is None:
        return Finding("processes", f"{here.world} ({here.launcher})")
    try:
        config.check_layout(here.world)
    except UserError as error:
        return Finding("processes", f"{here.world} ({here.launcher})", False, str(error))
    tensor = config.parallel.tensor
    return Finding(
        "processes",
        f"{here.world} ({here.launcher}): {here.world // tensor} data x {tensor} tensor parallel",
    )


def communication(here: Launch, everyones: list[str | None]) -> Finding:
    """A sum that must be right, and how fast 32 MiB travel: by NCCL where every process has a GPU
    of its own.

    `everyones` is what `gpus` returned.
    """
    if here.world == 1:
        return Finding("communication", "one process")
    backend, group, device = "gloo", None, "cpu"
    if None not in everyones and len(set(everyones)) == here.world:
        device = f"cuda:{here.own_gpu(torch.cuda.device_count())}"
        torch.cuda.set_device(device)
        backend = "nccl"
        group = dist.new_group(backend=backend, timeout=PATIENCE)
    x = torch.full((8 * 2**20,), float(here.rank), device=device)
    expected = here.world * (here.world - 1) / 2
    dist.all_reduce(x, group=group)
    right = bool((x == expected).all())
    start = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(x, group=group)
    x[0].item()  # waits for the GPU
    seconds = (time.perf_counter() - start) / 3
    speed = 2 * (here.world - 1) / here.world * x.numel() * 4 / seconds
    return everywhere(
        Finding(
            "communication",
            f"{backend} all-reduce among {here.world}: {speed / 1e9:.2f} GB/s per rank",
            right,
            f"a sum over {here.world} ranks came out wrong: the network or a GPU is faulty; run again with --exclude",
        )
    )


def clocks() -> Finding:
    """How far apart the clocks of the processes are, as seen right after a barrier."""
    everything: list = [None] * dist.get_world_size()
    dist.barrier()
    dist.all_gather_object(everything, time.time())
    skew = max(everything) - min(everything)
    return Finding(
        "clocks",
        f"within {skew:.2f} s",
        skew < SKEW,
        f"the nodes' clocks are {skew:.1f} s apart: have them synchronised (chrony, ntp)",
    )
