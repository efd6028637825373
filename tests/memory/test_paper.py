"""The paper's presets against a float64 reference written step by step from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from infty.config import ModelConfig
from infty.layers.memories.base import Inputs
from infty.layers.memories.continuous import Continuous
from infty.memory import ContinuousMemory, density, sticky
from infty.memory.presets import PRESETS, preset
from infty.parallel.region import Region
from infty.tree import fresh
from support.reference import Paper

HEADS, SIZE, TOKENS = 3, 16, 40


def close(ours, reference, tolerance=1e-5):
    error = (ours.double() - reference).norm() / reference.norm().clamp(min=1e-30)
    assert error < tolerance, float(error)


def tokens(lanes, count):
    """Noise around a mean of the segment, as hidden states have: so a wide density reads not just noise."""
    return torch.randn(lanes, count, HEADS * SIZE) + torch.randn(lanes, 1, HEADS * SIZE)


def weights(n, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    e = HEADS * SIZE
    shapes = {"key": (e, e), "value": (e, e), "mu": (n,), "sigma": (n,), "gate": (e, e, 3)}
    # About the size of the paper's initial weights: scores of order 1.
    scale = {
        "key": e**-0.5,
        "value": e**-0.5,
        "mu": n**-0.5,
        "sigma": n**-0.5,
        "gate": (3 * e) ** -0.5,
    }
    return {
        k: (scale[k] * torch.randn(s, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
        for k, s in shapes.items()
    }


def gated(x, w):
    """x [T, e] times sigmoid of a convolution over three tokens."""
    return x * torch.sigmoid(torch.nn.functional.conv1d(x.T[None], w["gate"], padding=1)[0].T)


def by_reference(config, xs, qs, resets, seeds):
    """Contexts of all lanes and segments, one lane after another. Lane b starts anew where resets[k][b]."""
    w = weights(config.basis, torch.float64)
    out = []
    for lane in range(len(xs[0])):
        memory = None
        for k, (x, q) in enumerate(zip(xs, qs)):
            if memory is None or resets[k][lane]:
                memory = Paper(
                    config.basis,
                    config.widths,
                    config.ridge,
                    config.contraction,
                    config.samples,
                    config.sigma_floor,
                    config.bins,
                    config.sticky,
                    config.explore,
                )
            if not config.backprop and memory.B is not None:
                memory.B = memory.B.detach()
            memory.write(gated(x[lane].double(), w), int(seeds[k][lane]))
            out.append(memory.read(q[lane].double(), w["key"], w["value"], w["mu"], w["sigma"])[0])
    return out, w


def by_product(config, xs, qs, resets, seeds, segment):
    w = weights(config.basis, torch.float32)
    memory = ContinuousMemory(config, segment)
    lanes = len(xs[0])
    state = memory.empty(lanes, HEADS, SIZE)
    out = [[] for _ in range(lanes)]
    for k, (x, q) in enumerate(zip(xs, qs)):
        state = memory.reset(state, resets[k])
        content = (
            torch.stack([gated(lane, w) for lane in x]).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
        )
        state = memory.write(state, content, torch.ones(lanes, dtype=torch.bool), seeds[k])
        signal = state.coefficients.transpose(1, 2).flatten(2)  # [b, N, e]
        pooled = [
            torch.einsum("n,bne->be", w[name], signal) @ w["key"].T for name in ("mu", "sigma")
        ]
        mu, variance = density.parameters(
            q,
            *(p.unflatten(-1, (HEADS, SIZE)) for p in pooled),
            None,
            None,
            config.sigma_floor,
            config.sigma_clamp,
        )
        past = density.histogram(mu, variance, config.bins).mean(1, keepdim=True)
        state = memory.with_histogram(state, past, torch.ones(lanes, dtype=torch.bool))
        values = (signal @ w["value"].T).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
        z = density.read(mu, variance, values, memory.basis).transpose(1, 2).flatten(2)
        for lane in range(lanes):
            out[lane].append(z[lane])
    return [z for lane in out for z in lane], w


CASES = [
    ("paper-sorting", "off", 96, False),
    ("paper-gpt2", "off", 64, False),
    ("paper-gpt2", "multinomial", 64, False),
    ("paper-gpt2", "quantile", 64, True),
    ("paper-sorting", "off", 33, True),
]


@pytest.mark.parametrize(("name", "sticky", "segment", "backprop"), CASES)
def test_seven_segments_forward_and_gradients(name, sticky, segment, backprop):
    torch.manual_seed(1)
    # With fewer functions the centres must still lie closer than the narrowest width.
    size = 128 if name == "paper-sorting" else 384
    config = preset(name, sticky=sticky, basis=size, samples=160, backprop=backprop)
    # The last of a document is shorter: half a segment, or a single token.
    lengths = [segment] * 6 + [1 if segment == 64 and sticky == "off" else segment // 2 + 1]
    xs = [tokens(2, n) for n in lengths]
    qs = [torch.randn(2, HEADS, TOKENS, SIZE) for _ in lengths]
    resets = [
        torch.tensor([False, k == 4]) for k in range(7)
    ]  # one lane rolls into its next document
    seeds = [torch.tensor([11 + k, -5 - k]) for k in range(7)]
    agree(
        by_product(config, xs, qs, resets, seeds, segment),
        by_reference(config, xs, qs, resets, seeds),
    )


# The last figure is the tolerance of gradients. Quantiles follow float32 densities smoothly, so that the old signal is
# sampled 1e-7 beside where float64 would, and derivatives by place feel that; drawn edges of bins are the same in both.
LAYERS = [
    ("paper-sorting", "off", 0, False, 1e-5),
    ("paper-sorting", "off", 1, True, 1e-5),
    ("paper-gpt2", "multinomial", 2, False, 1e-5),
    ("paper-gpt2", "multinomial", 0, True, 1e-5),
    ("paper-gpt2", "quantile", 1, True, 1e-4),
]


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(("name", "sticky", "delay", "backprop", "tolerance"), LAYERS)
def test_the_layer_is_the_papers(name, sticky, delay, backprop, tolerance):
    """What a model's layer does in a window of eight segments: gate, order of reads and writes, what waits in a
    short-term memory of `delay` segments, divergence, and which gradients there are; a lane begins anew on the way."""
    torch.manual_seed(4)
    L, S, e = 32, 8, HEADS * SIZE
    config = preset(
        name,
        sticky=sticky,
        basis=128 if name == "paper-sorting" else 384,
        samples=160,
        backprop=backprop,
        kl_weight=0.1,
    )
    layer, w = a_layer(config, L, delay)
    seen = torch.tensor([list(range(S)), [*range(4), *range(4)]])
    h = tokens(2, S * L).requires_grad_()
    q = torch.randn(2, HEADS, 1, S * L, SIZE)
    x = h.transpose(0, 1)
    nothing = torch.zeros(2, HEADS, delay * L + S * L, 0)
    reading = layer(
        Inputs(q, nothing, nothing, x, x, x, seen, None, Region(), True, False),
        fresh(layer.fields(torch.float32), 2),
    )
    context, divergence = reading.update, reading.penalty
    into = torch.randn(2, S * L, e)
    (context.transpose(0, 1) * into).sum().add(divergence.sum()).backward()
    ours = {
        "gate": layer.gate.weight.grad,
        "gate_bias": layer.gate.bias.grad,
        "key": layer.key.weight.grad,
        "value": layer.value.weight.grad,
        "mu": layer.maps.weight_mu.grad[0],
        "sigma": layer.maps.weight_sigma.grad[0],
    }
    assert (h.grad is not None) == backprop

    exact = h.detach().double().requires_grad_()
    total = 0.0
    for lane in range(2):
        papers = paper_layer(
            config,
            w,
            exact[lane].unflatten(0, (S, L)),
            q[lane, :, 0].double().unflatten(1, (S, L)),
            seen[lane],
            delay,
            lane,
        )
        total = total + agreed(list(papers), context[:, lane], divergence[lane], into[lane])
    total.backward()
    if backprop:
        ours["h"], w["h"] = h.grad, exact
    for key, gradient in ours.items():
        assert gradient.norm() > 0, key
        wanted = w[key].grad.transpose(1, 2).flatten(1) if key == "gate" else w[key].grad
        close(gradient, wanted, tolerance)


def agreed(papers, context, divergence, into):
    """A lane's loss as the paper has it, from its (z, kl) of every segment, which must be what the layer gave."""
    total = 0.0
    length = len(context) // len(papers)
    for s, (z, kl) in enumerate(papers):
        part = slice(s * length, (s + 1) * length)
        close(divergence[part], kl)
        if z is None:
            assert not context[part].any()
            continue
        close(context[part], z)
        total = total + (z * into[part]).sum() + kl.sum()
    return total


