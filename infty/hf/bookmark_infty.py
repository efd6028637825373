"""Bookmarks: what a model has read, in one safetensors file that only the same model opens."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from infty import files
from infty.errors import UserError
from infty.hf.configuration_infty import InftyConfig
from infty.hf.state_infty import InftyLayerState, PartState
from infty.tree import Tree

FORMAT = "infty bookmark 1"
WORDS = 512
"""Of 8 bytes, which go into a digest as their sum."""
# What a config says that does not change how a text is read.
ELSEWHERE = {"dropout", "initializer_range", "use_cache"}
ELSEWHERE |= {"bos_token_id", "eos_token_id", "pad_token_id"}
AGAIN = "read the text again with this model"


@dataclass(frozen=True)
class TextRead:
    """A text that a cache has read, as its caller noted it."""

    name: str
    sha256: str
    """Of the text in UTF-8."""
    tokens: int

    @classmethod
    def of(cls, name: str, text: str, tokens: int) -> TextRead:
        return cls(name, hashlib.sha256(text.encode()).hexdigest(), tokens)


@dataclass(frozen=True)
class Bookmark:
    """What a file holds: the fields of an `InftyCache`."""

    states: tuple[InftyLayerState, ...]
    fill: Tensor
    segments: Tensor
    tokens: int
    texts: tuple[TextRead, ...]


def write(path: Path, model: nn.Module, bookmark: Bookmark) -> None:
    """Write a bookmark aside and rename it. `model` is the one that has read. Raises ValueError, or OSError."""
    reader = infty_model(model)
    tensors = {"fill": bookmark.fill, "segments": bookmark.segments}
    for i, state in enumerate(bookmark.states):
        for name, part in _parts(state).items():
            # What was made of `kept` is made again.
            for kind, tree in (("kept", part.kept), ("segment", part.segment)):
                tensors |= tree.named(f"layers.{i}.{name}.{kind}.")
    tensors = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    told = {
        "format": FORMAT,
        "config": json.dumps(_config(reader)),
        "dtype": _dtype(reader),
        "weights": weights_digest(reader),
        "tokens": str(bookmark.tokens),
        "texts": json.dumps([asdict(text) for text in bookmark.texts]),
    }
    files.write_whole(path, save(tensors, told | {"content": _content(told, tensors)}))


def read(path: Path, model: nn.Module) -> Bookmark:
    """A bookmark of this model, on its device. Raises ValueError, which says in one sentence what does not fit."""
    reader = infty_model(model)
    told, tensors = _open(path)
    _check_model(path, told, reader)
    texts = tuple(TextRead(**text) for text in files.parse_json(told["texts"]))
    fill, segments = tensors.pop("fill"), tensors.pop("segments")
    try:
        states = _states(reader, tensors, fill)
    except UserError as error:
        raise ValueError(f"{path} does not fit this version of the model's code: {error}") from None
    return Bookmark(states, fill, segments, int(told["tokens"]), texts)


def is_bookmark(path: Path) -> bool:
    """Whether a file is a bookmark, of whatever model."""
    try:
        _open(path)
    except ValueError:
        return False
    return True


def infty_model(model: nn.Module) -> Any:
    """The transformers model itself, inside of what wraps it (an adapter, a compiler). Raises ValueError."""
    for module in model.modules():
        # By name: code that came with an export has classes of its own each time it is loaded.
        if (
            isinstance(module, PreTrainedModel)
            and module.config.model_type == InftyConfig.model_type
        ):
            return module
    raise ValueError(f"a bookmark needs an infty model, not {type(model).__name__}")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over all weights that reading depends on: of sums of every 512 words of 8 bytes, which a device makes
    as fast as it reads its memory. Any single weight that differs is noticed; it is no proof against forgery.

    Raises ValueError where weights are not in memory.
    """
    reader = infty_model(model)
    base = reader.base_model
    weights = base.state_dict(keep_vars=True)
    through_head = base.predicts or base.surprised
    if base is not reader and through_head and not reader.config.tie_word_embeddings:
        weights |= {
            f"lm_head.{name}": x for name, x in reader.lm_head.state_dict(keep_vars=True).items()
        }
    if any(x.is_meta or hasattr(x, "ds_id") for x in weights.values()):
        raise ValueError(
            "a bookmark names its model by all of its weights, and some of this one's are offloaded "
            "or sharded: load the model whole"
        )
    return _digest(weights)


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What a file says of itself, and its tensors; all as it was written. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no bookmark {path}")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            kind = told.get("format", "")
            names = file.keys() if kind == FORMAT else []
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{path} is cut short or no safetensors file ({error}): {AGAIN}"
        ) from error
    if not kind.startswith("infty bookmark"):
        raise ValueError(
            f"{path} is not a bookmark: make one with cache.save, or infty generate --save-memory"
        )
    if kind != FORMAT:
        raise ValueError(f"{path} is an '{kind}', this version reads '{FORMAT}': {AGAIN}")
    if told.get("content") != _content(told, tensors):
        raise ValueError(f"{path} is damaged: its content is not what was written; {AGAIN}")
    return told, tensors


