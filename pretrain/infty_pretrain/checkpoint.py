"""Checkpoints that are whole or absent, and that any layout can read.

    step-00000500/
      manifest.json             sizes and sha256 of every file; written last
      run.json                  step, reading of the lanes, layout, fingerprints
      config.yaml               the resolved config
      weights-*.safetensors     whole float32 parameters, shared out over the ranks that wrote them
      optimizer-*.safetensors   `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`
      lanes-*.safetensors       memories, one file a data-parallel rank; rows are lanes, whole over tensor parallelism
      random-*.safetensors      random streams, one file a rank

A checkpoint is written to a folder of another name, flushed to disk, given its manifest and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infty import files as whole_files
from infty.access import unreadable
from infty.errors import UserError
from infty.parallel import groups, randomness
from infty.tree import Tree
from infty_pretrain import canonical
from infty_pretrain import config as configs
from infty_pretrain.engine import Engine, shape_of

FORMAT = 2
MANIFEST, RUN, CONFIG = "manifest.json", "run.json", "config.yaml"
PARTIAL, DAMAGED = ".partial", ".damaged"
EPHEMERAL = "ephemeral"
"""In RUN: whether the checkpoint is kept only until the next one."""


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
        return self.final.with_name(self.final.name + PARTIAL)


def collect(engine: Engine, folder: Path, run: dict[str, Any]) -> Snapshot:
    """Copy what makes the checkpoint of step `run["step"]` to host memory. A collective."""
    snapshot = Snapshot(folder / f"step-{run['step']:08d}", _collect(engine), {})
    if dist.get_rank() == 0:
        run = run | {
            "format": FORMAT,
            "layout": _layout(),
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
            _write(snapshot.partial / name, lambda path, t=tensors: save_file(t, path))
        for name, text in snapshot.texts.items():
            _write(snapshot.partial / name, lambda path, t=text: path.write_text(t))
        return {
            name: _digest(snapshot.partial / name) for name in (*snapshot.shards, *snapshot.texts)
        }, None
    except OSError as error:
        return {}, _explain(error, snapshot.final.parent)


def publish(snapshot: Snapshot, digests: dict[str, Any], problem: str | None) -> None:
    """Agree that every rank has written, add the manifest, rename. A collective.

    Raises UserError on every rank, and leaves nothing behind, when a rank could not write (a full disk).
    """
    partial, final = snapshot.partial, snapshot.final
    everything: list = [None] * dist.get_world_size()
    dist.all_gather_object(everything, (digests, problem))
    problems = sorted({p for _, p in everything if p})
    if not problems and dist.get_rank() == 0:
        files = {k: v for d, _ in everything for k, v in d.items()}
        # Other nodes wrote to the same disk, or did they? Older checkpoints are deleted after this one is in place.
        odd = [
            problem
            for name, f in files.items()
            if (problem := _odd_size(partial / name, f["size"]))
        ]
        problems = [
            f"{problem} in {partial}: run.folder must be on a disk that all nodes share"
            for problem in odd[:1]
        ]
    if not problems and dist.get_rank() == 0:
        try:
            _write(
                partial / MANIFEST,
                lambda path: path.write_text(
                    json.dumps({"format": FORMAT, "files": files}, indent=1)
                ),
            )
            whole_files.sync(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            whole_files.sync(final.parent)
        except OSError as error:
            problems = [_explain(error, final.parent)]
    agreed = [problems]
    dist.broadcast_object_list(agreed, src=0)
    if agreed[0]:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{'; '.join(agreed[0])}. No checkpoint was written at {final.name}; earlier ones are "
            "unharmed. Fix this and rerun the same command"
        )


def _collect(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """What this rank writes, by file name, in host memory."""
    rank, world = dist.get_rank(), dist.get_world_size()
    weights, moments = {}, {}
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
    lanes = _whole_lanes(engine)
    if groups.tensor_rank() == 0:
        shards[f"lanes-{groups.data_rank():05d}.safetensors"] = lanes
    return {name: tensors for name, tensors in shards.items() if tensors}


def _whole_lanes(engine: Engine) -> dict[str, Tensor]:
    """This rank's lanes with the heads of all tensor-parallel ranks, and the lanes' ids."""
    whole = {"id": torch.tensor(list(engine.lanes))}
    fields = engine.model.fields().named()
    for name, tensor in engine.lane_state().named().items():
        if groups.tensor_size() > 1 and fields[name].split:
            parts = [torch.empty_like(tensor) for _ in range(groups.tensor_size())]
            dist.all_gather(parts, tensor.contiguous(), group=groups.tensor_group())
            tensor = torch.cat(parts, 1)
        whole[name] = tensor.cpu().contiguous().clone()
    return whole


def _layout() -> dict[str, int]:
    return {"tensor": groups.tensor_size(), "data": groups.data_size()}


def _write(path: Path, write: Callable[[Path], Any]) -> None:
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


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as f:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(f, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(f.read()).hexdigest(),
        }


def _explain(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk that holds {folder} is full"
    return f"{folder} cannot be written: {error}"


def problem_with(folder: Path, rank: int = 0, world: int = 1) -> str | None:
    """Why a checkpoint folder is damaged: a file is missing, short or not as the manifest says; None when it is whole.

    Of `world` ranks that ask, each reads its share of the files. Raises UserError where that cannot be known: a file
    cannot be read, or another version of infty wrote it.
    """
    if (folder / MANIFEST).is_fifo():
        return f"its {MANIFEST} is no file"
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        raise unreadable(folder / MANIFEST, error) from error
    return _contradiction(folder, manifest, rank, world)


def _contradiction(folder: Path, text: bytes, rank: int, world: int) -> str | None:
    """What in a folder is not as the `text` of its manifest says."""
    try:
        manifest = whole_files.parse_json(text)
        version = manifest["format"]
        files = {
            str(name): (int(f["size"]), str(f["sha256"])) for name, f in manifest["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    if version != FORMAT:
        raise UserError(
            f"{folder} has the format {version}, this version of infty reads {FORMAT}: continue with the "
            "version that wrote it, or give another run.folder; nothing was changed"
        )
    if RUN not in files:
        return f"its {MANIFEST} is damaged"
    for name, (size, _) in files.items():
        if odd := _odd_size(folder / name, size):
            return odd
    for name in sorted(files)[rank::world]:
        try:
            found = _digest(folder / name)["sha256"]
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            raise unreadable(folder / name, error) from error
        if found != files[name][1]:
            return f"{name} is damaged: its sha256 is not the one in the manifest"
    return None


def _odd_size(path: Path, size: int) -> str | None:
    """Whether a file is not there, or not of its size."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"{path.name} is missing"
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):  # a pipe, for one, would be waited for without end
        return f"{path.name} is no file"
    found = status.st_size
    return None if found == size else f"{path.name} has {found} bytes instead of {size}"


