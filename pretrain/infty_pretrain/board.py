"""What a run shows in TensorBoard: scalars, the memory in pictures, a first page with what matters, and its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from infty_pretrain import typed
from infty_pretrain.config import Config

FIRST_PAGE: dict[str, Any] = {
    "What matters": {
        "loss": ["Multiline", ["train/loss", "validation/nll_memory_.*"]],
        "right tokens": ["Multiline", ["validation/accuracy_memory_.*"]],
        "tokens a second": ["Multiline", ["train/tokens_per_second"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
        "faults so far": ["Multiline", ["faults/.*"]],
        "what each part adds to the stream": ["Multiline", [".*_share_of_stream/.*"]],
    },
    "Optimizer": {
        "learning rates": ["Multiline", ["lr/.*"]],
        "size of the weights": ["Multiline", ["weight_size/.*"]],
        "update ÷ weights": ["Multiline", ["update_ratio/.*"]],
    },
    "Machine": {
        "where a step's time goes": ["Multiline", ["time_share/.*"]],
        "memory, GiB": ["Multiline", ["memory_gib/.*"]],
    },
    "Reading": {
        "documents finished": ["Multiline", ["lanes/documents_finished"]],
        "place in the book and padding": ["Multiline", ["lanes/.*_share"]],
        "perplexity by position": ["Multiline", ["perplexity_by_position_memory_on/.*"]],
    },
}
"""The page of custom scalars: tags are regular expressions."""
METRICS = ("train/loss", "validation/nll_memory_on", "validation/nll_memory_off")
"""What stands beside the config under hparams."""
CELL = 6
"""Pixels of a cell of a picture."""
STRIP = 24
"""Pixels of a curve's height, shown as one row of cells."""
# Anchors of matplotlib's viridis, which need not be installed.
VIRIDIS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float
)


class Board:
    """Writes TensorBoard's files of a run."""

    def __init__(self, config: Config, first_step: int) -> None:
        """`first_step`: what earlier starts wrote of later steps is taken back; they are done again."""
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.run.folder) / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        if first_step == 0:
            self.writer.add_custom_scalars(FIRST_PAGE)
            self._config(config)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by tag."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: dict[str, Any]) -> None:
        """Pictures by tag, in the plain values of `infty_pretrain.pictures`."""
        for name, picture in pictures.items():
            self.writer.add_image(name, image(picture["values"]), step, dataformats="HWC")

    def flush(self) -> None:
        """Put everything on disk."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()

    def _config(self, config: Config) -> None:
        """The resolved config under hparams, beside what it led to."""
        from torch.utils.tensorboard.summary import hparams

        values = {key: _plain(value) for key, value in typed.flat(config.to_dict()).items()}
        for summary in hparams(values, dict.fromkeys(METRICS, 0.0)):
            self.writer.file_writer.add_summary(summary)


def image(values: list[Any]) -> np.ndarray:
    """A curve as a strip, or a heat-map: uint8 [height, width, 3]. Grey: nothing is there."""
    table = np.array(values, dtype=float)
    if table.ndim == 1:
        table = table[None]
    low = 0.0 if np.nanmin(table, initial=0.0) >= 0 else np.nanmin(table)
    high = np.nanmax(table, initial=low)
    share = (table - low) / (high - low) if high > low else np.zeros_like(table)
    anchors = np.linspace(0, 1, len(VIRIDIS))
    colors = np.stack([np.interp(share, anchors, channel) for channel in VIRIDIS.T], -1)
    colors[np.isnan(table)] = 128
    height = STRIP if len(table) == 1 else CELL
    return colors.astype(np.uint8).repeat(height, 0).repeat(CELL, 1)


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
