"""The language model in one process: chaining, causality, isolation of lanes, padding, recompute."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infty.errors import UserError
from infty.memory.sections import CompressiveConfig
from infty.models.lm import InftyLM, check_divisible
from infty_tools.bench.layout_training import window
from support.small import GPT2, LLAMA, VARIANTS, build, logits

pytestmark = pytest.mark.usefixtures("single_process")


def one_by_one(model: InftyLM, batch: dict) -> tuple[dict, dict]:
    """Logits and state of a window read at once, and of the same segments read one window each."""
    lanes, segments = batch["reset"].shape
    with torch.no_grad():
        whole, out = logits(model, batch)
        state, parts = model.initial_state(lanes), []
        for s in range(segments):
            part, step = logits(model, {k: v[:, s : s + 1] for k, v in batch.items()}, state)
            state, parts = step.state, [*parts, part]
    return out.state.named() | {"logits": whole}, state.named() | {"logits": torch.cat(parts, 1)}


def close(got: torch.Tensor, expected: torch.Tensor, what: str | None = None) -> None:
    """Equal up to float32 rounding: windows of other lengths are products of other shapes (docs/exactness.md)."""
    scale = (
        expected.masked_fill(expected < -1e30, 0).abs().max().item()
    )  # without the vocabulary's padding
    torch.testing.assert_close(
        got, expected, rtol=0, atol=1e-5 * scale, msg=what and (lambda m: f"{what}: {m}")
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_one_window_equals_its_segments_one_by_one(name):
    config = VARIANTS[name]
    whole, parts = one_by_one(build(config), window(config, lanes=3, segments=5))
    for key, expected in whole.items():
        close(parts[key], expected, key)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["gpt2", "hidden-gpt2", "per-head sticky", "learned", "unlike layers"]),
    cuts=st.sets(st.integers(1, 6)),
    resets=st.sampled_from([0.0, 0.3]),
    seed=st.integers(1, 10**6),
)
def test_however_a_reading_is_cut_into_windows(name, cuts, resets, seed):
    config = VARIANTS[name]
    model, batch = build(config), window(config, lanes=2, segments=8, seed=seed, resets=resets)
    with torch.no_grad():
        whole, _ = logits(model, batch)
        state, parts = model.initial_state(2), []
        # The last segment is read from the state that is left: what a state holds of an earlier document is not read.
        for begin, end in pairwise([0, *sorted(cuts), 7, 8]):
            part, step = logits(model, {k: v[:, begin:end] for k, v in batch.items()}, state)
            state, parts = step.state, [*parts, part]
    close(torch.cat(parts, 1), whole)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(list(VARIANTS)), at=st.integers(0, 31), seed=st.integers(1, 10**6))
def test_the_past_does_not_hear_of_the_future(name, at, seed):
    config = VARIANTS[name]
    model, batch = build(config), window(config, lanes=2, segments=4, seed=seed)
    changed = dict(batch, tokens=batch["tokens"].clone())
    changed["tokens"].flatten(1)[:, at] = (
        changed["tokens"].flatten(1)[:, at] + 1
    ) % config.vocab_size
    with torch.no_grad():
        before, after = (logits(model, x)[0].flatten(1, 2) for x in (batch, changed))
    assert torch.equal(before[:, :at], after[:, :at])


def test_a_memory_with_a_new_output_gate_changes_nothing():
    """So a memory can be given to a model that is trained already: to the bit."""
    gated = replace(LLAMA, memory=replace(LLAMA.memory, output_gate=True))
    batch = window(LLAMA, lanes=2, segments=4)
    results = []
    for config in (gated, replace(LLAMA, memory=None)):
        torch.manual_seed(1)
        with torch.no_grad():
            results.append(logits(InftyLM(config), batch)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["gpt2", "hidden-gpt2", "truncated", "sparsemax"])
def test_a_new_memory_reads_inside_itself(name):
    """At the paper's first weights 55 % of a density lies outside [0, 1]."""
    config = replace(
        VARIANTS[name],
        heads=4,
        memory=replace(VARIANTS[name].memory, maps="per_head", map_bias=True, sigma_clamp=False),
    )
    with torch.no_grad():
        _, out = logits(
            build(config), window(config, lanes=2, segments=6, resets=0.0), statistics=True
        )
    assert all(value < 0.1 for name, value in out.figures.items() if name.endswith(".outside"))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_no_logit_depends_on_a_later_token(config):
    model, batch = build(config), window(config, lanes=1, segments=4, resets=0.0)
    L, at = config.segment_length, 2 * config.segment_length + 3
    with torch.no_grad():
        before, _ = logits(model, batch)
        changed = dict(batch, tokens=batch["tokens"].clone())
        changed["tokens"].flatten()[at] = (changed["tokens"].flatten()[at] + 1) % config.vocab_size
        after, _ = logits(model, changed)
    before, after = (x.flatten(1, 2)[0] for x in (before, after))
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at], after[at])
    if config.memory is not None and config.memory.layers is None:  # the next segments hear of it
        assert not torch.equal(before[3 * L :], after[3 * L :])


