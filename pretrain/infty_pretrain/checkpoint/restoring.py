"""From a checkpoint to an engine, of the same model in any layout."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.distributed as dist

from infty.errors import UserError
from infty.parallel import groups, randomness
from infty_pretrain import config as configs
from infty_pretrain.checkpoint import canonical, lanes
from infty_pretrain.checkpoint.reading import Reader
from infty_pretrain.engine import Engine, shape_of
from infty_pretrain.records import CONFIG

# May differ between a checkpoint and the run that goes on from it: what they change is not what the weights mean.
_FREE = re.compile(
    r"model\.(dropout|init_std"
    r"|(memory|memories\.\w+)\.(backprop|kl_weight|kl_sigma|precision|reconstruction_weight)): "
)


def load(engine: Engine, folder: Path, kept_lanes: list[int]) -> Reader:
    """Put a checkpoint into the engine: weights, moments, memories of `kept_lanes`, random streams.

    Raises UserError when it is a checkpoint of a different model.
    """
    reader = Reader(folder)
    _check_model(engine, reader)
    canonical.load(engine.deepspeed, reader.parameter, reader.run["optimizer_step"])
    if engine.config.checkpoint.memory == "save":
        saved = reader.lanes()
        kept = {lane: saved[lane] for lane in kept_lanes if lane in saved}
        engine.set_lane_state(lanes.restore(engine, kept))
    if reader.run["layout"] == groups.layout():
        randomness.restore(reader.random(dist.get_rank()))
    else:
        randomness.seed(engine.config.run.seed + 7919 * reader.run["step"])
    return reader


def _check_model(engine: Engine, reader: Reader) -> None:
    check_shapes(engine.model, reader)
    changes = [
        c
        for c in configs.differences(configs.load(reader.folder / CONFIG), engine.config)
        if c.startswith("model.") and not _FREE.match(c)
    ]
    if changes:
        raise UserError(
            f"{reader.folder} is a checkpoint of a different model: {'; '.join(changes)}. Use the config "
            f"it was made with ({reader.folder / CONFIG}) or another run.folder"
        )


def check_shapes(model: torch.nn.Module, reader: Reader) -> None:
    """Raise UserError unless a checkpoint holds the parameters of this rank's `model`."""
    expected = {}
    for name, p in model.named_parameters():
        shape = list(shape_of(p))
        if getattr(p, "tensor_model_parallel", False):
            shape[p.partition_dim] *= groups.tensor_size()
        expected[name] = shape
    saved = {name: list(reader.shape(name)) for name in reader.names()}
    if saved != expected:
        odd = next(
            n for n in sorted(saved.keys() | expected.keys()) if saved.get(n) != expected.get(n)
        )
        raise UserError(
            f"{reader.folder} is a checkpoint of a different model: {odd} has shape {saved.get(odd)} "
            f"there, {expected.get(odd)} in this config. Use the config it was made with "
            f"({reader.folder / CONFIG}) or another run.folder"
        )
