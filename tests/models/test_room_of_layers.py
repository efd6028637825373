"""How much room the tokens of a model's segments get: what it follows from, and what monitoring is told of it."""

from __future__ import annotations

import pytest
import torch

from infty.memory.room import LEAST
from infty_tools.bench.layout_training import window
from support.small import VARIANTS, build, logits

pytestmark = pytest.mark.usefixtures("single_process")


def test_surprise_is_the_loss_of_what_the_layers_input_predicts():
    """Token by token, through the last norm and the output matrix; the first token of a segment gets the mean."""
    config = VARIANTS["surprise"]
    model, batch = build(config), window(config, lanes=2, segments=3)
    given, streams = [], []
    block = model.blocks[1]
    block.register_forward_pre_hook(lambda _, arguments: streams.append(arguments[0].detach()))
    block.memories["memory"].room.register_forward_hook(lambda *x: given.append(x[2]))
    with torch.no_grad():
        logits(model, batch)
        x = model.norm(streams[0]).permute(1, 0, 2).unflatten(1, (3, -1))  # [b, S, L, e]
        scores = (x @ model.head.weight.T)[..., : config.vocab_size].double()
    L = config.segment_length
    for lane in range(2):
        for s in range(3):
            log_p = scores[lane, s].log_softmax(-1)
            losses = [-log_p[t - 1, batch["tokens"][lane, s, t]] for t in range(1, L)]
            expected = torch.stack([torch.stack(losses).mean(), *losses]) + LEAST
            got = given[0][lane, config.stm_length + s * L :][:L].double()
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["salience", "salience, joint", "surprise"])
def test_the_spread_of_room_is_told(name):
    config = VARIANTS[name]
    model, batch = build(config), window(config, lanes=2, segments=3)
    with torch.no_grad():
        _, out = logits(model, batch, statistics=True)
        spread = out.figures["0.memory.room_spread"]
        assert 1 / (3 * config.segment_length) < spread < 1
    assert "0.memory.room_spread" not in logits(build(VARIANTS["llama"]), batch)[1].figures


def test_a_fresh_salience_is_even():
    config = VARIANTS["salience"]
    model, batch = build(config), window(config, lanes=2, segments=3)
    with torch.no_grad():
        for block in model.blocks:
            block.memories["memory"].room.weight.zero_()
        _, out = logits(model, batch, statistics=True)
    assert out.figures["0.memory.room_spread"].item() == pytest.approx(1)


def test_a_lane_whose_weight_is_not_finite_is_seen():
    """A number a lane, without further dimensions, is looked at like everything else of its state."""
    from infty_pretrain.faults.quarantine import damaged

    state = build(VARIANTS["salience"]).initial_state(3)
    assert not damaged(state).any()
    state["layers"]["1"]["memories"]["memory"]["signal"]["weight"][1] = float("nan")
    assert damaged(state).tolist() == [False, True, False]
