"""Whether the run's folder is shared, has room for its checkpoints and is fast enough for them."""

from __future__ import annotations

import math
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from infty.errors import UserError
from infty_pretrain.config import Config
from infty_tools.doctor.findings import Finding

LONGEST_CHECKPOINT = 600.0
"""Seconds that writing one may take. Checkpoints are written while training goes on, one at a time;
but the last one of a job is waited for, and a job is told of its end only minutes before."""
PROBE_MIB = 64
PATIENCE = 5.0
"""Seconds in which a file must be seen by every node: network file systems may take a moment."""


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def shared_folder(config: Config) -> Finding:
    """Whether the run's folder is on one disk that all processes see: each of them writes its part
    of a checkpoint."""
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
    return Finding(
        "shared folder",
        f"{folder} is {'' if seen else 'not '}the one that rank 0 sees",
        seen,
        "run.folder must be on a disk that all nodes share (NFS, Lustre, ...), not on one of each node's "
        f"own, or no checkpoint is whole: give another than {folder}",
    )


def _leave_token(folder: Path) -> tuple[int, str, str, str | None]:
    """Write a file beside a folder. Returns how many levels above it, the file's name, what is in
    it, and a problem."""
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
    """Steps of the run's whole checkpoints: a manifest is written last. Other folders' names go on
    after the number."""
    found = (
        p.parent.name.removeprefix("step-")
        for p in (config.run.folder / "checkpoints").glob("step-*/manifest.json")
    )
    return sorted(int(step) for step in found if step.isdigit())


def checkpoint_bytes(config: Config) -> float:
    from infty_tools.plan import memory as plan_memory
    from infty_tools.plan import search as plan_search
    from infty_tools.plan.command import with_vocab

    config, _ = with_vocab(config)
    spread = plan_search.of_config(config, dist.get_world_size())
    return sum(plan_memory.checkpoint_bytes(config.model, spread).values())


def space(config: Config) -> Finding:
    """Room for the checkpoints that the policy keeps and one that is being written, less those that
    are there.

    Without room for those that `keep_every` will have kept in the end, a run may begin: it is
    warned.
    """
    each, there, policy = checkpoint_bytes(config), _own_checkpoints(config), config.checkpoint
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
    return Finding(
        "disk space", found, free > needed + later, advice, warning=bool(there) or free > needed
    )


def _gib(size: float, digits: int = 1) -> str:
    return f"{size / 2**30:,.{digits}f} GiB"


def _to_be_kept(config: Config, there: list[int]) -> int:
    """Checkpoints for good that the rest of the run writes: at steps at which there is one
    anyway."""
    policy = config.checkpoint
    if policy.keep_every is None:
        return 0
    apart = math.lcm(policy.every, policy.keep_every)
    return max(0, config.total_steps // apart - (there[-1] // apart if there else 0))


def write_speed(config: Config) -> Finding:
    """How long a checkpoint takes when all processes write at once, as they will."""
    everything: list = [None] * dist.get_world_size()
    mine = measured_speed(config.run.folder)
    dist.all_gather_object(everything, mine)
    if isinstance(mine, str):
        raise UserError(mine)
    speed, size = sum(s for s in everything if not isinstance(s, str)), checkpoint_bytes(config)
    seconds = size / speed
    return Finding(
        "write speed",
        f"{speed / 1e6:,.0f} MB/s from {len(everything)} process(es) together: "
        f"{seconds:,.0f} s for a checkpoint of {_gib(size, 2)}",
        seconds <= LONGEST_CHECKPOINT,
        f"a checkpoint in {config.run.folder} would take {seconds / 60:,.0f} minutes, more than "
        f"{LONGEST_CHECKPOINT / 60:.0f}: put run.folder on a faster disk",
        warning=bool(_own_checkpoints(config)),
    )


def measured_speed(folder: Path) -> float | str:
    """Write, flush and delete a file beside the run's folder: bytes a second, or what went
    wrong."""
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
