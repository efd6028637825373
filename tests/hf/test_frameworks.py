"""Conventions of what people use with transformers: Trainer, TRL, PEFT, accelerate, lm-eval; each by itself."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_document_borders import alone

from infty.hf.cache_infty import InftyCache
from infty.hf.configuration_infty import UNLIMITED, InftyConfig
from infty.hf.modeling_infty import InftyForCausalLM
from infty_tools.export.exporter import Exporter
from support.runs import make_run, tokenizer
from support.twins import VARIANTS, close, pair, tokens, twin

pytestmark = pytest.mark.usefixtures("single_process")

SOME = [
    "llama",
    "gpt2",
    "paper with stm",
    "per head",
    "learned",
    "gibbs hidden",
    "joint",
    "gist and facts",
]


def library(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def test_what_transformers_adds_to_is_a_list():
    assert isinstance(InftyConfig.keys_to_ignore_at_inference, list)
    assert isinstance(InftyForCausalLM._no_split_modules, list | set)
    assert isinstance(InftyForCausalLM._skip_keys_device_placement, list)


def examples(count: int, length: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens(count, length)]


@pytest.mark.parametrize(
    "how", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=["plain", "ckpt", "bf16"]
)
def test_trainer_trains_evaluates_and_predicts(how, tmp_path):
    library("accelerate")
    from transformers import Trainer, TrainingArguments

    model = twin("hidden")
    expected = model.eval()(tokens(3, 20), labels=tokens(3, 20))
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        per_device_eval_batch_size=3,
        disable_tqdm=True,
        save_strategy="no",
        **how,
    )
    trainer = Trainer(model, arguments, train_dataset=examples(4, 20), eval_dataset=examples(3, 20))
    rough = 0.05 if how.get("bf16") else 1e-4
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.loss.item(), rel=rough)
    predicted = trainer.predict(examples(3, 20)).predictions
    assert predicted.shape == (3, 20, 61)
    assert (
        abs(torch.from_numpy(predicted) - expected.logits.detach()).max()
        < rough * expected.logits.abs().max()
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < expected.loss.item()


@pytest.mark.parametrize(
    "name", ["llama", "paper with stm", "hidden", "learned", "joint", "gist and facts"]
)
def test_gradient_checkpointing_changes_no_gradient(name):
    model = pair(replace(VARIANTS[name], dropout=0.1))[1].train()
    ids = tokens(2, 40)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == checkpointed
        torch.manual_seed(3)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-5, atol=1e-6, msg=key)


def test_reentrant_checkpointing_is_refused():
    """It gives no gradient to what is not a tensor among a layer's arguments: the memory."""
    with pytest.raises(ValueError, match="use_reentrant"):
        twin("llama").gradient_checkpointing_enable({"use_reentrant": True})


@torch.no_grad()
@pytest.mark.parametrize("place", ["disk", "cpu"])
@pytest.mark.parametrize("name", SOME)
def test_offloaded_weights_read_and_write_the_memory(name, place, tmp_path):
    library("accelerate")
    from accelerate import cpu_offload, dispatch_model

    model = twin(name)
    ids = tokens(2, 40)
    expected = model(ids).logits
    if place == "cpu":
        offloaded = cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    else:
        whole = {
            "model.embed_tokens": "cpu",
            "model.embed_positions": "cpu",
            "model.norm": "cpu",
            "lm_head": "cpu",
        }
        layers = {
            f"model.layers.{i}": "disk" if i else "cpu" for i in range(len(model.model.layers))
        }
        names = {n for n, _ in model.named_modules()}
        offloaded = dispatch_model(
            copy.deepcopy(model),
            {k: v for k, v in (whole | layers).items() if k in names},
            main_device="cpu",
            offload_dir=tmp_path,
            force_hooks=True,
        )
    assert any(p.is_meta for p in offloaded.parameters())
    close(offloaded(ids).logits, expected)
    cache = InftyCache()
    parts = [offloaded(part, cache=cache).logits for part in ids.split([13, 1, 26], 1)]
    close(torch.cat(parts, 1), expected)
    assert torch.equal(
        offloaded.generate(ids, max_new_tokens=5), model.generate(ids, max_new_tokens=5)
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "how",
    [
        {"device_map": "auto", "max_memory": {"cpu": 60_000}},
        {
            "device_map": {
                "model.embed_tokens": "cpu",
                "model.layers.0": "cpu",
                "model.layers.1": "disk",
                "model.norm": "cpu",
                "lm_head": "cpu",
            }
        },
    ],
    ids=["auto", "by hand"],
)
def test_a_device_map_that_spills_to_disk_loads(how, tmp_path):
    library("accelerate")
    model = twin("hidden")
    model.save_pretrained(tmp_path / "model")
    spilled = InftyForCausalLM.from_pretrained(
        tmp_path / "model", offload_folder=tmp_path / "spill", **how
    ).eval()
    assert any(p.is_meta for p in spilled.parameters())
    close(spilled(tokens(2, 40)).logits, model(tokens(2, 40)).logits)