def a_layer(config, segment, delay):
    """A layer of one model, and its weights in float64."""
    w = weights(config.basis, torch.float64) | {
        "gate_bias": torch.randn(HEADS * SIZE, dtype=torch.float64).requires_grad_()
    }
    model = ModelConfig(
        vocab_size=8,
        hidden_size=HEADS * SIZE,
        heads=HEADS,
        layers=1,
        segment_length=segment,
        stm_length=delay * segment,
        memory=config,
    )
    layer = Continuous(model, 0, "memory")
    given = {
        layer.key.weight: w["key"],
        layer.value.weight: w["value"],
        layer.gate.bias: w["gate_bias"],
        layer.gate.weight: w["gate"]
        .transpose(1, 2)
        .flatten(1),  # the token before, the token, the token after
        layer.maps.weight_mu: w["mu"][None],
        layer.maps.weight_sigma: w["sigma"][None],
        layer.out.weight: torch.eye(HEADS * SIZE),
    }  # so that what is read is seen as it is
    with torch.no_grad():
        for parameter, value in given.items():
            parameter.copy_(value)
    return layer, w


def paper_layer(config, w, h, q, seen, delay, lane):
    """Yields what each segment of one lane reads (None: nothing is written yet), and its divergence [L]."""
    memory = None
    for s in range(len(h)):
        if seen[s] == 0:
            memory, written = (
                Paper(
                    config.basis,
                    config.widths,
                    config.ridge,
                    config.contraction,
                    config.samples,
                    config.sigma_floor,
                    config.bins,
                    config.sticky,
                    config.explore,
                ),
                0,
            )
        if memory.B is None:
            z, variance = None, torch.full((HEADS, h.shape[1]), math.log(2), dtype=torch.float64)
        else:
            z, _, variance = memory.read(q[:, s], w["key"], w["value"], w["mu"], w["sigma"])
        ratio = variance / config.kl_sigma**2
        yield z, config.kl_weight * (0.5 * (ratio - ratio.log() - 1)).mean(0)
        if seen[s] >= delay:
            x = h[s - delay] if config.backprop else h[s - delay].detach()
            gate = torch.nn.functional.conv1d(x.T[None], w["gate"], w["gate_bias"], padding=1)[0].T
            if not config.backprop and memory.B is not None:
                memory.B = memory.B.detach()
            seed = int(sticky.seed(config.sticky_seed, torch.tensor([written]), 0)[0])
            memory.write(x * torch.sigmoid(gate), seed)
            written += 1


