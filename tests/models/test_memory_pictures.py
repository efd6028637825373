"""What memories show of themselves: asking changes no number, and the pictures are right."""

from __future__ import annotations

import pytest
import torch

from infty.layers.memories import continuous_pictures
from infty.layers.memories.base import Picture
from infty.memory.config import MemoryConfig
from infty.memory.contraction import policy
from infty.memory.memory import ContinuousMemory
from infty.memory.origin import origins, regions
from infty.memory.resample import sample
from infty_pretrain import pictures as plain
from infty_pretrain.board import image
from infty_tools.bench.layout_training import window
from support.small import VARIANTS, build

pytestmark = pytest.mark.usefixtures("single_process")
POLICIES = [0.5, "uniform", "doubling"]


def shown(name: str, **changes) -> tuple[torch.Tensor, dict, dict[str, Picture]]:
    config = VARIANTS[name]
    batch = window(config, lanes=2, segments=6, seed=3, resets=0)
    model = build(config)
    with torch.no_grad():
        loss, out = model(
            batch["tokens"],
            batch["reset"],
            model.initial_state(2),
            batch["tokens"],
            statistics=True,
            **changes,
        )
    return loss, out.figures, out.pictures


@pytest.mark.parametrize("name", VARIANTS)
def test_asking_for_pictures_changes_nothing(name):
    loss, figures, none = shown(name)
    again, more, pictures = shown(name, pictures=True)
    assert torch.equal(loss, again) and none == {}
    assert all(torch.equal(value, more[key]) for key, value in figures.items())
    shares = {key for key in more if key.endswith(".share_of_stream")}
    assert more.keys() - figures.keys() == shares and len(shares) >= 2
    assert all(more[key] >= 0 for key in shares)
    for key, picture in pictures.items():
        assert key.count(".") == 2
        values = picture.values
        assert torch.isfinite(values).all() or key.endswith(".origin")
        if key.endswith(".density"):
            rows = values.sum(-1)
            assert ((rows - 1).abs() < 1e-4).logical_or(rows == 0).all() and rows.any()
        if key.endswith((".attention", ".room")):
            assert values.sum() == pytest.approx(1, abs=1e-4)


def test_each_kind_shows_what_it_has():
    def names(variant):
        return {key.rpartition(".")[2] for key in shown(variant, pictures=True)[2]}

    assert names("llama") == {"density", "attention", "room", "origin"}
    assert names("constant") == {"density", "origin", "read_back"}
    assert names("no memory") == names("compressive") == set()


@pytest.mark.parametrize("contraction", POLICIES)
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_places_stand_for_the_segments_that_were_written_there(contraction, count):
    """Each segment is a constant of its own: what is found at a place tells which one lies there."""
    config = MemoryConfig(basis=64, contraction=contraction, sticky="off", ridge=1e-3)
    memory = ContinuousMemory(config, 128)
    state = memory.empty(1, 1, 1)
    for n in range(count):
        x = torch.full((1, 1, 128, 1), 1.0 + n)
        state = memory.write(state, x, torch.ones(1, dtype=torch.bool))
    start, end = regions(policy(contraction), count)
    wide = end - start > 0.1
    middle = (start + end)[wide] / 2
    found = sample(memory.basis, middle[None, None], None, state.coefficients).flatten()
    expected = 1.0 + torch.arange(count)[wide]
    assert torch.allclose(found, expected.float(), atol=0.3)
    assert torch.allclose(origins(start, end, middle) - 0.5, expected.double() - 1)
    assert origins(start, end, end[-1:] + 0.01).isnan().all() or end[-1] == 1


def test_nothing_was_written_at_first():
    start, end = regions(policy("uniform"), 0)
    assert len(start) == len(end) == 0
    assert origins(start, end, torch.tensor([0.5])).isnan().all()


def test_what_was_written_last_is_read_back_best():
    config = MemoryConfig(basis=64, contraction=0.5, sticky="off", ridge=1e-3)
    memory = ContinuousMemory(config, 128)
    state = memory.empty(2, 1, 4)
    # Slow curves: what a signal of 64 functions can hold.
    t = torch.arange(6 * 128) / 128
    stream = torch.stack([torch.sin(t * (1 + c) / 2) for c in range(4)], -1).expand(2, 1, -1, -1)
    for s in range(6):
        part = stream[:, :, s * 128 : (s + 1) * 128]
        state = memory.write(state, part, torch.ones(2, dtype=torch.bool))
    seen = torch.arange(6).expand(2, -1)
    alike = continuous_pictures.of_signal(memory, stream, state, seen, 0)["read_back"]
    assert alike.values.shape == (6,) and alike.ends == (1.0, 7.0)
    assert alike.values[0] > 0.98 and alike.values[0] > alike.values[-1]


def test_pictures_become_plain_values_and_images():
    picture = Picture(torch.tensor([[0.0, 0.123456], [1.0, torch.nan]]), "place", down="token")
    values = plain.plain(picture)["values"]
    assert values == [[0.0, 0.1235], [1.0, None]]
    assert plain.tag("3.memory.density") == "memory_density/layer_03"
    pixels = image(values)
    assert pixels.shape == (12, 12, 3)
    assert pixels[0, 0].tolist() == [68, 1, 84] and pixels[11, 0].tolist() == [253, 231, 37]
    assert pixels[11, 11].tolist() == [128, 128, 128]
    assert image([0.0, 0.0, None]).shape == (24, 18, 3)
