"""An adapted model says what the original says: without a memory, and with one behind its zero gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infty.models.lm import InftyLM
from infty_pretrain import checkpoint as checkpoints
from infty_pretrain import config as configs
from infty_pretrain.checkpoint.canonical import slice_for_rank
from infty_tools import processes
from infty_tools.adapt.adapter import Adapter
from support import originals
from support.twins import close

pytestmark = pytest.mark.usefixtures("single_process")

WINDOW = ["model.segment_length=8", "model.stm_length=16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every original in a folder of its own, and the model that lies in it."""
    root = tmp_path_factory.mktemp("originals")
    made = {name: root / name.replace(" ", "-") for name in originals.CONFIGS}
    return {name: (folder, originals.write(folder, name)) for name, folder in made.items()}


def adapted(
    folder: Path, output: Path, memory: str = "none", changes: list[str] = WINDOW
) -> InftyLM:
    """The training model of an adapted folder."""
    Adapter(folder, memory, changes).write(output)
    return load(output)


def load(checkpoint: Path) -> InftyLM:
    assert checkpoints.problem_with(checkpoint) is None
    reader = checkpoints.Reader(checkpoint)
    model = InftyLM(configs.load(checkpoint / checkpoints.CONFIG).model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(reader.parameter(name))
    return model.eval()


def read(model: InftyLM, ids: torch.Tensor) -> torch.Tensor:
    """[b, T, V] of a document that begins with these tokens."""
    segments = ids.unflatten(1, (-1, model.config.segment_length))
    reset = torch.zeros(segments.shape[:2], dtype=torch.bool)
    reset[:, 0] = True
    with torch.no_grad():
        out = model(segments, reset, model.initial_state(len(ids)))[0]
    return out.flatten(1, 2)[..., : model.config.vocab_size]


@pytest.mark.parametrize("name", originals.CONFIGS)
def test_without_a_memory(name, folders, tmp_path):
    folder, original = folders[name]
    ids = originals.tokens(2, 24)
    close(read(adapted(folder, tmp_path / "out"), ids), originals.logits(original, ids))


def halves(checkpoint: Path, ids: torch.Tensor) -> torch.Tensor:
    """This rank's share of the logits of a model that is split over two."""
    reader = checkpoints.Reader(checkpoint)
    model = InftyLM(configs.load(checkpoint / checkpoints.CONFIG).model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(slice_for_rank(reader.parameter(name), p))
    segments = ids.unflatten(1, (-1, 8))
    reset = torch.zeros(segments.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        return model.eval()(segments, reset, model.initial_state(len(ids)))[0].flatten(1, 2)


def test_split_over_two_ranks(folders, tmp_path):
    """Norms of heads, biases, wide heads, a window and yarn, all under tensor parallelism."""
    folder, original = folders["qwen3"]
    Adapter(folder, "associative", WINDOW).write(tmp_path / "out")
    ids = originals.tokens(2, 24)
    parts = processes.run(2, halves, tmp_path / "out", ids, tensor=2)
    vocabulary = original.config.vocab_size
    close(torch.cat(parts, -1)[..., :vocabulary], originals.logits(original, ids))


MEMORIES = (
    ["associative"],
    ["continuous", "model.memory.basis=16", "model.memory.bins=16"],
    ["continuation"],
)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama tied", "mistral", "qwen2", "qwen3 tied"])
def test_behind_a_zero_gate(name, folders, tmp_path):
    folder, original = folders[name]
    ids = originals.tokens(2, 24)
    expected = originals.logits(original, ids)
    for kind, *changes in MEMORIES:
        model = adapted(folder, tmp_path / kind, kind, [*WINDOW, *changes])
        assert any(len(block.memories) for block in model.blocks)
        close(read(model, ids), expected)


def test_beyond_the_local_window_a_model_sees_the_last_segments(folders, tmp_path):
    """As the original does under a mask that lets it see no more; its layers see further than one."""
    folder, original = folders["llama"]
    ids = originals.tokens(1, 48)
    place = torch.arange(48)
    begin = (place // 8 * 8 - 16).clamp(min=0)
    visible = (place <= place[:, None]) & (place >= begin[:, None])
    mask = torch.zeros(1, 1, 48, 48).masked_fill(~visible, float("-inf"))
    with torch.no_grad():
        expected = original(ids, attention_mask=mask).logits
    close(read(adapted(folder, tmp_path / "out"), ids), expected)


def test_gpt2_counts_positions_anew_in_each_segment(folders, tmp_path):
    """Without a short-term memory, as in the paper: each segment is read as the original reads a text of its own."""
    folder, original = folders["gpt2"]
    model = adapted(folder, tmp_path / "out", changes=["model.segment_length=16"])
    assert model.config.stm_length == 0
    ids = originals.tokens(1, 48)
    expected = originals.logits(original, ids.view(3, 16)).view(1, 48, -1)
    close(read(model, ids), expected)


@pytest.mark.parametrize(
    "save", [{"max_shard_size": "20KB"}, {"bin": True}, {"bin": False}, {"base": True}]
)
def test_whatever_file_the_weights_lie_in(save, folders, tmp_path):
    _, original = folders["gpt2"]
    folder = tmp_path / "original"
    if "max_shard_size" in save:
        originals.write(folder, "gpt2", **save)
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif "bin" in save:
        originals.write(folder, "gpt2")
        (folder / "model.safetensors").unlink()
        torch.save(
            original.state_dict(),
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=save["bin"],  # false: as the files of 2019 are
        )
    else:
        originals.write(folder, "gpt2")
        original.transformer.save_pretrained(folder)
    ids = originals.tokens(2, 24)
    close(read(adapted(folder, tmp_path / "out"), ids), originals.logits(original, ids))


def test_half_precision_is_taken_as_it_is(folders, tmp_path):
    folder = tmp_path / "original"
    originals.write(folder, "qwen3")
    half = folders["qwen3"][1].to(torch.bfloat16)
    half.save_pretrained(folder)
    model = adapted(folder, tmp_path / "out")
    expected = half.model.layers[1].self_attn.o_proj.weight
    assert torch.equal(model.blocks[1].attention.out.weight, expected.float())
    folders["qwen3"][1].float()
