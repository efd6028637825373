"""Runs that begin with an adapted model: in every layout, with everything or the memory alone learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infty.errors import UserError
from infty.hf.modeling_infty import InftyForCausalLM
from infty.models.lm import InftyLM
from infty_pretrain import config as configs
from infty_pretrain.checkpoint import Reader
from infty_pretrain.engine import is_gate, parameter_groups
from infty_pretrain.launch import Launch
from infty_pretrain.learning import learns
from infty_pretrain.trainer import Trainer, validate
from infty_tools import processes
from infty_tools.adapt.adapter import Adapter
from infty_tools.export.exporter import Exporter
from support import originals, small_run, small_training

STEPS = 3
PLAIN = {"run__steps": STEPS, "model__dropout": 0.0, "optimizer__clip": 0.0}
MEMORY = PLAIN | {"train": "memory", "optimizer__gate_lr": 0.1}
LORA = MEMORY | {
    "train": "memory+lora",
    "model__lora": {"rank": 2, "projections": ["qkv", "attention_out", "mlp_up", "mlp_out"]},
}
ONE = {
    "one-zero0": PLAIN | {"parallel__zero_stage": 0},
    "one-memory-zero0": MEMORY | {"parallel__zero_stage": 0},
    "one-memory-zero1": MEMORY | {"parallel__zero_stage": 1},
    "one-lora-zero0": LORA | {"parallel__zero_stage": 0},
    "one-bf16": MEMORY | {"parallel__zero_stage": 1, "precision": "bf16"},
}
TWO = {
    "tp2-zero1": PLAIN | {"parallel__tensor": 2, "parallel__zero_stage": 1},
    "dp2-memory-zero3": MEMORY | {"parallel__zero_stage": 3},
    "dp2-memory-zero2": MEMORY | {"parallel__zero_stage": 2},
    "tp2-memory-zero3": MEMORY
    | {"parallel__tensor": 2, "parallel__zero_stage": 3, "parallel__recompute": True},
    "tp2-memory-sequence": MEMORY
    | {"parallel__tensor": 2, "parallel__zero_stage": 1, "parallel__sequence": True},
    "dp2-lora-zero2": LORA | {"parallel__zero_stage": 2},
    "tp2-lora-zero3": LORA
    | {"parallel__tensor": 2, "parallel__zero_stage": 3, "parallel__recompute": True},
    "tp2-lora-sequence": LORA
    | {"parallel__tensor": 2, "parallel__zero_stage": 1, "parallel__sequence": True},
    "dp2-bf16": MEMORY | {"parallel__zero_stage": 3, "precision": "bf16"},
}


def train(root: Path, name: str, changes: dict) -> tuple[list[float], int]:
    """A run to its end, and once more from its first checkpoint on. Losses, and numbers in optimizer states."""
    import torch.distributed as dist

    from infty_pretrain import trainer

    trainer.connect = small_training.join
    launch = Launch(dist.get_rank(), dist.get_world_size(), dist.get_rank(), "env")
    losses = []
    for steps in (2, STEPS):
        values = originals.run_values(root / name, root / "data", root / "adapted", **changes)
        values["run"]["steps"] = steps
        values["schedule"] = {"kind": "constant"}
        run = Trainer(configs.from_dict(values), launch)
        plain = run.engine.step

        def step(*given, plain=plain):
            result = plain(*given)
            losses.append(result.loss)
            return result

        run.engine.step = step
        assert run.run() == 0
        optimizer = getattr(
            run.engine.deepspeed.optimizer, "optimizer", run.engine.deepspeed.optimizer
        )
        held = sum(s["exp_avg"].numel() for s in optimizer.state.values())
        gradients = [
            n for n, p in run.engine.model.named_parameters() if p.grad is not None and p.grad.any()
        ]
        assert all(learns(n, changes.get("train", "everything")) for n in gradients)
        run.engine.deepspeed.destroy()
    return losses, held


def all_of(root: Path, layouts: dict) -> dict:
    return {name: train(root, name, changes) for name, changes in layouts.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapted")
    originals.write(root / "original", "qwen3 tied")
    Adapter(
        root / "original",
        "continuation",
        ["model.segment_length=8", "model.stm_length=8", "model.memory.key_size=8"],
    ).write(root / "adapted")
    originals.write_data(root / "data", root / "adapted")
    return root


@pytest.fixture(scope="module")
def results(root):
    return processes.run(1, all_of, root, ONE)[0] | processes.run(2, all_of, root, TWO)[0]


def trained(name: str) -> str:
    """What learned in a run."""
    return (ONE | TWO)[name].get("train", "everything")


def weights(root: Path, name: str) -> dict[str, torch.Tensor]:
    reader = Reader(root / name / "checkpoints" / f"step-{STEPS:08d}")
    return {name: reader.parameter(name) for name in reader.names()}


def test_every_layout_trains_alike(results):
    for kind in ("everything", "memory", "memory+lora"):
        names = [n for n in results if trained(n) == kind and "bf16" not in n]
        assert len(names) >= 2
        for name in names[1:]:
            assert results[name][0] == pytest.approx(results[names[0]][0], rel=1e-4), name


def test_what_is_frozen_keeps_its_bits_and_the_memory_learns(root, results):
    before = Reader(root / "adapted")
    for name in results:
        after = weights(root, name)
        moved = {n for n, w in after.items() if not torch.equal(w, _as_kept(before, n, name))}
        assert moved and all(learns(n, trained(name)) for n in moved), name
        if trained(name) == "memory+lora":
            assert {n for n in after if n.endswith(".lora_b")} <= moved, name
        assert (trained(name) == "everything") == ("embedding.weight" in moved), name
        assert any(is_gate(n) for n in moved), name


def _as_kept(before: Reader, name: str, run: str) -> torch.Tensor:
    """In bf16 what is frozen is rounded once, when the run begins."""
    if name not in before.names():  # fresh
        return torch.zeros(())
    weight = before.parameter(name)
    return weight.bfloat16().float() if "bf16" in run and ".memories." not in name else weight


def test_what_is_frozen_has_no_optimizer_state(root, results):
    for name in results:
        folder = root / name / "checkpoints" / f"step-{STEPS:08d}"
        files = [load_file(path) for path in folder.glob("optimizer-*.safetensors")]
        with_moments = {key.rsplit(".", 1)[0] for file in files for key in file}
        reader = Reader(folder)
        assert with_moments == {n for n in reader.names() if learns(n, trained(name))}, name
        read = {key for key in reader.everything() if key.endswith("/exp_avg_sq")}
        assert read == {f"{n}/exp_avg_sq" for n in with_moments}, name
    memory = sum(w.numel() for n, w in weights(root, "one-zero0").items() if ".memories." in n)
    assert results["one-memory-zero0"][1] == memory
    assert results["one-memory-zero1"][1] == pytest.approx(memory, abs=16)


def test_gates_have_their_own_rate_and_do_not_decay(root, single_process):
    values = originals.run_values(root / "run", root / "data", root / "adapted", **MEMORY)
    config = configs.from_dict(values)
    model = InftyLM(config.model)
    groups = parameter_groups(model, config)
    gates = {id(p) for n, p in model.named_parameters() if n.endswith("memories.memory.gate")}
    [its] = [g for g in groups if gates & {id(p) for p in g["params"]}]
    assert {id(p) for p in its["params"]} == gates
    assert (its["lr"], its["weight_decay"]) == (0.1, 0.0)
    assert {g["lr"] for g in groups if g is not its} == {3e-3, 6e-3}


def test_a_model_that_does_not_fit_is_refused_before_anything_starts(root, tmp_path):
    def refusal(**changes) -> str:
        with pytest.raises(UserError) as error:
            values = originals.run_values(
                tmp_path / "run", root / "data", root / "adapted", **PLAIN | changes
            )
            if "init" in changes:
                values["init"] = changes["init"]
            validate(configs.from_dict(values), 1)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "model.rope_theta: 10000.0 -> 20.0" in refusal(model__rope_theta=20.0)
    assert "model.layers: 2 -> 1" in refusal(model__layers=1, model__memory=None)
    assert "does not exist" in refusal(init={"from": str(tmp_path / "nowhere")})
    assert "holds no checkpoint" in refusal(init={"from": str(tmp_path)})
    assert "did you mean 'from'" in refusal(init={"form": "x"})
    assert "memory alone cannot learn" in refusal(train="memory", model__memory=None)
    assert "is a checkpoint, which a run would spoil" in refusal(run__folder=str(root / "adapted"))


def test_data_in_other_tokens_are_refused(root, tmp_path):
    from support import small_run

    other = small_run.write_dataset(tmp_path / "other", vocabulary=300)
    values = originals.run_values(tmp_path / "run", other, root / "adapted", **PLAIN)
    with pytest.raises(UserError, match="prepare the data with --tokenizer"):
        validate(configs.from_dict(values), 1)


def test_a_memory_that_the_checkpoint_does_not_have_begins_fresh(root, tmp_path):
    changes = PLAIN | {
        "run__steps": 1,
        "model__memory": {"kind": "associative"},
        "parallel__zero_stage": 1,
    }
    (tmp_path / "adapted").symlink_to(root / "adapted")
    (tmp_path / "data").symlink_to(root / "data")
    processes.run(1, begin, tmp_path, changes)
    assert (tmp_path / "run" / "original" / "tokenizer.json").is_file()
    config = configs.load(tmp_path / "run" / "config.yaml")
    assert config.model.memory.kind == "associative" and config.model.qk_norm


def begin(root: Path, changes: dict) -> None:
    from infty_pretrain import trainer

    trainer.connect = small_training.join
    values = originals.run_values(root / "run", root / "data", root / "adapted", **changes)
    run = Trainer(configs.from_dict(values), Launch(0, 1, 0, "env"))
    assert run.run() == 0
    reader = Reader(root / "adapted")
    torch.testing.assert_close(
        run.engine.model.embedding.weight.detach(),
        reader.parameter("embedding.weight"),
        rtol=0,
        atol=0.1,
    )


def test_an_export_has_the_low_rank_updates_in_its_weights(
    root, results, tmp_path, monkeypatch, single_process
):
    """The run's model computes them apart, the export with the projections, and they say the same."""
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested below")
    run = root / "one-lora-zero0"
    Exporter(run, tokenizer=root / "adapted").write(tmp_path / "exported")
    twin = InftyForCausalLM.from_pretrained(tmp_path / "exported").eval()
    assert not any("lora" in name for name, _ in twin.named_parameters())
    config = configs.load(run / "config.yaml").model
    said = {}
    for name, model in {"with": config, "without": replace(config, lora=None)}.items():
        own = InftyLM(model).eval()
        after = weights(root, "one-lora-zero0")
        own.load_state_dict({n: after[n] for n, _ in own.named_parameters()})
        tokens = originals.tokens(2, 8)
        with torch.no_grad():
            logits, _ = own(tokens[:, None], torch.ones(2, 1).bool(), own.initial_state(2))
        said[name] = logits[:, 0, :, : config.vocab_size]
    exported = originals.logits(twin, tokens)
    torch.testing.assert_close(exported, said["with"], rtol=1e-5, atol=1e-5)
    assert (exported - said["without"]).abs().max() > 1e-3


