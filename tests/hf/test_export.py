"""The export: a folder that plain transformers loads where nothing of infty can be imported; whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infty.data.tokenizer import Tokenizer
from infty.errors import UserError
from infty.models.lm import InftyLM
from infty_tools.export import verify as export_verify
from infty_tools.export.exporter import Exporter
from infty_tools.export.standalone import HIDE
from infty_tools.export.tokenizer import SAMPLES, convert_sentencepiece, fast_tokenizer
from infty_tools.export.weights import convert_weights
from support.runs import TEXT, make_run, tokenizer
from support.twins import VARIANTS, close, tokens, training_logits

pytestmark = pytest.mark.usefixtures("single_process")

GENERATE = (
    HIDE
    + """
import importlib.util, json
assert importlib.util.find_spec("infty") is importlib.util.find_spec("deepspeed") is None
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(["Call me", "Some years ago never mind"], return_tensors="pt", padding=True)
out = {"dtype": str(model.dtype), "eos": model.generation_config.eos_token_id}
for name, how in {"greedy": {}, "beam": {"num_beams": 3}, "sample": {"do_sample": True, "top_p": 0.9}}.items():
    ids = model.generate(**batch, max_new_tokens=20, min_new_tokens=20, **{"do_sample": False, **how})
    out[name] = ids[:, batch.input_ids.shape[1]:].tolist()
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
out["base"] = list(base(batch.input_ids).last_hidden_state.shape)
cache = model(batch.input_ids[:1], use_cache=True).past_key_values
cache.save(sys.argv[2] + ".safetensors")
again, more = model.load_cache(sys.argv[2] + ".safetensors"), batch.input_ids[1:]
out["bookmark"] = torch.equal(model(more, cache=cache).logits, model(more, cache=again).logits)
model.save_pretrained(sys.argv[2])
out["modules"] = [m for m in sys.modules if m.split(".")[0] in ("infty", "deepspeed", "megatron")]
print(json.dumps(out))
"""
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def run(tmp_path, vocabulary):
    return make_run(tmp_path / "run", VARIANTS["per head"], vocabulary)


def in_another_process(script: str, *arguments: Path, cache: Path) -> dict:
    environment = os.environ | {"HF_MODULES_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        cwd=cache.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.usefixtures("run")
def test_export_generates_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested below")
    Exporter(tmp_path / "run").write(tmp_path / "exports" / "first")
    folder = tmp_path / "exports" / "first"
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "modeling_infty.py",
        "layer_infty.py",
        "configuration_infty.py",
        "cache_infty.py",
        "pieces_infty.py",
        "memory_infty.py",
        "bookmark_infty.py",
        "infty_files.py",
        "continuous_infty.py",
        "associative_infty.py",
        "infty_tree.py",
        "memory_basis.py",
        "memory_memory.py",
        "memory_reading.py",
        "memory_density.py",
        "memory_densities.py",
        "memory_located.py",
        "memory_signals.py",
        "infty_errors.py",
    } <= names
    assert [p.name for p in folder.parent.iterdir()] == ["first"]
    out = in_another_process(GENERATE, folder, tmp_path / "again", cache=tmp_path / "cache")
    assert out["modules"] == [] and out["dtype"] == "torch.float32" and out["eos"] == 2
    assert all(len(row) == 20 for how in ("greedy", "beam", "sample") for row in out[how])
    assert out["base"][::2] == [2, 32] and out["bookmark"]
    assert not any(
        "work" in p.read_text() and str(tmp_path) in p.read_text() for p in folder.glob("*.py")
    )
    assert str(tmp_path) not in "".join(
        p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".md", ".py")
    )


CARD = (
    HIDE
    + """
import json, re
from pathlib import Path
card = Path(sys.argv[1], "README.md").read_text()
names = {}
for block in re.findall(r"```python\\n(.*?)```", card, re.S):
    exec(block.replace('folder = "."', f"folder = {sys.argv[1]!r}"), names)
