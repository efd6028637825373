"""The weights of a local Hugging Face folder, by name, read one at a time."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infty.access import unreadable
from infty.errors import UserError
from infty.files import read_json

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
POINTER = b"version https://git-lfs"
AGAIN = "download the folder again"


class Tensors(Protocol):
    """Tensors by name."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> Tensor:
        """As it is stored."""
        ...


class SafetensorsFiles:
    """Of one or several safetensors files. Each tensor opens its file anew, so that nothing that was read stays
    mapped."""

    def __init__(self, files: list[Path]) -> None:
        """Raises UserError for a file that is not whole."""
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with _opened(path) as f:
                for name in f.keys():  # noqa: SIM118 - not a dict
                    self._where[name] = path
                    self._shapes[name] = tuple(f.get_slice(name).get_shape())

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def get(self, name: str) -> Tensor:
        with _opened(self._where[name]) as f:
            return f.get_tensor(name)


class StateDict:
    """Of tensors that lie in memory, or that are mapped into it."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def get(self, name: str) -> Tensor:
        return self._tensors[name]


def open_tensors(folder: Path) -> Tensors:
    """The weights that lie in a folder, safetensors before `.bin`. Raises UserError where any of them is missing."""
    for name, reading in ((SAFETENSORS, SafetensorsFiles), (BIN, _pickled)):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return reading(_shards(index))
        if (folder / name).is_file():
            return reading([folder / name])
    parts = sorted(p.name for p in folder.glob("*.safetensors"))
    parts += sorted(p.name for p in folder.glob("*.incomplete"))
    hint = f" (it holds {', '.join(parts[:3])}, but no index: {AGAIN})" if parts else ""
    raise UserError(
        f"{folder} holds no weights: {SAFETENSORS}, {BIN}, one of them with .index.json, or a "
        f".gguf{hint}"
    )


def _shards(index: Path) -> list[Path]:
    try:
        files = sorted(set(read_json(index)["weight_map"].values()))
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({error}): {AGAIN}") from error
    if any(Path(name).name != name for name in files):
        raise UserError(f"{index} names files outside of its folder: {AGAIN}")
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent} is not whole: {', '.join(missing[:3])} of {len(files)} weight files "
            f"{'is' if len(missing) == 1 else 'are'} missing, {AGAIN}"
        )
    return [index.parent / name for name in files]


def _opened(path: Path) -> Any:
    _refuse_pointer(path)
    try:
        return safe_open(path, "pt")
    except (SafetensorError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{path} is damaged or incomplete ({problem}): {AGAIN}") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _pickled(files: list[Path]) -> StateDict:
    tensors: dict[str, Any] = {}
    for path in files:
        _refuse_pointer(path)
        with open(path, "rb") as f:
            archive = (
                f.read(2) == b"PK"
            )  # files of the years before were none, and cannot be mapped
        try:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds something other than weights; it was not loaded, since that could run "
                "code: give safetensors"
            ) from error
        except (RuntimeError, ValueError, EOFError) as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(f"{path} is damaged or incomplete ({problem}): {AGAIN}") from error
        except OSError as error:
            raise unreadable(path, error) from error
        if not isinstance(found, dict):
            raise UserError(f"{path} holds no weights by name")
        tensors |= found
    odd = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{files[0]} holds {odd[0]!r}, which is not a tensor")
    return StateDict(tensors)


def _refuse_pointer(path: Path) -> None:
    """A repository that was cloned without its large files has a line of text in the place of each."""
    try:
        with open(path, "rb") as f:
            start = f.read(len(POINTER))
    except OSError as error:
        raise unreadable(path, error) from error
    if start == POINTER:
        raise UserError(
            f"{path} is only a pointer to the weights (git LFS): run git lfs pull in {path.parent}"
        )
