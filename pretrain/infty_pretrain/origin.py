"""`init.from`: a run that begins with the weights of a checkpoint, its own or those that `infty adapt` makes.

The model is the checkpoint's: a config need not repeat it. What it says otherwise must be something that weights do
not depend on. A memory that the checkpoint does not have, or has in another shape, begins fresh; so do low-rank updates
(`model.lora`).
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infty import files
from infty.errors import UserError
from infty_pretrain import typed

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from infty_pretrain.checkpoint import Reader
    from infty_pretrain.config import Config

MANIFEST, CONFIG = "manifest.json", "config.yaml"
ORIGINAL = "original"
"""In a checkpoint that `infty adapt` made, and in the folder of a run that began with one: the original's tokenizer,
generation config and license."""
FREE = re.compile(
    r"model\.(vocab_size|dropout|init_std|segment_length|stm_length|stm_layers|sinks|memory|memories|lora)\b"
)
"""Keys that may differ between a checkpoint and a run that begins with it."""


STRUCTURE = {"hidden_size", "layers", "heads", "kv_heads", "ffn_size", "vocab_size"}
"""Keys of `model:` that a resolved config has all of."""


def find(path: Path) -> Path:
    """The checkpoint that `init.from` names: a checkpoint's folder, or the newest of a run's. Raises UserError."""
    if (path / MANIFEST).is_file():
        return path
    steps = sorted(
        (int(p.parent.name.removeprefix("step-")), p.parent)
        for p in path.glob(f"checkpoints/step-*/{MANIFEST}")
        if re.fullmatch(r"step-\d{8,}", p.parent.name)
    )
    if steps:
        return steps[-1][1]
    what = "holds no checkpoint" if path.exists() else "does not exist"
    raise UserError(
        f"init.from: {path} {what}: name what infty adapt made, a run's folder or one of its checkpoints"
    )


def with_its_model(values: dict[str, Any]) -> dict[str, Any]:
    """A config's plain values, in which `model:` is that of the checkpoint at `init.from` wherever it is not given.

    A resolved config says everything: it can be read when the checkpoint is no longer there. Raises UserError.
    """
    begins = values.get("init") or {}
    given = values.get("model") or {}
    if not isinstance(begins, dict) or not isinstance(given, dict):
        return values  # to be refused by name with the other keys
    path = begins.get("from_")
    if path is None:
        return values
    try:
        model = its_model(find(Path(str(path))))
    except UserError:
        if given.keys() >= STRUCTURE:
            return values
        raise
    merged = model | given
    for key in ("memory", "memories"):
        merged[key] = _laid_over(model.get(key), given[key]) if key in given else model.get(key)
    return values | {"model": merged}


def its_model(checkpoint: Path) -> dict[str, Any]:
    """The `model:` of a checkpoint's config, as it was written."""
    values = typed.read_yaml_file(checkpoint / CONFIG)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise UserError(f"init.from: {checkpoint / CONFIG} holds no model")
    return values["model"]


def _laid_over(there: Any, given: Any) -> Any:
    """A memory's section with what is given; one that names its kind stands for itself."""
    both = isinstance(there, dict) and isinstance(given, dict)
    if not both or {"kind", "preset"} & given.keys():
        return given
    return there | given


def check(config: Config, checkpoint: Path, tokenizer: str) -> None:
    """Raise UserError where a run's model is not that of the checkpoint which it begins with, or its data are written
    in other tokens; `tokenizer` is the fingerprint of theirs."""
    from infty_pretrain import config as configs

    there = configs.load(checkpoint / CONFIG)
    run = _run(checkpoint)
    if run.get("tokenizer_fingerprint") != tokenizer:
        there_is = original_of(checkpoint) or run.get("tokenizer")
        raise UserError(
            f"init.from: {checkpoint} knows another tokenizer than data.train ({config.data.train}): prepare "
            f"the data with --tokenizer {shlex.quote(str(there_is))}"
        )
    odd = [
        change
        for change in configs.differences(there, config)
        if change.startswith("model.") and not FREE.match(change)
    ]
    if odd:
        raise UserError(
            f"init.from: {checkpoint} holds another model than this config: {'; '.join(odd)}. Leave these "
            "keys out: they are taken from there"
        )

    if there.model.lora is not None and config.model.lora != there.model.lora:
        raise UserError(
            f"init.from: {checkpoint} has trained low-rank updates, which would be lost under another model.lora: "
            "leave it out"
        )


def _run(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "run.json"
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"init.from: {path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def weights_for(reader: Reader, model: torch.nn.Module) -> Callable[[str], Tensor | None]:
    """A function from a parameter's name to its weight in a checkpoint; None for those of memories and low-rank updates
    which are not there in their shape. Raises UserError where anything else is missing."""
    from infty_pretrain.engine import whole_shape

    there = {name: tuple(reader.shape(name)) for name in reader.names()}
    wanted = {name: whole_shape(p) for name, p in model.named_parameters()}
    # What may begin fresh, each as a whole.
    added = re.compile(r"(.*\.memories\.[^.]+|.*\.lora)(?:\.|_[ab]$)")
    unlike = {
        found[1]
        for name in wanted
        if (found := added.match(name)) and there.get(name) != wanted[name]
    }
    for name, shape in wanted.items():
        if not added.match(name) and there.get(name) != shape:
            raise UserError(
                f"init.from: {reader.folder} holds another model than this config: {name} has shape "
                f"{list(there.get(name, ()))} there, {list(shape)} here"
            )

    def read(name: str) -> Tensor | None:
        found = added.match(name)
        return None if found and found[1] in unlike else reader.parameter(name)

    return read


def keep_original(checkpoint: Path, folder: Path) -> None:
    """Copy the files of the original beside a run's checkpoints, so that its exports have them."""
    source, target = original_of(checkpoint), folder / ORIGINAL
    if source is None or target.exists():
        return
    with files.whole_folder(target) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)


def original_of(checkpoint: Path) -> Path | None:
    """Where the files of the original are, of a checkpoint that comes from one."""
    for place in (checkpoint / ORIGINAL, checkpoint.parent.parent / ORIGINAL):
        if place.is_dir():
            return place
    return None