def candidates(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first, whether whole or not. Raises UserError when `folder` cannot be read: that
    is not the same as an empty one."""
    try:
        with os.scandir(folder) as entries:
            found = [
                folder / e.name
                for e in entries
                if re.fullmatch(r"step-\d{8,}", e.name) and e.is_dir()
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def newest_valid(folder: Path, tell: Callable[[str], None] = print) -> Path | None:
    """The newest whole checkpoint in a run's checkpoint folder; says what it skips and why. Raises UserError when a
    newer one cannot be read."""
    for path in candidates(folder):
        problem = problem_with(path)
        if problem is None:
            return path
        tell(f"skipping checkpoint {path.name}: {problem}")
    return None


def set_aside(folder: Path, chosen: Path | None, tell: Callable[[str], None] = print) -> None:
    """Rename the damaged checkpoints that are newer than the one a run goes on from, so that they do not count as its
    newest. Raises UserError when none is whole: starting again from nothing is for a person to decide."""
    newer = [p for p in candidates(folder) if chosen is None or _step_of(p) > _step_of(chosen)]
    if chosen is None and newer:
        raise UserError(
            f"{folder} holds {len(newer)} checkpoint(s), but none is whole (see above). To start from the "
            f"beginning, move {folder} away or give another run.folder"
        )
    for path in newer:
        aside = path.with_name(path.name + DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        tell(f"renamed {path.name} to {aside.name}")


def prune(
    folder: Path, keep_last: int, keep_every: int | None, tell: Callable[[str], None] = print
) -> None:
    """Delete all but the newest checkpoint, the newest `keep_last` of those that are not ephemeral, and those at
    multiples of `keep_every` steps. Says which may not be deleted."""
    found = candidates(folder)
    lasting = [p for p in found if not _ephemeral(p)]
    kept = {
        *found[:1],
        *lasting[:keep_last],
        *(p for p in lasting if keep_every and _step_of(p) % keep_every == 0),
    }
    for path in (p for p in found if p not in kept):
        doomed = path.with_name(path.name + PARTIAL)  # first it stops looking like a checkpoint
        try:
            path.rename(doomed)
        except OSError as error:
            tell(f"{path.name} stays, though it is no longer needed: {error.strerror or error}")
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def _ephemeral(path: Path) -> bool:
    try:
        return bool(json.loads((path / RUN).read_text()).get(EPHEMERAL))
    except (OSError, ValueError, AttributeError):  # damaged: it counts like any other
        return False


class Reader:
    """Reads a checkpoint's tensors by name, whichever file holds them. Nothing is unpickled.

    Raises UserError for a file that is as the manifest says and still cannot be read: someone edited both.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: dict[str, Any] = _read_run(folder / RUN)
        self._files = {
            kind: [_opened(p) for p in sorted(folder.glob(f"{kind}-*.safetensors"))]
            for kind in ("weights", "optimizer", "lanes")
        }
        self._where = {
            (kind, key): f
            for kind in ("weights", "optimizer")
            for f in self._files[kind]
            for key in f.keys()  # noqa: SIM118 - not a dict
        }

    def names(self) -> list[str]:
        """The parameters."""
        return sorted(key for kind, key in self._where if kind == "weights")

    def parameter(self, name: str, part: str = "weight") -> Tensor:
        """One whole parameter, or its `exp_avg` or `exp_avg_sq`, float32."""
        key = ("weights", name) if part == "weight" else ("optimizer", f"{name}.{part}")
        return self._where[key].get_tensor(key[1])

    def shape(self, name: str) -> list[int]:
        return self._where["weights", name].get_slice(name).get_shape()

    def lanes(self) -> dict[int, Callable[[str], Tensor]]:
        """For every lane id, a function from a state tensor's name to its row."""
        rows = {}
        for f in self._files["lanes"]:
            for row, lane in enumerate(f.get_tensor("id").tolist()):
                rows[lane] = lambda name, f=f, row=row: f.get_slice(name)[row : row + 1]
        return rows

    def everything(self) -> dict[str, Tensor]:
        """All but the random streams, to compare checkpoints: `<parameter>/weight`, `<parameter>/exp_avg`,
        `<parameter>/exp_avg_sq`, `lane <id>/<name>`."""
        out = {
            f"{name}/{part}": self.parameter(name, part)
            for name in self.names()
            for part in ("weight", *canonical.MOMENTS)
        }
        names = {key for f in self._files["lanes"] for key in f.keys()} - {"id"}  # noqa: SIM118
        return out | {
            f"lane {lane}/{name}": row(name)
            for lane, row in self.lanes().items()
            for name in sorted(names)
        }

    def random(self, rank: int) -> dict[str, Tensor]:
        path = self.folder / f"random-{rank:05d}.safetensors"
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118


_RUN_TYPES = {"step": int, "tokens": int, "tokenizer": str, "tokenizer_fingerprint": str}


def _read_run(path: Path) -> dict[str, Any]:
    """RUN with the entries that every reader of a checkpoint needs. Raises UserError."""
    try:
        run = whole_files.read_json(path)
    except ValueError as error:
        raise _edited(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not isinstance(run, dict):
        raise _edited(path, "it is no object")
    for name, kind in _RUN_TYPES.items():
        if not isinstance(run.get(name), kind) or isinstance(run[name], bool):
            raise _edited(path, f"{name} is {run.get(name)!r}")
    return run


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, ValueError) as error:
        raise _edited(path, str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _edited(path: Path, problem: str) -> UserError:
    problem = " ".join(problem.split())
    return UserError(
        f"{path} cannot be used ({problem}), though it is as {MANIFEST} says: was it edited? Take another "
        "checkpoint"
    )


def load(engine: Engine, folder: Path, kept_lanes: list[int]) -> Reader:
    """Put a checkpoint into the engine: weights, moments, memories of `kept_lanes`, random streams.

    Raises UserError when it is a checkpoint of a different model.
    """
    reader = Reader(folder)
    _check_model(engine, reader)
    canonical.load(engine.deepspeed, reader.parameter, reader.run["optimizer_step"])
    if engine.config.checkpoint.memory == "save":
        engine.set_lane_state(_restored_lanes(engine, reader, set(kept_lanes)))
    if reader.run["layout"] == _layout():
        randomness.restore(reader.random(dist.get_rank()))
    else:
        randomness.seed(engine.config.run.seed + 7919 * reader.run["step"])
    return reader


# May differ between a checkpoint and the run that goes on from it: what they change is not what the weights mean.
_FREE = re.compile(
    r"model\.(dropout|init_std"
    r"|(memory|memories\.\w+)\.(backprop|kl_weight|kl_sigma|precision|reconstruction_weight)): "
)


def _check_model(engine: Engine, reader: Reader) -> None:
    check_shapes(engine.model, reader)
    changes = [
        c
        for c in configs.differences(configs.load(reader.folder / CONFIG), engine.config)
        if c.startswith("model.") and not _FREE.match(c)
    ]
    if changes:
        raise UserError(
            f"{reader.folder} is a checkpoint of a different model: {'; '.join(changes)}. Use the config "
            f"it was made with ({reader.folder / CONFIG}) or another run.folder"
        )


def check_shapes(model: torch.nn.Module, reader: Reader) -> None:
    """Raise UserError unless a checkpoint holds the parameters of this rank's `model`."""
    expected = {}
    for name, p in model.named_parameters():
        shape = list(shape_of(p))
        if getattr(p, "tensor_model_parallel", False):
            shape[p.partition_dim] *= groups.tensor_size()
        expected[name] = shape
    saved = {name: list(reader.shape(name)) for name in reader.names()}
    if saved != expected:
        odd = next(
            n for n in sorted(saved.keys() | expected.keys()) if saved.get(n) != expected.get(n)
        )
        raise UserError(
            f"{reader.folder} is a checkpoint of a different model: {odd} has shape {saved.get(odd)} "
            f"there, {expected.get(odd)} in this config. Use the config it was made with "
            f"({reader.folder / CONFIG}) or another run.folder"
        )


def _restored_lanes(engine: Engine, reader: Reader, kept: set[int]) -> Tree:
    """The states of this rank's lanes: from the checkpoint where it has them, empty otherwise."""
    fresh, saved = engine.lane_state(), reader.lanes()
    fields = engine.model.fields().named()
    tensors = {}
    for name, default in fresh.named().items():
        rows = []
        for i, lane in enumerate(engine.lanes):
            if lane in kept and lane in saved:
                row = saved[lane](name)
                if fields[name].split:
                    row = row.chunk(groups.tensor_size(), 1)[groups.tensor_rank()]
                rows.append(row.to(default.dtype).to(default.device))
            else:
                rows.append(default[i : i + 1])
        tensors[name] = torch.cat(rows)
    return fresh.from_named(tensors)
