"""What `infty bench train` and `infty bench gpu` take steps of: sizes of models, and the memories they are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infty_pretrain.config import Config

Values = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A model, and what a step reads."""

    hidden: int
    layers: int
    heads: int
    segment: int
    """Tokens of a segment, and of the short-term memory."""
    vocabulary: int
    lanes: int
    segments: int
    """Of a window."""
    basis: int
    """Functions of a continuous memory."""

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.lanes * self.segments * self.segment


SIZES = {
    "tiny": Size(32, 2, 2, 8, 64, lanes=2, segments=3, basis=16),
    "demo": Size(192, 4, 4, 64, 2048, lanes=8, segments=6, basis=128),
    "512": Size(512, 8, 8, 256, 8192, lanes=2, segments=4, basis=512),
    "125m": Size(768, 12, 12, 512, 32_000, lanes=1, segments=3, basis=512),
    "350m": Size(1024, 24, 16, 512, 32_000, lanes=4, segments=4, basis=512),
    "1.3b": Size(2048, 24, 16, 512, 32_000, lanes=1, segments=4, basis=512),
}
"""`demo` is configs/demo.yaml's; `125m` has the shape of configs/pg19-125m.yaml and a window that fits one core."""

OFF = "no-memory"
PLAIN = "transformers"
"""Llama of the transformers library, of the same shape, that reads a window as one sequence."""


def models(size: Size) -> dict[str, Values]:
    """What of `model:` is each system's own."""
    continuous = {"kind": "continuous", "basis": size.basis}
    joint = continuous | {"density": "joint"}
    last = {"kind": "continuation", "layers": [size.layers - 1]}
    paper = {
        "preset": "paper-sorting",
        "basis": size.basis,
        "samples": size.basis,
        "widths": [5.12 / size.basis, 25.6 / size.basis],  # the preset's are made for 512 functions
        "precision": "float32",
    }
    return {
        OFF: {"memory": None},
        "continuation": {"memory": last},
        "joint": {"memory": joint},
        "joint+continuation": {"memory": joint, "memories": {"next": last}},
        "gaussian": {"memory": continuous | {"density": "gaussian"}},
        "gibbs": {"memory": continuous | {"density": "gibbs"}},
        "associative": {"memory": {"kind": "associative"}},
        "paper": {"memory": paper},
        "transformer-xl": {"memory": None, "positions": "relative"},
    }


SYSTEMS = (*models(SIZES["tiny"]), PLAIN)


def config(size: Size, system: str, data: Path, precision: str = "fp32") -> Config:
    """The config of a run that takes such steps. Raises UserError."""
    from infty_pretrain import config as configs

    values = {
        "run": {"folder": str(data.parent / system), "steps": 10**6},
        "data": {"train": str(data)},
        "model": {
            "family": "llama",
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "layers": size.layers,
            "heads": size.heads,
            "segment_length": size.segment,
            "stm_length": size.segment,
            "vocab_multiple": 8,
        }
        | models(size)[system],
        "batch": {"lanes": size.lanes, "window_segments": size.segments},
        "parallel": {"zero_stage": 0 if precision == "fp32" else 1},
        "precision": precision,
    }
    return configs.from_dict(values, f"a model with {system}")


def dataset(size: Size, folder: Path, seed: int = 0) -> Path:
    """A long document of random tokens for every lane."""
    import numpy as np

    from infty.data.build import DatasetWriter
    from infty_tools.tasks.base import save_words

    words = [f"w{i}" for i in range(size.vocabulary - 1)]
    writer = DatasetWriter(folder / "data", save_words(words, folder / "tokenizer"))
    random = np.random.default_rng(seed)
    length = 64 * size.segments * size.segment
    for lane in range(size.lanes):
        writer.add(f"document-{lane}", random.integers(0, len(words), length), length)
    writer.finish({})
    return folder / "data"
