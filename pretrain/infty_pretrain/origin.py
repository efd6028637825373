"""`init.from`: a run that begins with the weights of a checkpoint, its own or those that `infty adapt` makes.

The model is the checkpoint's: a config need not repeat it. What it says otherwise must be something that weights do
not depend on. A memory that the checkpoint does not have, or has in another shape, begins fresh.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infty.config import ModelConfig
from infty.errors import UserError
from infty_pretrain import typed

if TYPE_CHECKING:
    from infty_pretrain.config import Config

MANIFEST, CONFIG = "manifest.json", "config.yaml"
ORIGINAL = "original"
"""In a checkpoint that `infty adapt` made, and in the folder of a run that began with one: the original's tokenizer,
generation config and license."""
FREE = re.compile(
    r"model\.(vocab_size|dropout|init_std|segment_length|stm_length|stm_layers|memory|memories)\b"
)
"""Keys that may differ between a checkpoint and a run that begins with it."""


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

    A resolved config says everything, and is left as it is, whether the checkpoint is still there or not. Raises
    UserError.
    """
    path = (values.get("init") or {}).get("from_")
    given = values.get("model") or {}
    if path is None or not isinstance(given, dict):
        return values
    if {f.name for f in dataclasses.fields(ModelConfig)} <= given.keys():
        return values
    model = its_model(find(Path(str(path))))
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


def check(config: Config, checkpoint: Path) -> None:
    """Raise UserError where a run's model is not that of the checkpoint which it begins with."""
    from infty_pretrain import config as configs

    there = configs.load(checkpoint / CONFIG)
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


def keep_original(checkpoint: Path, folder: Path) -> None:
    """Copy the files of the original beside a run's checkpoints, so that its exports have them."""
    source, target = original_of(checkpoint), folder / ORIGINAL
    if source is None or target.exists():
        return
    partial = target.with_name(f"{ORIGINAL}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def original_of(checkpoint: Path) -> Path | None:
    """Where the files of the original are, of a checkpoint that comes from one."""
    for place in (checkpoint / ORIGINAL, checkpoint.parent.parent / ORIGINAL):
        if place.is_dir():
            return place
    return None
