"""What `infty doctor` looks at. Every check runs on every process; what any of them finds wrong is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from infty.errors import UserError
from infty_pretrain.config import Config
from infty_pretrain.launch import Launch

PACKAGES = ("torch", "deepspeed", "megatron-core", "transformers")
PINNED = {"deepspeed": "0.19.8", "megatron-core": "0.16.1"}
SKEW = 2.0
"""Seconds that clocks may differ: logs and deadlines are compared between nodes."""
SLOWEST_DISK = 20e6
"""Bytes a second; a checkpoint would take too long."""
PROBE_MIB = 64


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    found: str
    fine: bool = True
    advice: str = ""


def run(config: Config | None, here: Launch) -> list[Finding]:
    """Every check, in order; the same list on every process. Communication is set up first, without parallel groups."""
    findings = [versions(), devices(here)]
    try:
        connect(here)
    except Exception as error:
        return [*findings, Finding("communication", f"{type(error).__name__} on {socket.gethostname()}", False,
                                   f"{here.world} processes cannot meet at {os.environ.get('MASTER_ADDR')}:"
                                   f"{os.environ.get('MASTER_PORT')}: {str(error).splitlines()[0]}")]
    findings = [_everywhere(f) for f in findings]
    findings += [same_versions(), layout(config, here), communication(here), clocks()]
    if config is not None:
        findings += [_everywhere(_safely(check, config)) for check in (space, write_speed, dataset)]
    return findings


def _safely(check: Callable[[Config], Finding], config: Config) -> Finding:
    """A check that fails in an unforeseen way has found something, too."""
    try:
        return check(config)
    except (UserError, OSError) as error:
        return Finding(check.__name__.replace("_", " "), "not usable", False, str(error))


def _everywhere(finding: Finding) -> Finding:
    """Put together what all processes found: the first that is wrong, with its node, or this one's."""
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (socket.gethostname(), finding))
    wrong = [(rank, host, f) for rank, (host, f) in enumerate(everything) if not f.fine]
    if not wrong:
        return everything[0][1]
    rank, host, f = wrong[0]
    others = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return Finding(f.check, f"{f.found} on {os.environ.get('SLURMD_NODENAME', host)}, rank {rank}{others}", False,
                   f.advice)


def connect(here: Launch) -> None:
    """Join the other processes, with NCCL where every one of them has a GPU, else with gloo."""
    backend = "gloo"
    if torch.cuda.is_available() and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
        backend = "nccl"
    from datetime import timedelta

    dist.init_process_group(backend, rank=here.rank, world_size=here.world, timeout=timedelta(seconds=120))


