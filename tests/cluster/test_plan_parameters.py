"""The planner's list of parameters is the model's, name by name."""

from __future__ import annotations

import pytest

from infty_tools import plan_parameters
from support.small import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_real_model(name, single_process):
    from infty.models.lm import InftyLM

    model = InftyLM(VARIANTS[name])
    planned = {p.name: (tuple(p.shape), p.split) for p in plan_parameters.parameters(VARIANTS[name])}
    built = {n: (tuple(p.shape), bool(getattr(p, "tensor_model_parallel", False)))
             for n, p in model.named_parameters()}
    assert planned == built
    assert plan_parameters.total(VARIANTS[name]) == sum(p.numel() for p in model.parameters())