@pytest.mark.parametrize("name", ["llama", "gpt2", "hidden", "hidden-gpt2", "per-head sticky"])
def test_memory_reaches_beyond_the_local_attention(name):
    """A token three segments back, out of every local view, changes the logits only through the memory."""
    config = replace(VARIANTS[name], layers=1)
    model, batch = build(config), window(config, lanes=1, segments=5, resets=0.0)
    changed = dict(batch, tokens=batch["tokens"].clone())
    changed["tokens"][0, 0] = (changed["tokens"][0, 0] + 1) % config.vocab_size
    with torch.no_grad():
        with_memory = [logits(model, x)[0][0, 4] for x in (batch, changed)]
        without = [logits(model, x, memory_enabled=False)[0][0, 4] for x in (batch, changed)]
    assert not torch.equal(*with_memory)
    assert torch.equal(*without)


@pytest.mark.parametrize("name", ["llama", "hidden", "hidden-gpt2", "per-head sticky"])
def test_a_reset_touches_its_own_lane_only(name):
    config = VARIANTS[name]
    model, batch = build(config), window(config, lanes=3, segments=4, resets=0.0)
    reset = dict(batch, reset=batch["reset"].clone())
    reset["reset"][1, 2] = True
    with torch.no_grad():
        (plain, out), (other, changed) = logits(model, batch), logits(model, reset)
    for lane in (0, 2):
        assert torch.equal(plain[lane], other[lane])
        for name, tensor in out.state.named().items():
            assert torch.equal(tensor[lane], changed.state.named()[name][lane]), name
    assert torch.equal(plain[1, :2], other[1, :2]) and not torch.equal(plain[1, 2:], other[1, 2:])


@pytest.mark.parametrize("name", ["llama", "hidden-gpt2", "per-head sticky"])
def test_a_reset_lane_reads_as_a_new_one_even_after_nan(name):
    config = VARIANTS[name]
    model = build(config)
    with torch.no_grad():
        _, first = logits(model, window(config, lanes=2, segments=3))
        poisoned = first.state.map(lambda x: x * float("nan") if x.is_floating_point() else x)
        fresh = window(config, lanes=2, segments=3, seed=0)
        expected, _ = logits(model, fresh)
        got, _ = logits(model, fresh, poisoned)
    assert torch.equal(expected, got)


def test_state_carries_no_gradient_and_is_not_changed_in_place():
    model, batch = build(LLAMA), window(LLAMA, lanes=2, segments=3)
    state = model.initial_state(2)
    copies = {k: v.clone() for k, v in state.named().items()}
    loss, out = logits(model, batch, state, labels=batch["labels"])
    loss.backward()
    assert all(not t.requires_grad for t in out.state.named().values())
    assert all(torch.equal(copies[k], v) for k, v in state.named().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_gradient_even_with_an_empty_memory(name):
    """ZeRO-3 gives an unused parameter a stale gradient, so all must take part in every window."""
    model, batch = build(VARIANTS[name]), window(VARIANTS[name], lanes=2, segments=1)
    loss, _ = logits(model, batch, labels=batch["labels"], weights=batch["weights"])
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("backprop", [False, True])
@pytest.mark.parametrize("stm", [0, 8])
def test_the_gate_of_a_memory_is_trained(stm, backprop):
    """Also where, as in the paper, no gradient flows to what is written."""
    memory = replace(VARIANTS["hidden"].memory, backprop=backprop)
    config = replace(VARIANTS["hidden"], stm_length=stm, memory=memory)
    model, batch = build(config), window(config, lanes=2, segments=4, resets=0.0)
    logits(model, batch, labels=batch["labels"], weights=batch["weights"])[0].backward()
    for block in model.blocks:
        gate = block.memories["memory"].gate
        assert gate.weight.grad.norm() > 0 and gate.bias.grad.norm() > 0


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["untied", "tied"])
def test_vocabulary_padding_does_not_change_the_loss(config):
    losses = []
    for multiple in (1, 8, 128):
        model = build(replace(config, vocab_multiple=multiple))
        batch = window(config, lanes=2, segments=3)
        loss, _ = logits(model, batch, labels=batch["labels"], weights=batch["weights"])
        loss.backward()
        losses.append(loss.item())
        rows = model.embedding.weight.grad[config.vocab_size :]
        assert torch.count_nonzero(rows) == 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] == pytest.approx(
        losses[2], rel=1e-6
    )


