"""What cannot be adapted is refused by name in one sentence, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from infty.errors import UserError
from infty_tools.adapt import adapter as adapting
from infty_tools.adapt.adapter import Adapter
from infty_tools.adapt.command import adapt
from support import originals

pytestmark = pytest.mark.usefixtures("single_process")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    originals.write(root / "llama", "llama")
    originals.write(root / "shards", "llama", max_shard_size="20KB")
    originals.write(root / "gpt2", "gpt2")
    return root


@pytest.fixture
def folder(made, tmp_path):
    """A folder of its own to spoil."""
    return lambda name="llama": Path(shutil.copytree(made / name, tmp_path / name))


def refusal(path: Path, *given) -> str:
    output = path.parent / "output"
    with pytest.raises(UserError) as error:
        Adapter(path, *given).write(output)
    assert not list(path.parent.glob("output*"))
    message = str(error.value)
    assert "\n" not in message and len(message) < 600
    return message


def edit(path: Path, **changes) -> Path:
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | changes))
    return path


def test_what_is_no_model(tmp_path, folder):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")
    (tmp_path / "text").write_text("x")
    assert "name the folder" in refusal(tmp_path / "text")
    llama = folder()
    (llama / "config.json").write_text('{"model_type": "llama"')
    assert "is damaged" in refusal(llama)
    (llama / "config.json").write_text("{}")
    assert "names no model_type" in refusal(llama)


def test_half_a_download(folder):
    llama = folder()
    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "is damaged or incomplete" in refusal(llama)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "git lfs pull" in refusal(llama)
    weights.unlink()
    assert "holds no weights" in refusal(llama)
    (llama / "pytorch_model.bin").write_bytes(b"PK\x03\x04 cut")
    assert "is damaged or incomplete" in refusal(llama)
    torch.save({"x": shutil.rmtree}, llama / "pytorch_model.bin")
    assert "it was not loaded" in refusal(llama)
    shards = folder("shards")
    next(shards.glob("model-00002-of-*.safetensors")).unlink()
    assert "model-00002-of" in (message := refusal(shards)) and "missing" in message


def test_what_infty_cannot_represent(folder):
    llama, gpt2 = folder(), folder("gpt2")
    message = refusal(edit(llama, model_type="mamba"))
    assert "'mamba'" in message and "gpt2, llama, mistral, qwen2, qwen3" in message
    edit(llama, model_type="llama")
    assert "hidden_act 'relu'" in refusal(edit(llama, hidden_act="relu"))
    edit(llama, hidden_act="silu")
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "rope_type 'dynamic'" in refusal(edit(llama, rope_parameters=rope))
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert "partial_rotary_factor 0.5" in refusal(edit(llama, rope_parameters=rope))
    edit(llama, rope_parameters=originals.rope("default"))
    assert "quantised" in refusal(edit(llama, quantization_config={"quant_method": "gptq"}))
    edit(llama, quantization_config=None)
    assert "its own code" in refusal(edit(llama, auto_map={"AutoModel": "x.y"}))
    assert "activation_function 'relu'" in refusal(edit(gpt2, activation_function="relu"))
    edit(gpt2, activation_function="gelu_new")
    assert "scale_attn_by_inverse_layer_idx" in refusal(
        edit(gpt2, scale_attn_by_inverse_layer_idx=True)
    )


def test_weights_that_do_not_fit_the_config(folder):
    assert "it lacks 9 weights" in refusal(edit(folder(), num_hidden_layers=3))
    llama = folder("gpt2")
    assert "weights that a gpt2 with this config does not have" in refusal(edit(llama, n_layer=1))
    shutil.rmtree(llama)
    llama = edit(folder("shards"), intermediate_size=64)
    assert "does not fit its own config.json" in refusal(llama)


def test_a_tokenizer_that_does_not_fit(folder):
    llama = folder()
    edit(llama, vocab_size=290)
    assert "[305, 32] cannot become embedding.weight" in refusal(llama)
    edit(llama, vocab_size=305)
    file = json.loads((llama / "tokenizer.json").read_text())
    more = [
        {"id": 300 + i, "content": f"<more{i}>", "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False, "special": True}
        for i in range(20)
    ]
    (llama / "tokenizer.json").write_text(
        json.dumps(file | {"added_tokens": file["added_tokens"] + more})
    )
    assert "320 tokens, the embedding 305 rows" in refusal(llama)
    for path in llama.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer" in refusal(llama)


def test_what_is_asked_for(folder):
    llama, gpt2 = folder(), folder("gpt2")
    assert "--memory brain" in refusal(llama, "brain")
    assert "model.hidden_size cannot be set here" in refusal(llama, "none", ["model.hidden_size=8"])
    assert "optimizer.lr cannot be set here" in refusal(llama, "none", ["optimizer.lr=1"])
    assert "more than the 32 positions" in refusal(gpt2, "none", ["model.stm_length=32"])
    assert "has no token" in refusal(llama, "none", [], "<end>")
    output = llama.parent / "taken"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="leaving it alone"):
        Adapter(llama).write(output)
    assert [p.name for p in output.iterdir()] == ["thesis.tex"]


def test_a_full_disk_and_ctrl_c_leave_nothing(folder, monkeypatch):
    llama = folder()
    output = llama.parent / "output"
    adapter = Adapter(llama)
    plain = shutil.disk_usage(llama)
    monkeypatch.setattr(adapting.shutil, "disk_usage", lambda _: plain._replace(free=10))
    with pytest.raises(UserError, match=r"the disk that holds .* is full"):
        adapter.write(output)
    monkeypatch.undo()
    for stop in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_, stop=stop):
            raise stop

        monkeypatch.setattr(adapting, "save_file", fail)
        with pytest.raises(type(stop)):
            adapter.write(output)
        assert not list(llama.parent.glob("output*"))


def test_streaming_holds_one_layer(folder, monkeypatch):
    """Of all the tensors that are made, those of one file are alive at a time."""
    alive = []
    plain = adapting.save_file

    def save(tensors, path):
        alive.append(sum(t.numel() for t in tensors.values()))
        plain(tensors, path)

    monkeypatch.setattr(adapting, "save_file", save)
    llama = folder()
    adapter = Adapter(llama)
    adapter.write(llama.parent / "output")
    assert len(alive) == adapter.model.layers + 2
    assert max(alive) <= max(alive[0], alive[1]) + 32  # the norm beside the head


def test_several_processes_are_refused(made, tmp_path, monkeypatch):
    """Each would write the same folder."""
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="runs in one process: start it without a launcher"):
        adapt(made / "llama", output=tmp_path / "output")
    assert not (tmp_path / "output").exists()
