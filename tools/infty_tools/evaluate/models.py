"""What can be evaluated: a run or a checkpoint, an exported folder, a folder of another causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from infty.data.documents import Documents
from infty.errors import UserError
from infty.files import read_json
from infty_pretrain.evaluation import Reads
from infty_pretrain.evaluator import CheckpointModel

CONFIG = "config.json"


class Opened(Protocol):
    """A model that was found and fits the documents, and is not loaded yet."""

    description: str
    remembers: bool
    tensor: int
    window: int | None
    """Tokens that it sees at once, where that may be chosen."""

    def load(self, device: str) -> Reads:
        """The model, ready to read."""


def check_paths(paths: Sequence[Path]) -> None:
    """Raise UserError for a path that does not exist."""
    for path in paths:
        if not path.exists():
            raise UserError(
                f"{path} does not exist: give a run's folder, a checkpoint, an export or a folder with a Hugging Face "
                "model"
            )


def open_models(
    paths: Sequence[Path], documents: Documents, window: int | None, stride: int | None
) -> list[Opened]:
    """All of them, or none. Raises UserError for the first that cannot be evaluated on the documents."""
    opened = [_open(path, documents, window, stride) for path in paths]
    fixed = all(model.window is None for model in opened)
    for option, value in (("--window", window), ("--stride", stride)):
        if value is not None and fixed:
            raise UserError(
                f"{option} {value}: none of the models has a window to choose; it is for Hugging Face models that "
                "were not trained by infty"
            )
    return opened


def _open(path: Path, documents: Documents, window: int | None, stride: int | None) -> Opened:
    if not (path / CONFIG).is_file():
        return CheckpointModel(path, documents)
    kind = _model_type(path / CONFIG)
    if kind == "infty":
        from infty_tools.evaluate.exported import ExportedModel

        return ExportedModel(path, documents)
    from infty_tools.evaluate.windowed import WindowedModel

    return WindowedModel(path, documents, window, stride)


def _model_type(path: Path) -> Any:
    try:
        return read_json(path).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): it names no model") from error