def _content(told: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a file says of itself, this left out, and of its tensors as in `weights_digest`."""
    named = sorted((name, text) for name, text in told.items() if name != "content")
    return hashlib.sha256(f"{named} {_digest(tensors)}".encode()).hexdigest()


def _check_model(path: Path, told: Mapping[str, str], model: Any) -> None:
    """Raise ValueError unless the bookmark was written by this model; what is cheap to compare is compared first."""
    theirs, ours = files.parse_json(told["config"]), _config(model)
    odd = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
    if odd:
        raise ValueError(f"{path} is of another model ({', '.join(odd[:4])} differ): {AGAIN}")
    if told["dtype"] != _dtype(model):
        raise ValueError(
            f"{path} was read in {told['dtype']}, and this model is in {_dtype(model)}: load it with "
            f"dtype={told['dtype']}, or {AGAIN}"
        )
    if told["weights"] != weights_digest(model):
        raise ValueError(f"{path} is of a model of this shape with other weights: {AGAIN}")


def _config(model: Any) -> dict[str, Any]:
    """What of the model's config decides how a text is read."""
    names = inspect.signature(InftyConfig.__init__).parameters.keys()
    names -= ELSEWHERE | {"self", "kwargs"}
    said = {name: getattr(model.config, name) for name in sorted(names)}
    return files.parse_json(json.dumps(said))  # as a file that holds it is read


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """See `weights_digest`."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name].detach()
        found.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        raw = x.contiguous().flatten().view(torch.uint8)
        if raw.storage_offset() % 8:
            raw = raw.clone()
        end = len(raw) // (8 * WORDS) * 8 * WORDS
        sums = raw[:end].view(torch.int64).view(-1, WORDS).sum(-1)
        found.update(sums.cpu().numpy().tobytes())
        found.update(raw[end:].cpu().numpy().tobytes())
    return found.hexdigest()


def _parts(state: InftyLayerState) -> dict[str, PartState]:
    """The parts of a layer by the names that a file gives them."""
    memories = {f"memories.{name}": part for name, part in state.memories.items()}
    return {"attention": state.attention, **memories}


def _states(model: Any, tensors: dict[str, Tensor], fill: Tensor) -> tuple[InftyLayerState, ...]:
    """All layers' states. Raises UserError for tensors that the model's parts do not declare."""
    base = model.base_model
    device = base.embed_tokens.weight.device
    start = torch.zeros(len(fill), 0, model.config.hidden_size, dtype=model.dtype, device=device)
    left = {name: x.to(device) for name, x in tensors.items()}
    states = []
    for i, layer in enumerate(base.layers):
        empty = layer.begin(start)
        parts = {
            name: _part(part, _taken(left, f"layers.{i}.{name}."), fill)
            for name, part in _parts(empty).items()
        }
        memories = {name: parts[f"memories.{name}"] for name in empty.memories}
        states.append(InftyLayerState(parts["attention"], memories))
    if left:
        raise UserError(f"it has no place for {min(left)}")
    return tuple(states)


def _taken(left: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take what begins with a prefix out of a mapping, under the rest of its names."""
    found = [name for name in left if name.startswith(prefix)]
    return {name.removeprefix(prefix): left.pop(name) for name in found}


def _part(empty: PartState, tensors: dict[str, Tensor], fill: Tensor) -> PartState:
    segment = _taken(tensors, "segment.")
    kept = empty.kept.from_named(_taken(tensors, "kept."))
    kept.zip(_check_shape, empty.kept)
    held = int(fill.max())
    for name, x in segment.items():
        if x.dim() < 3 or x.shape[0] != len(fill) or x.shape[2] != held or not held:
            raise UserError(f"{name} has shape {list(x.shape)} after {held} tokens of a segment")
    return replace(empty, kept=kept, segment=Tree(segment))


def _check_shape(found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise UserError(f"a state has shape {list(found.shape)}, not {list(expected.shape)}")


__all__ = ["Bookmark", "TextRead", "infty_model", "is_bookmark", "read", "weights_digest", "write"]