def test_low_rank_updates_are_not_lost(root, results, tmp_path):
    values = originals.run_values(
        tmp_path / "run", root / "data", root / "one-lora-zero0", **MEMORY | {"model__lora": None}
    )
    with pytest.raises(UserError, match="has trained low-rank updates, which would be lost"):
        validate(configs.from_dict(values), 1)


def test_what_low_rank_updates_need():
    def refusal(**changes) -> str:
        with pytest.raises(UserError) as error:
            configs.from_dict(small_run.values(Path("run"), Path("data"), **changes))
        return str(error.value)

    lora = {"rank": 2}
    assert "memory+lora needs model.lora" in refusal(train="memory+lora")
    assert "give train: memory+lora" in refusal(model__lora=lora)
    wrong = {"model__lora": {"rank": 0}, "train": "memory+lora"}
    assert refusal(**wrong).startswith("model.lora.rank: 0 must be a whole number from 1")
    assert "model.lora.alpha" in refusal(model__lora={"alpha": "nan"}, train="memory+lora")
    assert "names no projection" in refusal(model__lora={"projections": []}, train="memory+lora")
    assert "are not layers" in refusal(model__lora={"layers": [9]}, train="memory+lora")
    assert "projections" in refusal(model__lora={"projections": ["head"]}, train="memory+lora")
