"""A checkpoint's tensors by name, whichever file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from infty import files as whole_files
from infty.access import unreadable
from infty.errors import UserError
from infty_pretrain.checkpoint.canonical import MOMENTS
from infty_pretrain.records import MANIFEST, RUN

_RUN_TYPES = {"step": int, "tokens": int, "tokenizer": str, "tokenizer_fingerprint": str}


@dataclass(frozen=True)
class LaneRow:
    """The state of one lane in the file that holds it."""

    file: Any
    row: int

    def tensor(self, name: str) -> Tensor:
        """One tensor of the state, [1, ...], whole over tensor-parallel ranks."""
        return self.file.get_slice(name)[self.row : self.row + 1]


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
        """Of one whole parameter."""
        return self._where["weights", name].get_slice(name).get_shape()

    def lanes(self) -> dict[int, LaneRow]:
        """The lanes by id."""
        rows = {}
        for f in self._files["lanes"]:
            for row, lane in enumerate(f.get_tensor("id").tolist()):
                rows[lane] = LaneRow(f, row)
        return rows

    def everything(self) -> dict[str, Tensor]:
        """All but the random streams, to compare checkpoints: `<parameter>/weight`, `<parameter>/exp_avg`,
        `<parameter>/exp_avg_sq` (not of a frozen one), `lane <id>/<name>`."""
        out = {
            f"{name}/{part}": self.parameter(name, part)
            for name in self.names()
            for part in ("weight", *MOMENTS)
            if part == "weight" or ("optimizer", f"{name}.{part}") in self._where
        }
        names = {key for f in self._files["lanes"] for key in f.keys()} - {"id"}  # noqa: SIM118
        return out | {
            f"lane {lane}/{name}": row.tensor(name)
            for lane, row in self.lanes().items()
            for name in sorted(names)
        }

    def random(self, rank: int) -> dict[str, Tensor]:
        """The random streams of a rank."""
        path = self.folder / f"random-{rank:05d}.safetensors"
        with safe_open(path, "pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118


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