@pytest.mark.parametrize("name", ["llama", "hidden-gpt2"])
def test_recompute_gives_the_same_gradients(name):
    config = replace(VARIANTS[name], dropout=0.1)
    gradients = []
    for recompute in (False, True):
        model, batch = build(config, recompute=recompute), window(config, lanes=2, segments=3)
        torch.manual_seed(5)
        loss, _ = logits(model, batch, labels=batch["labels"])
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gpt2",
        "hidden",
        "constant",
        "truncated",
        "sparsemax",
        "gibbs-hidden",
        "relative",
        "transformer-xl",
        "compressive",
        "learned",
        "salience",
        "salience, doubling",
        "salience, joint",
    ],
)
def test_gradients_of_a_window_by_finite_differences(name):
    """The loss of three segments, through the memory, against central differences."""
    config = VARIANTS[name]
    if isinstance(
        config.memory, CompressiveConfig
    ):  # whose reconstruction loss stops its gradients on purpose
        config = replace(config, memory=replace(config.memory, reconstruction_weight=0.0))
    if (
        getattr(config.memory, "sticky", "off") != "off"
    ):  # quantiles are placed without gradient: hold still
        config = replace(config, memory=replace(config.memory, sticky="off"))
    model, batch = build(config), window(config, lanes=2, segments=4, resets=0.0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.endswith("log_rate"):
                p.fill_(0.17)  # at 0 segments begin exactly where cells do, and the loss has a kink

    def value() -> float:
        with torch.no_grad():
            return logits(model, batch, labels=batch["labels"])[0].double().item()

    loss, _ = logits(model, batch, labels=batch["labels"])
    loss.backward()
    g = torch.Generator().manual_seed(0)
    for n, p in model.named_parameters():
        direction = (
            p.grad / p.grad.norm().clamp(min=1e-12)
            + 0.1 * torch.randn(p.shape, generator=g) / p.numel() ** 0.5
        )
        expected = (p.grad * direction).sum().item()
        # A change of the loss well above its rounding, well below its bends: the edges of tokens that share out their
        # room must stay in their cells.
        step = min(1e-2, (0.01 if n.endswith("room.weight") else 0.1) / abs(expected))
        with torch.no_grad():
            p += step * direction
            up = value()
            p -= 2 * step * direction
            down = value()
            p += step * direction
        slope = (up - down) / (2 * step)
        assert slope == pytest.approx(expected, rel=3e-2, abs=2e-2), n


def test_backprop_through_the_memory_can_be_switched_off():
    """With it off, a token's influence on later segments carries no gradient; the loss is the same."""
    losses, gradients = [], []
    for backprop in (True, False):
        config = replace(
            VARIANTS["hidden"],
            stm_length=0,
            memory=replace(VARIANTS["hidden"].memory, backprop=backprop),
        )
        model, batch = build(config), window(config, lanes=1, segments=3, resets=0.0)
        batch["weights"][:, :2] = 0  # only the last segment's predictions count
        loss, _ = logits(model, batch, labels=batch["labels"], weights=batch["weights"])
        loss.backward()
        first = set(batch["tokens"][0, :2].flatten().tolist()) - set(
            batch["tokens"][0, 2].flatten().tolist()
        )
        rows = model.embedding.weight.grad[sorted(first)]
        losses.append(loss.item())
        gradients.append(rows.abs().max().item())
    assert losses[0] == losses[1]
    assert gradients[0] > 0 and gradients[1] == 0


@pytest.mark.parametrize(
    "change, key",
    [
        ({"heads": 5, "hidden_size": 40, "kv_heads": 5}, "model.heads"),
        ({"kv_heads": 1}, "model.kv_heads"),
        ({"ffn_size": 33}, "model.ffn_size"),
        ({"vocab_multiple": 1}, "model.vocab_multiple"),
    ],
)
def test_a_model_that_cannot_be_split_names_the_key(change, key):
    with pytest.raises(UserError, match=key):
        check_divisible(replace(LLAMA, **change), tensor=2)
