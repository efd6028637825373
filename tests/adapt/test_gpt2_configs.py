"""The paper's fine-tuning of GPT-2, and ours beside it: a few steps on a tiny random GPT-2 with a tokenizer in GPT-2's
own files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import ByteLevelBPETokenizer

from infty.data.tokenizer import Tokenizer
from infty_pretrain import config as configs
from infty_pretrain.checkpoint import Reader
from infty_pretrain.launch import Launch
from infty_pretrain.trainer import Trainer
from infty_tools import processes
from infty_tools.adapt.adapter import Adapter
from support import originals, small_training
from support.runs import TEXT

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = ("wikitext103", "pg19")
NAMES = tuple(f"gpt2-{data}{memory}" for data in DATA for memory in ("", "-infty"))
STEPS = 2
SIZES = {
    "vocab_size": 305,
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "kv_heads": 4,
    "ffn_size": 128,
}
SMALL = (
    *(f"model.{key}={value}" for key, value in SIZES.items()),
    "model.segment_length=8",
    f"run.steps={STEPS}",
    "run.tokens=null",
    "data.validation=null",
    "evaluation.every=null",
)
OURS = ("model.memories.next.layers=[1]", "model.memory.basis=16", "model.memories.next.key_size=8")


def write_bpe(folder: Path) -> None:
    """A byte-level BPE as GPT-2's encoder.json and vocab.bpe, by the names that transformers gives them."""
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        TEXT.splitlines(),
        vocab_size=originals.VOCABULARY,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    made.save_model(str(folder))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("gpt2")
    originals.write(root / "original", "gpt2")
    write_bpe(root / "original")
    Adapter(root / "original", changes=["model.segment_length=8"]).write(root / "adapted")
    originals.write_data(root / "data", root / "adapted")
    return root


def train_all(root: Path) -> dict[str, tuple[list[float], set[tuple[float, float]]]]:
    """Every config for a few steps: losses, and each parameter group's learning rate and decay."""
    from infty_pretrain import trainer

    trainer.connect = small_training.join
    found = {}
    for name in NAMES:
        changes = [f"run.folder={root / name}", f"init.from={root / 'adapted'}", *SMALL]
        changes += [f"data.train={root / 'data'}", *(OURS if "infty" in name else ())]
        run = Trainer(configs.load(CONFIGS / f"{name}.yaml", changes), Launch(0, 1, 0, "env"))
        losses = []
        plain = run.engine.step

        def step(*given, plain=plain, losses=losses):
            result = plain(*given)
            losses.append(result.loss)
            return result

        run.engine.step = step
        rates = set(run.engine.peak_rates)
        assert run.run() == 0
        found[name] = losses, rates
        run.engine.deepspeed.destroy()
    return found


def test_they_train(root):
    for name, (losses, rates) in processes.run(1, train_all, root)[0].items():
        assert len(losses) == STEPS and all(map(math.isfinite, losses)), name
        assert rates == ({5e-5, 2.5e-4, 1e-2} if "infty" in name else {5e-5, 2.5e-4}), name
        before, after = (
            Reader(folder)
            for folder in (root / "adapted", root / name / "checkpoints" / f"step-{STEPS:08d}")
        )
        weight = "blocks.0.attention.qkv.weight"
        assert not torch.equal(before.parameter(weight), after.parameter(weight)), name
        assert any(".memories." in n for n in after.names()), name


@pytest.mark.parametrize("data", DATA)
def test_ours_differs_in_its_memory_alone(data):
    paper, ours = (
        yaml.safe_load((CONFIGS / f"gpt2-{data}{memory}.yaml").read_text())
        for memory in ("", "-infty")
    )
    assert paper["model"].pop("memory") == {"preset": "paper-gpt2-sticky"}
    assert ours["model"].pop("memory") == {"density": "joint"}
    assert ours["model"].pop("memories")["next"]["kind"] == "continuation"
    assert ours["optimizer"].pop("gate_lr")
    assert paper["run"].pop("folder") + "-infty" == ours["run"].pop("folder")
    assert paper == ours


def test_gpt2s_own_files_give_the_same_ids(root):
    """There is no tokenizer.json: adapt makes one of vocab.json and merges.txt."""
    vocabulary, merges = (str(root / "original" / name) for name in ("vocab.json", "merges.txt"))
    theirs = ByteLevelBPETokenizer.from_file(vocabulary, merges)
    ours = Tokenizer.load(root / "adapted")
    assert ours.encode(TEXT).tolist() == theirs.encode(TEXT).ids
    assert ours.end_token == "<|endoftext|>"