def versions() -> Finding:
    """Of Python and what the training relies on."""
    found = {p: _version(p) for p in PACKAGES}
    text = ", ".join(f"{p} {v}" for p, v in found.items())
    wrong = [f"{p}=={v}" for p, v in PINNED.items() if found[p] != v]
    return Finding("versions", f"Python {platform.python_version()}, {text}", not wrong,
                   f"this version relies on {' and '.join(wrong)}: pip install {' '.join(wrong)}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def devices(here: Launch) -> Finding:
    """A GPU for this process, or a CPU run."""
    if not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists()
        return Finding("devices", f"no GPU that PyTorch sees; {len(os.sched_getaffinity(0))} CPU cores", not driver,
                       f"there is an NVIDIA driver, but torch {torch.__version__} was built without CUDA or sees no "
                       "device: install a CUDA build of torch, and ask Slurm for GPUs (--gpus-per-node)")
    count = torch.cuda.device_count()
    name = torch.cuda.get_device_name(0)
    return Finding("devices", f"{count} x {name} a node", here.local_rank < count,
                   f"process {here.local_rank} of a node that shows {count} GPU(s): start one process a GPU")


def same_versions() -> Finding:
    """Whether all nodes run the same software."""
    everything: list = [None] * dist.get_world_size()
    mine = (sys.version_info[:2], *(_version(p) for p in ("infty", *PACKAGES)))
    dist.all_gather_object(everything, mine)
    odd = [rank for rank, other in enumerate(everything) if other != everything[0]]
    return Finding("same software", f"infty {_version('infty')} on {len(everything)} process(es)", not odd,
                   f"ranks {odd[:8]} run other versions than rank 0: use one environment on all nodes")


def layout(config: Config | None, here: Launch) -> Finding:
    """Whether the config can be spread over this many processes."""
    if config is None:
        return Finding("processes", f"{here.world} ({here.launcher})")
    try:
        config.check_layout(here.world)
    except UserError as error:
        return Finding("processes", f"{here.world} ({here.launcher})", False, str(error))
    tensor = config.parallel.tensor
    return Finding("processes",
                   f"{here.world} ({here.launcher}): {here.world // tensor} data x {tensor} tensor parallel")


def communication(here: Launch) -> Finding:
    """A sum that must be right, and how fast 32 MiB travel."""
    device = f"cuda:{here.local_rank}" if dist.get_backend() == "nccl" else "cpu"
    x = torch.full((8 * 2**20,), float(here.rank), device=device)
    if here.world == 1:
        return Finding("communication", "one process")
    expected = here.world * (here.world - 1) / 2
    dist.all_reduce(x)
    right = bool((x == expected).all())
    start = time.perf_counter()
    for _ in range(3):
        dist.all_reduce(x)
    x[0].item()  # waits for the GPU
    seconds = (time.perf_counter() - start) / 3
    speed = 2 * (here.world - 1) / here.world * x.numel() * 4 / seconds
    return _everywhere(Finding(
        "communication", f"{dist.get_backend()} all-reduce among {here.world}: {speed / 1e9:.2f} GB/s a rank", right,
        f"a sum over {here.world} ranks came out wrong: the network or a GPU is faulty; run again with --exclude"))


def clocks() -> Finding:
    """How far apart the clocks of the processes are, as seen right after a barrier."""
    everything: list = [None] * dist.get_world_size()
    dist.barrier()
    dist.all_gather_object(everything, time.time())
    skew = max(everything) - min(everything)
    return Finding("clocks", f"within {skew:.2f} s", skew < SKEW,
                   f"the nodes' clocks are {skew:.1f} s apart: have them synchronised (chrony, ntp)")


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def space(config: Config) -> Finding:
    """Room for the checkpoints that the policy keeps, and one that is being written."""
    from infty_tools import plan_memory, plan_search
    from infty_tools.plan import with_vocab

    config, _ = with_vocab(config)
    spread = plan_search.of_config(config, dist.get_world_size())
    each = sum(plan_memory.checkpoint_bytes(config.model, spread).values())
    kept = config.checkpoint.keep_last + 1 + (config.checkpoint.minutes is not None)
    needed = each * kept
    free = shutil.disk_usage(_existing(config.run.folder)).free
    return Finding("disk space", f"{free / 2**30:,.1f} GiB free for {kept} checkpoints of "
                   f"{each / 2**30:,.2f} GiB", free > needed,
                   f"{config.run.folder} needs {needed / 2**30:,.1f} GiB: make room, or lower checkpoint.keep_last")


def write_speed(config: Config) -> Finding:
    """Write, flush and delete a file beside the run's folder."""
    parent = _existing(config.run.folder)
    block, start = os.urandom(2**20), time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=parent, prefix=".infty-doctor-") as f:
        for _ in range(PROBE_MIB):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
    speed = PROBE_MIB * 2**20 / (time.perf_counter() - start)
    return Finding("write speed", f"{speed / 1e6:,.0f} MB/s from each of {dist.get_world_size()} process(es)",
                   speed > SLOWEST_DISK, f"{parent} takes {speed / 1e6:.1f} MB/s: put run.folder on a faster disk")


def dataset(config: Config) -> Finding:
    """Read both ends of every dataset, and its tokenizer, as training will."""
    from infty.data.documents import Documents

    texts = []
    for key, folder in (("data.train", config.data.train), ("data.validation", config.data.validation)):
        if folder is None:
            continue
        documents = Documents.open(folder)
        for document in (0, len(documents) - 1):
            documents.read(document, 0, 8)
        if documents.tokenizer.vocab_size != documents.vocab_size:
            raise UserError(f"{key}: the tokenizer in {folder} is not the one the dataset was made with")
        texts.append(f"{key} {len(documents):,} documents, {documents.info.tokens:,} tokens")
    return Finding("dataset", "; ".join(texts))