@pytest.mark.parametrize("name", PRESETS)
def test_the_full_size_memory(name):
    """N and M of 512 and the paper's segments: the regression a float32 inverse gets wrong by a percent."""
    torch.manual_seed(3)
    config = preset(name)
    segment = 1024 if name == "paper-sorting" else 512
    xs = [tokens(1, segment) for _ in range(4)]
    qs = [torch.randn(1, HEADS, TOKENS, SIZE) for _ in range(4)]
    resets, seeds = [torch.tensor([False])] * 4, [torch.tensor([k]) for k in range(4)]
    agree(
        by_product(config, xs, qs, resets, seeds, segment),
        by_reference(config, xs, qs, resets, seeds),
    )


def agree(ours, reference):
    """Readings, and the gradients of all weights."""
    (zs, w), (expected, w_reference) = ours, reference
    g = torch.Generator().manual_seed(2)
    into = [torch.randn(z.shape, generator=g, dtype=torch.float64) for z in expected]
    for z, e in zip(zs, expected):
        close(z, e)
    sum((z * d).sum() for z, d in zip(expected, into)).backward()
    sum((z * d).sum() for z, d in zip(zs, into)).backward()
    for key in w:
        close(w[key].grad, w_reference[key].grad)


PAPER = {  # basis, widths, ridge, contraction, samples, floor of the variance, sticky
    "paper-sorting": (512, (0.01, 0.05), 1.0, 0.75, 512, 1e-6, "off"),
    "paper-gpt2": (512, (0.005, 0.01), 0.5, 0.5, 512, 1e-4, "off"),
    "paper-gpt2-sticky": (512, (0.005, 0.01), 0.5, 0.5, 512, 1e-4, "multinomial"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_are_the_papers(name):
    c = preset(name)
    assert (c.basis, c.widths, c.ridge, c.contraction, c.samples, c.sigma_floor, c.sticky) == PAPER[
        name
    ]
    assert (c.gate, c.signal, c.content, c.maps, c.map_bias, c.sigma_clamp) == (
        True,
        "hidden",
        "residual",
        "shared",
        False,
        True,
    )
    assert (c.kl_weight, c.kl_sigma, c.bins, c.explore) == (1e-6, 0.05, 128, 0)
    assert c.density == "gaussian" and not c.backprop and not c.output_gate
