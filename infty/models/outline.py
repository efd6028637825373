"""What a model is made of, counted on the model itself: built on the meta device, where weights take no memory."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from infty.config import ModelConfig
from infty.models.lm import InftyLM
from infty.parallel import groups
from infty.tree import Tree


@dataclass(frozen=True)
class Parameter:
    """One weight of the model, whole."""

    name: str
    shape: tuple[int, ...]
    split: bool
    """Whether tensor-parallel ranks share it out; otherwise each keeps all of it."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def local(self, tensor: int) -> int:
        """Numbers that one of `tensor` ranks holds."""
        return self.size // tensor if self.split else self.size


@dataclass(frozen=True)
class Outline:
    """Every parameter, and what is declared of a lane's state (a tree of `Field`), all heads together."""

    parameters: tuple[Parameter, ...]
    fields: Tree


def outline(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Outline:
    """The outline of `InftyLM(config)` in a run of this precision."""
    return _outline(json.dumps(config.to_dict(), sort_keys=True), dtype)


@lru_cache(maxsize=32)
def _outline(config: str, dtype: torch.dtype) -> Outline:
    with groups.alone(), torch.device("meta"):
        model = InftyLM(ModelConfig.from_dict(json.loads(config)))
        parameters = tuple(
            Parameter(name, tuple(p.shape), bool(getattr(p, "tensor_model_parallel", False)))
            for name, p in model.named_parameters()
        )
        return Outline(parameters, model.fields(dtype))
