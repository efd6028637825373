"""From an engine to a checkpoint's folder: copied to host memory, written by every rank, published by the first."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from infty import files as whole_files
from infty.errors import UserError
from infty.parallel import groups, randomness
from infty_pretrain.checkpoint import canonical, lanes
from infty_pretrain.checkpoint.format import FORMAT, digest, odd_size
from infty_pretrain.engine import Engine
from infty_pretrain.records import CONFIG, MANIFEST, RUN


@dataclass(frozen=True)
class Snapshot:
    """What this rank writes of a checkpoint: nothing of it changes when training goes on."""

    final: Path
    shards: dict[str, dict[str, Tensor]]
    """Tensors in host memory, by file."""
    texts: dict[str, str]
    """The other files."""

    @property
    def partial(self) -> Path:
        """The folder in which it is written."""
        return self.final.with_name(self.final.name + whole_files.PARTIAL)


def collect(engine: Engine, folder: Path, run: dict[str, Any]) -> Snapshot:
    """Copy what makes the checkpoint of step `run["step"]` to host memory. A collective."""
    snapshot = Snapshot(folder / f"step-{run['step']:08d}", _shards(engine), {})
    if dist.get_rank() == 0:
        run = run | {
            "format": FORMAT,
            "layout": groups.layout(),
            "optimizer_step": canonical.optimizer_step(engine.deepspeed),
            "zero_stage": engine.config.parallel.zero_stage,
        }
        snapshot.texts.update({RUN: json.dumps(run, indent=1), CONFIG: engine.config.to_yaml()})
        shutil.rmtree(snapshot.partial, ignore_errors=True)
    dist.barrier()
    return snapshot


def write(snapshot: Snapshot) -> tuple[dict[str, Any], str | None]:
    """Write and fsync this rank's files; no collective. Returns their digests by name, and what went
    wrong."""
    try:
        snapshot.partial.mkdir(parents=True, exist_ok=True)
        for name, tensors in snapshot.shards.items():
            write_file(
                snapshot.partial / name, lambda path, tensors=tensors: save_file(tensors, path)
            )
        for name, text in snapshot.texts.items():
            write_file(snapshot.partial / name, lambda path, text=text: path.write_text(text))
        return {
            name: digest(snapshot.partial / name) for name in (*snapshot.shards, *snapshot.texts)
        }, None
    except OSError as error:
        return {}, _explain(error, snapshot.final.parent)


def publish(snapshot: Snapshot, digests: dict[str, Any], problem: str | None) -> None:
    """Agree that every rank has written, add the manifest, rename. A collective.

    Raises UserError on every rank, and leaves nothing behind, when a rank could not write (a full disk).
    """
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (digests, problem))
    agreed = [sorted({p for _, p in everything if p})]
    if dist.get_rank() == 0 and not agreed[0]:
        files = {name: file for written, _ in everything for name, file in written.items()}
        agreed = [_seal(snapshot, files)]
    dist.broadcast_object_list(agreed, src=0)
    if agreed[0]:
        if dist.get_rank() == 0:
            shutil.rmtree(snapshot.partial, ignore_errors=True)
        raise UserError(
            f"{'; '.join(agreed[0])}. No checkpoint was written at {snapshot.final.name}; earlier ones are "
            "unharmed. Fix this and rerun the same command"
        )


def _seal(snapshot: Snapshot, files: dict[str, Any]) -> list[str]:
    """Give the folder its manifest and its name. Returns what went wrong, if anything did."""
    partial, final = snapshot.partial, snapshot.final
    # Other nodes wrote to the same disk, or did they? Older checkpoints are deleted after this one is in place.
    for name, file in files.items():
        if odd := odd_size(partial / name, file["size"]):
            return [f"{odd} in {partial}: run.folder must be on a disk that all nodes share"]
    manifest = json.dumps({"format": FORMAT, "files": files}, indent=1)
    try:
        write_file(partial / MANIFEST, lambda path: path.write_text(manifest))
        whole_files.sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        whole_files.sync(final.parent)
    except OSError as error:
        return [_explain(error, final.parent)]
    return []


def _shards(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """What this rank writes, by file name, in host memory."""
    rank = dist.get_rank()
    world = dist.get_world_size()
    weights = {}
    moments = {}
    for i, (name, parts) in enumerate(canonical.export(engine.deepspeed)):
        if i % world == rank:
            weights[name] = parts["weight"].cpu().clone()
            moments |= {f"{name}.{m}": parts[m].cpu().clone() for m in parts if m != "weight"}
    suffix = f"{rank:05d}.safetensors"
    shards = {
        f"weights-{suffix}": weights,
        f"optimizer-{suffix}": moments,
        f"random-{suffix}": randomness.states(),
    }
    states = lanes.collect(engine)
    if groups.tensor_rank() == 0:
        shards[f"lanes-{groups.data_rank():05d}.safetensors"] = states
    return {name: tensors for name, tensors in shards.items() if tensors}


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file and fsync it. Raises OSError, also where safetensors has an error of its own.

    It gets the permissions of any new file (the umask's); safetensors makes its files for their owner's eyes only.
    """
    with open(path, "wb") as f:
        mode = stat.S_IMODE(os.fstat(f.fileno()).st_mode)
    try:
        write(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    with open(path, "rb") as f:
        if stat.S_IMODE(os.fstat(f.fileno()).st_mode) != mode:
            os.fchmod(f.fileno(), mode)
        os.fsync(f.fileno())


def _explain(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {folder} is full"
    return f"{folder} cannot be written: {error}"
