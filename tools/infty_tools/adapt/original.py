"""The model that is adapted: a local Hugging Face folder, or a GGUF file, that nothing is downloaded for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from infty.data.tokenizer import HUGGING_FACE, SENTENCEPIECE
from infty.errors import UserError
from infty.files import read_json
from infty_tools.adapt.families import FAMILIES, Family
from infty_tools.adapt.tensors import AGAIN, StateDict, Tensors, open_tensors

KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
)
"""Files that come along as they are: the tokenizer, how it talks, what generation begins with, the license."""


class Original:
    """One model, looked at but not read yet."""

    def __init__(self, path: Path) -> None:
        """Raises UserError for what is no model, or none of a family that infty knows."""
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.gguf = _gguf_file(path)
        self.folder = path if self.gguf is None else self.gguf.parent
        self.config = self._config()
        self.kind: str = self.config.model_type
        if self.kind not in FAMILIES:
            raise UserError(
                f"{path} is a model of the family '{self.kind}', which infty cannot adapt: it knows "
                f"{', '.join(FAMILIES)}"
            )
        self.family: Family = FAMILIES[self.kind]
        self.tensors = self._tensors()

    def _config(self) -> Any:
        if self.gguf is not None:
            return _gguf(self.gguf, AutoConfig.from_pretrained)
        path = self.folder / "config.json"
        if not path.is_file():
            raise UserError(f"{self.folder} is not a Hugging Face model: it has no config.json")
        try:
            values = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): {AGAIN}") from error
        kind = values.get("model_type") if isinstance(values, dict) else None
        if not isinstance(kind, str):
            raise UserError(
                f"{path} names no model_type: {self.folder} is not a Hugging Face model"
            )
        for key, why in (
            (
                "auto_map",
                "brings its own code (auto_map), so that nobody can know what it computes",
            ),
            (
                "quantization_config",
                "is quantised (quantization_config): give its unquantised weights",
            ),
        ):
            if kind in FAMILIES and values.get(key):
                raise UserError(f"{self.folder} cannot be adapted: it {why}")
        if kind not in FAMILIES:
            raise UserError(
                f"{self.folder} is a model of the family '{kind}', which infty cannot adapt: it knows "
                f"{', '.join(FAMILIES)}"
            )
        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # the libraries raise what they like for what a file holds
            raise UserError(f"{path} cannot be used ({_line(error)}): {AGAIN}") from error

    def _tensors(self) -> Tensors:
        """The weights without the name of their base model, which only some files have, and without buffers."""
        if self.gguf is not None:
            model = _gguf(self.gguf, AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
            return Renamed(StateDict(dict(model.state_dict())), self.family)
        return Renamed(open_tensors(self.folder), self.family)

    def copy_files(self, folder: Path) -> None:
        """Copy what is KEPT, byte for byte. Where the tokenizer is in a GGUF, or in files that only transformers can
        read, it writes its tokenizer.json. Raises UserError where there is none."""
        folder.mkdir(parents=True)
        if self.gguf is None:
            for path in {p for pattern in KEPT for p in self.folder.glob(pattern) if p.is_file()}:
                shutil.copyfile(path, folder / path.name)
        else:
            self.config.save_pretrained(folder)
        if any((folder / name).is_file() for name in (HUGGING_FACE, SENTENCEPIECE)):
            return
        try:
            tokenizer = (
                AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
                if self.gguf is None
                else _gguf(self.gguf, AutoTokenizer.from_pretrained)
            )
            tokenizer.save_pretrained(folder)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.folder} holds no tokenizer that can be used ({HUGGING_FACE} or "
                f"{SENTENCEPIECE}): {_line(error)}"
            ) from error


class Renamed:
    """The tensors of a model by the names that they have inside its base model."""

    def __init__(self, tensors: Tensors, family: Family) -> None:
        self._tensors = tensors
        prefix = f"{family.base}."
        self._names = {
            name.removeprefix(prefix): name
            for name in tensors.names()
            if not name.endswith(family.buffers or ("\0",))
        }

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._names[name])

    def get(self, name: str) -> torch.Tensor:
        return self._tensors.get(self._names[name])


def _gguf_file(path: Path) -> Path | None:
    """The GGUF that is meant: the path itself, or the only one in a folder without config.json. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path} does not exist: name the local folder of a Hugging Face model")
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(f"{path} is a file: name the folder of a Hugging Face model, or a .gguf")
    found = sorted(path.glob("*.gguf"))
    if not found or (path / "config.json").is_file():
        return None
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:4])
        raise UserError(f"{path} holds several models ({names}): name one of the files")
    return found[0]


def _gguf(path: Path, load: Any, **options: Any) -> Any:
    try:
        return load(path.parent, gguf_file=path.name, local_files_only=True, **options)
    except ImportError as error:
        raise UserError(
            f"{path}: transformers needs two packages to read a GGUF: pip install gguf accelerate "
            f"({_line(error)})"
        ) from error
    except Exception as error:
        raise UserError(f"{path} cannot be read as a GGUF: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
