"""Making the checkpoint: checked by name and shape, then written a layer at a time, aside, and renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from infty import files
from infty.config import ModelConfig
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from infty.memory_kinds import memory_of
from infty.models.outline import outline
from infty.parallel import groups
from infty_pretrain import checkpoint as checkpoints
from infty_pretrain import config as configs
from infty_pretrain.checkpoint.format import digest
from infty_pretrain.checkpoint.writing import write_file
from infty_pretrain.config import BatchConfig, Config
from infty_pretrain.origin import ORIGINAL
from infty_tools.adapt.families import Parts
from infty_tools.adapt.original import Original

FREE = (
    "segment_length",
    "stm_length",
    "stm_layers",
    "sinks",
    "dropout",
    "init_std",
    "vocab_multiple",
    "memory",
    "memories",
)
"""Keys of `model:` that are the user's to choose; the others are the original's."""
MANY = 2**16
"""Segments of a window, as long as it is not known how many the memory needs to learn from."""
KINDS: dict[str, dict[str, Any]] = {
    "continuation": {"kind": "continuation"},
    "associative": {"kind": "associative"},
    "continuous": {"kind": "continuous", "output_gate": True},
}
"""What `--memory` means. Each of them is silent until it is trained."""


class Adapter:
    """One original with its memory, checked and ready to be written."""

    def __init__(
        self,
        path: Path,
        memory: str | None = None,
        changes: list[str] | None = None,
        end_token: str | None = None,
        seed: int = 1,
    ) -> None:
        """`changes` are written as those of `infty pretrain`, such as model.stm_length=256. Raises UserError."""
        self.original = Original(path)
        self.end_token, self.seed = end_token, seed
        self.config = self._config(memory, changes or [])
        self.model: ModelConfig = self.config.model
        self._check_window()
        self.files = list(self._recipes())
        self._check_tensors()

    def _config(self, memory: str | None, changes: list[str]) -> Config:
        for change in changes:
            key = change.partition("=")[0].strip()
            section, _, name = key.partition(".")
            if section != "model" or name.split(".")[0] not in FREE:
                raise UserError(
                    f"{key} cannot be set here: the original decides it; you can set "
                    f"{', '.join(f'model.{name}' for name in FREE)}"
                )
        shape = self.original.family.shape(self.original.config)
        if memory is None or memory == "none":
            chosen = None
        elif memory in KINDS:
            chosen = dict(KINDS[memory])
        else:
            raise UserError(f"--memory {memory}: choose one of none, {', '.join(KINDS)}")
        values = {
            "run": {"folder": "adapted", "steps": 1},
            "batch": {"window_segments": MANY},
            "model": shape | {"memory": chosen},
        }
        configs.change(values, changes)
        config = configs.from_dict(values, "the adapted model")
        needed = config.model.stm_length // config.model.segment_length + 2
        return replace(config, batch=BatchConfig(window_segments=max(needed, 4)))

    def _check_window(self) -> None:
        """The local window must be one that the original knows."""
        known = self.original.config.max_position_embeddings
        window = self.model.stm_length + self.model.segment_length
        if window > known:
            raise UserError(
                f"model.segment_length {self.model.segment_length} + model.stm_length "
                f"{self.model.stm_length} is more than the {known} positions that the original knows"
            )

    def _recipes(self) -> Iterator[Parts]:
        """What each file of weights holds: what is before the layers, each layer, what is behind them."""
        before, behind = self.original.family.ends(self.model)
        yield before
        for i in range(self.model.layers):
            yield self.original.family.layer(self.model, i)
        yield behind

    def _check_tensors(self) -> None:
        """Refuse an original that lacks a tensor, has one too many, or one of another shape, before any is read."""
        tensors, folder = self.original.tensors, self.original.folder
        there = set(tensors.names())
        parts = {target: part for recipe in self.files for target, part in recipe.items()}
        missing = sorted({s for part in parts.values() for s in part.sources} - there)
        if missing:
            raise UserError(
                f"{folder} is not whole: it lacks {len(missing)} weights, such as {missing[0]}"
            )
        over = there - {s for part in parts.values() for s in part.sources}
        if self.model.tie_embeddings and "lm_head.weight" in over:
            over.remove("lm_head.weight")
            self._check_tied()
        if over:
            raise UserError(
                f"{folder} cannot be adapted: it has {len(over)} weights that a {self.original.kind} "
                f"with this config does not have, such as {min(over)}"
            )
        expected = {
            p.name: p.shape for p in outline(self.model).parameters if ".memories." not in p.name
        }
        for target, part in parts.items():
            shapes = [tensors.shape(s) for s in part.sources]
            if _shape_of(part.make, shapes) != expected.get(target):
                raise UserError(
                    f"{folder} does not fit its own config.json: {', '.join(part.sources)} of shape "
                    f"{', '.join(str(list(s)) for s in shapes)} cannot become {target} "
                    f"{list(expected.get(target, ()))}"
                )
        left = sorted(expected.keys() - parts.keys())
        if left:
            raise AssertionError(f"no recipe for {left[0]}")  # a fault of this program

    def _check_tied(self) -> None:
        """A head that is stored beside tied embeddings must be these."""
        embedding = self.original.family.ends(self.model)[0]["embedding.weight"].sources[0]
        head = self.original.tensors.get("lm_head.weight")
        if not torch.equal(head, self.original.tensors.get(embedding)):
            raise UserError(
                f"{self.original.folder} cannot be adapted: its config says tie_word_embeddings, but "
                f"lm_head.weight is not {embedding}"
            )

    @property
    def audible(self) -> list[str]:
        """Names of the memories that change what the model says before they are trained."""
        return [name for name, section in self.model.sections().items() if not section.silent]

    def write(self, output: Path, tell: Callable[[str], None] = lambda text: None) -> int:
        """Make `output`: whole or not at all. Returns its size in bytes. Raises UserError."""
        check_free(output)
        self._check_space(output)
        with files.whole_folder(output) as partial:
            self._fill(partial, output, tell)
        return sum(p.stat().st_size for p in output.rglob("*") if p.is_file())

    def _check_space(self, output: Path) -> None:
        above = next(p for p in output.absolute().parents if p.exists())
        needed = sum(4 * p.size for p in outline(self.model).parameters)
        free = shutil.disk_usage(above).free
        if needed > free:
            raise UserError(
                f"the disk that holds {above} is full: the checkpoint takes {needed / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free"
            )

    def _fill(self, folder: Path, output: Path, tell: Callable[[str], None]) -> None:
        tell("copying the tokenizer")
        self.original.copy_files(folder / ORIGINAL)
        tokenizer = Tokenizer.load(folder / ORIGINAL, self.end_token)
        if tokenizer.vocab_size > self.model.vocab_size:
            raise UserError(
                f"the tokenizer of {self.original.folder} does not fit its embedding: it has "
                f"{tokenizer.vocab_size:,} tokens, the embedding {self.model.vocab_size:,} rows"
            )
        for i, recipe in enumerate(self.files):
            tell(f"writing weights, file {i + 1} of {len(self.files)}")
            self._write_weights(recipe, i - 1, folder / f"weights-{i:05d}.safetensors")
        run = {
            "step": 0,
            "tokens": 0,
            "format": checkpoints.FORMAT,
            "tokenizer": str(output.resolve() / ORIGINAL),
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "adapted": {
                "model_type": self.original.kind,
                "name": self.original.folder.resolve().name,
            },
        }
        if self.end_token is not None:
            run["end_token"] = self.end_token
        files.write_json(folder / checkpoints.RUN, run)
        files.write_whole(folder / checkpoints.CONFIG, self.config.to_yaml())
        written = sorted(p for p in folder.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(folder)): digest(p) for p in written}
        files.write_json(
            folder / checkpoints.MANIFEST, {"format": checkpoints.FORMAT, "files": manifest}
        )

    def _write_weights(self, recipe: Parts, layer: int, path: Path) -> None:
        """One file; its tensors are gone before those of the next are made. Raises OSError."""
        made = self._made(recipe, layer)
        write_file(path, lambda path: save_file(made, path))

    def _made(self, recipe: Parts, layer: int) -> dict[str, Tensor]:
        """A file's parameters, float32: made of the original's; and those of a layer's memories, fresh."""
        out = {}
        for target, part in recipe.items():
            sources = [self.original.tensors.get(name) for name in part.sources]
            if not all(x.is_floating_point() for x in sources):
                raise UserError(
                    f"{self.original.folder} cannot be adapted: {part.sources[0]} holds "
                    f"{sources[0].dtype}, not plain numbers; is it quantised?"
                )
            out[target] = part.make(*sources).float().contiguous()
        if 0 <= layer < self.model.layers:
            out |= self._memories(layer)
        return out

    @torch.no_grad()
    def _memories(self, layer: int) -> dict[str, Tensor]:
        """What a fresh model of this seed has in a layer's memories."""
        torch.manual_seed(self.seed)
        out = {}
        with groups.alone():
            for name, section in self.model.memories_of(layer).items():
                memory = memory_of(section)(self.model, layer, name)
                for parameter, value in memory.named_parameters():
                    key = f"blocks.{layer}.memories.{name}.{parameter}"
                    out[key] = value.detach().clone().contiguous()
        return out


def check_free(output: Path) -> None:
    """Raise UserError unless `output` is free: absent, or an empty folder."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() or output.is_symlink():
        raise UserError(f"{output} exists; leaving it alone. Name another --output")


def _shape_of(make: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """What `make` would make of tensors of these shapes; None where it cannot."""
    try:
        return tuple(make(*(torch.empty(s, device="meta") for s in shapes)).shape)
    except (RuntimeError, ValueError, IndexError):
        return None


def describe(adapter: Adapter, size: int) -> str:
    """What was made, in words."""
    model = adapter.model
    kinds = {name: section.kind for name, section in model.sections().items()}
    memories = json.dumps(kinds).strip("{}").replace('"', "") or "none"
    return (
        f"{adapter.original.kind}, {model.layers} layers, hidden {model.hidden_size}, "
        f"{size / 1e9:.2f} GB; local window {model.stm_length + model.segment_length} tokens "
        f"(segment {model.segment_length}, short-term memory {model.stm_length}); memories: {memories}"
    )