LORA = {
    "hidden": ["qkv", "memory.key", "memory.value", "memory.out"],
    "llama": ["qkv", "memory.out"],
    "gist and facts": ["qkv", "memory.out", "facts.out"],
    "joint": ["qkv"],
}


@pytest.mark.parametrize("name", LORA)
def test_lora_reaches_every_projection_it_names(name):
    peft = library("peft")
    model = twin(name)
    with torch.no_grad():
        before = model(tokens(2, 40)).logits
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=LORA[name], r=2, init_lora_weights=False)
    )
    ids = tokens(2, 40)
    adapted(ids, labels=ids).loss.backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for p in adapted.parameters()
        if p.requires_grad
    )
    adapted.eval()
    with torch.no_grad():
        got = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    torch.testing.assert_close(got, merged, rtol=0, atol=1e-4 * merged.abs().max().item())
    assert (got - before).abs().max() > 0.01


def test_documents_that_trl_packs_do_not_see_one_another(tmp_path, monkeypatch):
    library("trl")
    datasets = library("datasets")
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    lengths = [13, 20, 12, 7, 30]
    texts = [row.tolist() for row in tokens(1, sum(lengths))[0].split(lengths)]
    data = datasets.Dataset.from_dict({"input_ids": texts})
    arguments = SFTConfig(
        tmp_path,
        packing=True,
        max_length=45,
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        bf16=False,
    )
    model = twin("llama")
    trainer = SFTTrainer(model, arguments, train_dataset=data, processing_class=small_tokenizer())
    assert isinstance(trainer.processing_class, PreTrainedTokenizerFast)
    assert trainer.args.gradient_checkpointing
    batch = next(iter(trainer.get_train_dataloader()))
    ids, where = batch["input_ids"], batch["position_ids"]
    with torch.no_grad():
        got = model.eval()(**batch).logits
    for row in range(len(ids)):
        borders = [*(where[row] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
        sizes = [b - a for a, b in pairwise(borders)]
        assert len([n for n in sizes if n > 1]) >= 2
        with torch.no_grad():
            close(got[row], alone(model, ids[row], sizes))
    assert trainer.train().training_loss > 0


def small_tokenizer():
    """Words w00 to w60, of which w02 ends a text; no word begins one."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(
        models.WordLevel({f"w{i:02}": i for i in range(61)}, unk_token="w00")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="w02", pad_token="w02", unk_token="w00"
    )


@torch.no_grad()
def test_lm_eval_reads_a_long_text_whole():
    """It cuts texts at 2,048 tokens when a model names no limit; and begins them with the token that ends one."""
    library("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = pair(VARIANTS["llama"])[1]
    model.config.eos_token_id = 2
    judge = HFLM(model, tokenizer=small_tokenizer(), device="cpu", batch_size=1)
    assert judge.max_length == UNLIMITED
    assert judge.prefix_token_id == 2
    ids = tokens(1, 2500)
    text = " ".join(f"w{i:02}" for i in ids[0].tolist())
    [got] = judge.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    read = torch.cat([torch.tensor([[2]]), ids], 1)
    logits = model(read[:, :-1]).logits.log_softmax(-1)
    expected = logits.gather(2, read[:, 1:, None]).sum().item()
    assert got == pytest.approx(expected, rel=1e-4)


def test_no_tool_invents_a_token_that_begins_a_text(tmp_path):
    """The run's tokenizer has one, which training never used: Trainer would write it into the config."""
    library("accelerate")
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    make_run(tmp_path / "run", VARIANTS["llama"], tokenizer(tmp_path))
    Exporter(tmp_path / "run").write(tmp_path / "model")
    model = InftyForCausalLM.from_pretrained(tmp_path / "model")
    exported = AutoTokenizer.from_pretrained(tmp_path / "model")
    arguments = TrainingArguments(
        tmp_path / "out", max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=examples(2, 20), processing_class=exported).train()
    saved = [
        InftyConfig.from_pretrained(path.parent)
        for path in (tmp_path / "out").glob("*/config.json")
    ]
    assert [c.bos_token_id for c in (model.config, model.generation_config, *saved)] == [None] * 3
    assert (exported.bos_token, model.config.eos_token_id) == (None, 2)
    if importlib.util.find_spec("lm_eval"):
        from lm_eval.models.huggingface import HFLM

        judge = HFLM(model, tokenizer=exported, device="cpu")
        assert judge.prefix_token_id == 2
        assert judge.tok_encode("Call me") == exported("Call me").input_ids


def test_no_limit_is_what_the_config_says(tmp_path):
    config = twin("llama").config
    assert config.max_position_embeddings == UNLIMITED
    config.save_pretrained(tmp_path)
    assert InftyConfig.from_pretrained(tmp_path).max_position_embeddings == UNLIMITED
