"""A dataset and a config small enough to train in a second."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from infty.data.documents import PREFIX, DatasetInfo
from infty_pretrain import config as configs
from infty_pretrain.config import Config

LENGTHS = [130, 47, 220, 75, 160, 33, 98, 64, 181]
SEGMENT = 8


def write_dataset(
    folder: Path, lengths: list[int] | None = None, seed: int = 0, vocabulary: int = 40
) -> Path:
    """Documents that count upwards in steps of their own, as `infty prepare` would store them (without tokenizer)."""
    import torch

    from infty.megatron import indexed_dataset

    folder.mkdir(parents=True)
    lengths = lengths or LENGTHS
    builder, digest = (
        indexed_dataset.IndexedDatasetBuilder(str(folder / f"{PREFIX}.bin"), dtype=np.uint16),
        hashlib.sha256(),
    )
    for i, n in enumerate(lengths):
        ids = (seed + 7 * i + (1 + i % 3) * np.arange(n)) % vocabulary
        builder.add_document(torch.from_numpy(ids.astype(np.int64)), [n])
        digest.update(ids.tobytes())
    builder.finalize(str(folder / f"{PREFIX}.idx"))
    names = [f"book {i}" for i in range(len(lengths))]
    DatasetInfo(
        len(lengths),
        sum(lengths),
        "uint16",
        vocabulary,
        digest.hexdigest(),
        f"tokenizer of {vocabulary}",
        sum(n // 2 for n in lengths),
        names,
        [n // 2 for n in lengths],
    ).save(folder)
    return folder


def values(folder: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """A run's config as plain values; `changes` are keys such as parallel__tensor=2."""
    out: dict[str, Any] = {
        "run": {"folder": str(folder), "steps": 6},
        "data": {"train": str(data)},
        "model": {
            "hidden_size": 32,
            "layers": 2,
            "heads": 4,
            "segment_length": SEGMENT,
            "stm_length": SEGMENT,
            "vocab_multiple": 8,
            "dropout": 0.1,
            "memory": {"basis": 16, "bins": 16},
        },
        "batch": {"lanes": 4, "window_segments": 3},
        "optimizer": {"lr": 3e-3, "memory_lr": 6e-3},
        "schedule": {"warmup_steps": 2},
        "parallel": {"zero_stage": 1},
        "checkpoint": {"every": 100},
        "logging": {"every": 2, "tensorboard": False},
    }
    for name, value in changes.items():
        *sections, key = name.split("__")
        inner = out
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return out


def config(folder: Path, data: Path, **changes: Any) -> Config:
    return configs.from_dict(values(folder, data, **changes))


def curve(folder: Path) -> list[tuple]:
    """What a run logged of every step, without the clock's figures."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (r["step"], r["loss"], r["grad_norm"], r["lr"], r["tokens"]) for r in rows if "loss" in r
    ]
