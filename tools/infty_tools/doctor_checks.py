"""What `infty doctor` looks at. Every check runs on every process; what any of them finds wrong is wrong."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
LONGEST_CHECKPOINT = 600.0
"""Seconds that writing one may take. Checkpoints are written while training goes on, one at a time; but the last one of
a job is waited for, and a job is told of its end only minutes before."""
PROBE_MIB = 64
PATIENCE = 5.0
"""Seconds in which a file must be seen by every node: network file systems may take a moment."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    found: str
    fine: bool = True
    advice: str = ""
    warning: bool = False
    """What is not fine is told, and is no reason to stop."""

    @property
    def wrong(self) -> bool:
        return not self.fine and not self.warning

    @property
    def verdict(self) -> str:
        return "ok" if self.fine else "warning" if self.warning else "wrong"


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
        findings += [_everywhere(_safely(check, config)) for check in (shared_folder, space, write_speed, dataset)]
    return findings


def _safely(check: Callable[[Config], Finding], config: Config) -> Finding:
    """A check that fails in an unforeseen way has found something, too."""
    try:
        return check(config)
    except (UserError, OSError) as error:
        return Finding(check.__name__.replace("_", " "), "not usable", False, str(error))


def _everywhere(finding: Finding) -> Finding:
    """Put together what all processes found: the first that is wrong, with its node, or a warning, or rank 0's."""
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (os.environ.get("SLURMD_NODENAME", socket.gethostname()), finding))
    odd = [(rank, host, f) for rank, (host, f) in enumerate(everything) if not f.fine]
    odd = [o for o in odd if o[2].wrong] or odd
    if not odd:
        return everything[0][1]
    rank, host, f = odd[0]
    others = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    return replace(f, found=f"{f.found} on {host}, rank {rank}{others}")


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


def shared_folder(config: Config) -> Finding:
    """Whether the run's folder is on one disk that all processes see: each of them writes its part of a checkpoint."""
    folder = config.run.folder.absolute()
    place: list = [_leave_token(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(place, src=0)
    levels, name, token, problem = place[0]
    above = [folder, *folder.parents]
    path = above[min(levels, len(above) - 1)] / name
    seen = problem is None and _reads(path, token)
    dist.barrier()
    if problem is not None:
        raise UserError(problem)
    if dist.get_rank() == 0:
        path.unlink(missing_ok=True)
    return Finding("shared folder", f"{folder} is {'' if seen else 'not '}the one that rank 0 sees", seen,
                   "run.folder must be on a disk that all nodes share (NFS, Lustre, ...), not on one of each node's "
                   f"own, or no checkpoint is whole: give another than {folder}")


def _leave_token(folder: Path) -> tuple[int, str, str, str | None]:
    """Write a file beside a folder. Returns how many levels above it, the file's name, what is in it, and a problem."""
    name, token = f".infty-doctor-{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        parent = _existing(folder)
        (parent / name).write_text(token)
    except OSError as error:
        return 0, name, token, f"{folder} cannot be written: {error}"
    return [folder, *folder.parents].index(parent), name, token, None


def _reads(path: Path, token: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if path.read_text() == token:
                return True
        except (OSError, UnicodeDecodeError):
            pass  # not here, or not yet
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _own_checkpoints(config: Config) -> list[int]:
    """Steps of the run's whole checkpoints: a manifest is written last. Other folders' names go on after the number."""
    found = (p.parent.name.removeprefix("step-") for p in (config.run.folder / "checkpoints").glob(
        "step-*/manifest.json"))
    return sorted(int(step) for step in found if step.isdigit())


def _checkpoint_bytes(config: Config) -> float:
    from infty_tools import plan_memory, plan_search
    from infty_tools.plan import with_vocab

    config, _ = with_vocab(config)
    spread = plan_search.of_config(config, dist.get_world_size())
    return sum(plan_memory.checkpoint_bytes(config.model, spread).values())


def space(config: Config) -> Finding:
    """Room for the checkpoints that the policy keeps and one that is being written, less those that are there.

    Without room for those that `keep_every` will have kept in the end, a run may begin: it is warned.
    """
    each, there, policy = _checkpoint_bytes(config), _own_checkpoints(config), config.checkpoint
    kept = policy.keep_last + (policy.minutes is not None)
    held, for_good = min(len(there), kept), _to_be_kept(config, there)
    needed, later = each * (kept + 1 - held), each * for_good
    free = shutil.disk_usage(_existing(config.run.folder)).free
    found = f"{_gib(free)} free for {kept + 1 - held} checkpoints of {_gib(each, 2)}"
    found += f" ({held} more are there)" if held else ""
    advice = f"{config.run.folder} needs {_gib(needed + later)}: make room, or lower checkpoint.keep_last"
    if for_good:
        found += f"; checkpoint.keep_every will add {for_good:,}, {_gib(later)}"
        advice += " or raise checkpoint.keep_every"
    return Finding("disk space", found, free > needed + later, advice, warning=bool(there) or free > needed)


def _gib(size: float, digits: int = 1) -> str:
    return f"{size / 2**30:,.{digits}f} GiB"


def _to_be_kept(config: Config, there: list[int]) -> int:
    """Checkpoints for good that the rest of the run writes: at steps at which there is one anyway."""
    policy = config.checkpoint
    if policy.keep_every is None:
        return 0
    apart = math.lcm(policy.every, policy.keep_every)
    return max(0, config.total_steps // apart - (there[-1] // apart if there else 0))


def write_speed(config: Config) -> Finding:
    """How long a checkpoint takes when all processes write at once, as they will."""
    everything: list = [None] * dist.get_world_size()
    mine = _measured_speed(config.run.folder)
    dist.all_gather_object(everything, mine)
    if isinstance(mine, str):
        raise UserError(mine)
    speed, size = sum(s for s in everything if not isinstance(s, str)), _checkpoint_bytes(config)
    seconds = size / speed
    return Finding("write speed", f"{speed / 1e6:,.0f} MB/s from {len(everything)} process(es) together: "
                   f"{seconds:,.0f} s for a checkpoint of {_gib(size, 2)}", seconds <= LONGEST_CHECKPOINT,
                   f"a checkpoint in {config.run.folder} would take {seconds / 60:,.0f} minutes, more than "
                   f"{LONGEST_CHECKPOINT / 60:.0f}: put run.folder on a faster disk",
                   warning=bool(_own_checkpoints(config)))


def _measured_speed(folder: Path) -> float | str:
    """Write, flush and delete a file beside the run's folder: bytes a second, or what went wrong."""
    block, start = os.urandom(2**20), time.perf_counter()
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=".infty-doctor-") as f:
            for _ in range(PROBE_MIB):
                f.write(block)
            f.flush()
            os.fsync(f.fileno())
    except OSError as error:
        return f"{folder} cannot be written: {error}"
    return PROBE_MIB * 2**20 / (time.perf_counter() - start)


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