cache, mine, model, tokenizer = (names[n] for n in ("cache", "mine", "model", "tokenizer"))
config = [tokenizer.bos_token, model.config.bos_token_id, model.generation_config.bos_token_id]
print(json.dumps({"read": cache.get_seq_length(), "book": names["book"].shape[1], "bos": config,
                  "after": mine.get_seq_length() - names["ids"].shape[1] + 1, "infty": "infty.errors" in sys.modules,
                  "limit": model.config.max_position_embeddings}))
"""
)


@pytest.mark.usefixtures("run")
def test_the_model_cards_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested elsewhere")
    Exporter(tmp_path / "run").write(tmp_path / "first")
    out = in_another_process(CARD, tmp_path / "first", cache=tmp_path / "cache")
    assert out["read"] == out["book"] == out["after"] > 1000
    assert out["bos"] == [None] * 3 and not out["infty"]
    assert out["limit"] == 2**31 - 1
    card = (tmp_path / "first" / "README.md").read_text()
    assert "`memory.out`." in card and "`</s>`" in card


@pytest.mark.parametrize(
    "name, dtype",
    [("paper with stm", "float32"), ("gpt2 untied", "bfloat16"), ("joint and facts", "float32")],
)
def test_exported_logits_equal_the_training_models(name, dtype, tmp_path, vocabulary, monkeypatch):
    alone = export_verify.run_alone
    monkeypatch.setattr(
        export_verify, "run_alone", lambda *given: results.append(alone(*given)) or results[-1]
    )
    _, trained = make_run(tmp_path / "run", replace(VARIANTS[name], init_std=0.05), vocabulary)
    folder, results = tmp_path / "out", []
    _, report = Exporter(tmp_path / "run", dtype).write(folder)
    assert report.startswith("Verified")
    card = (folder / "README.md").read_text()
    assert ("`facts.out`, `gist.out`, `gist.key`, `gist.value`." in card) == (
        name == "joint and facts"
    )
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    config = trained.config
    ids = export_verify.tokens(config)
    [(got, texts)] = results
    assert texts == [vocabulary.encode(text).tolist() for text in SAMPLES]
    with torch.no_grad():
        for p in trained.parameters():
            p.copy_(p.to(getattr(torch, dtype)))
        padded = torch.nn.functional.pad(ids, (0, -ids.shape[1] % config.segment_length))
        expected = training_logits(trained, padded)[:, export_verify.columns(ids.shape[1])]
    close(got, expected)


def test_verification_notices_a_wrong_weight(tmp_path, vocabulary):
    checkpoint, trained = make_run(tmp_path / "run", VARIANTS["llama"], vocabulary)
    exporter = Exporter(checkpoint)
    ids = export_verify.tokens(trained.config)
    padded = torch.nn.functional.pad(ids, (0, -ids.shape[1] % 8))
    with torch.no_grad():
        logits = training_logits(trained, padded)[:, export_verify.columns(ids.shape[1])]
        assert "Verified" in export_verify.compare(exporter.reference(), ids, logits)
        trained.blocks[1].memories["memory"].out.weight.mul_(1.1)
        logits = training_logits(trained, padded)[:, export_verify.columns(ids.shape[1])]
    with pytest.raises(UserError, match="not the trained one"):
        export_verify.compare(exporter.reference(), ids, logits)


def test_nothing_is_left_when_it_fails(run, tmp_path, monkeypatch):
    folder = tmp_path / "exports" / "first"

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Exporter, "verify", fail)
    with pytest.raises(KeyboardInterrupt):
        Exporter(tmp_path / "run").write(folder)
    assert list(folder.parent.iterdir()) == []


def test_an_existing_folder_is_left_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "verify", lambda *_: "skipped")
    exporter, mine = Exporter(tmp_path / "run"), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UserError, match="leaving it alone"):
            exporter.write(mine, force)
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]
    first = tmp_path / "first"
    exporter.write(first)
    (first / "README.md").write_text("old")
    with pytest.raises(UserError, match="--force"):
        exporter.write(first)
    exporter.write(first, force=True)
    assert (first / "README.md").read_text().startswith("---")
    assert not list(tmp_path.glob("first.*"))


def test_wrong_input_is_refused_with_what_to_do(run, tmp_path, vocabulary):
    checkpoint, _ = run
    with pytest.raises(UserError, match="does not exist"):
        Exporter(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no whole checkpoint"):
        Exporter(tmp_path)
    with pytest.raises(UserError, match="--dtype int8"):
        Exporter(checkpoint, dtype="int8")
    other = Path(str(vocabulary.path) + ".other.model")
    other.write_bytes(vocabulary.path.read_bytes() + b"\n")
    with pytest.raises(UserError, match="tokenizer"):
        Exporter(checkpoint, tokenizer=other)
    (checkpoint / "weights-00001.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="weights-00001"):
        Exporter(checkpoint)


def test_an_edited_config_is_noticed(tmp_path, vocabulary):
    checkpoint, _ = make_run(tmp_path / "run", VARIANTS["gpt2"], vocabulary)
    path = checkpoint / "config.yaml"
    path.write_text(path.read_text().replace("ffn_size: 128", "ffn_size: 64"))
    whole = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["config.yaml"] = whole
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"mlp\.out\.weight has shape"):
        Exporter(checkpoint)


def test_sentencepiece_and_transformers_cut_text_alike(vocabulary, tmp_path):
    from transformers import AutoTokenizer

    fast = fast_tokenizer(vocabulary, [TEXT])
    fast.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):  # random texts, and random ids, which need not be what a text gives
        text = (
            "".join(chr(c) for c in torch.randint(32, 130, (80,), generator=generator)) + "\n 中—é"
        )
        assert again.encode(text, add_special_tokens=False) == vocabulary.encode(text).tolist()
        assert again.decode(again.encode(text)) == text


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
def test_a_hugging_face_tokenizer_is_taken_as_it_is(kind, vocabulary, tmp_path):
    import tokenizers
    from transformers import AutoTokenizer

    if kind == "byte level":
        made = tokenizers.ByteLevelBPETokenizer()
        made.train_from_iterator(
            TEXT.splitlines(), vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
        )
        made.save(str(tmp_path / "tokenizer.json"))
    else:
        fast_tokenizer(vocabulary).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    original = Tokenizer.load(tmp_path / "tokenizer.json")
    fast = fast_tokenizer(original, [TEXT])
    fast.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (TEXT, "a </s> b <|endoftext|> c"):
        assert again.encode(text, add_special_tokens=False) == original.encode(text).tolist()
    assert again.eos_token_id == original.eos_id


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_other_sentencepiece_settings(kind, tmp_path):
    """The library's defaults: a space put before the text, runs of spaces made one."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(tmp_path / "m"),
        vocab_size=300,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((tmp_path / "m.model").read_bytes())
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    fast = convert_sentencepiece(proto)
    for text in (
        "Call me Ishmael.",
        "  the   watery part ",
        "Chapter 12. xyz 中",
        TEXT[:400].replace("\n", " "),
    ):
        assert fast.encode(text).ids == original.encode(text), text
        assert fast.decode(original.encode(text)).replace(" ⁇ ", "").strip()


def test_weights_of_another_program_are_refused():
    trained = InftyLM(VARIANTS["gpt2"])
    with pytest.raises(UserError, match="no parameter of this model"):
        convert_weights([("transformer.wte.weight", torch.zeros(3, 3))], trained.config)
    with pytest.raises(UserError, match="rows"):
        convert_weights([("embedding.weight", torch.zeros(3, 3))], trained.config)
    assert tokens(1, 3).shape == (1, 3)
