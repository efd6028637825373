"""The model card of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infty import __version__
from infty.hf.kinds_infty import memory_of
from infty_pretrain.config import Config

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [infty, continuous-memory, long-context]
---
# {title}

A decoder language model with an unbounded continuous memory, {how} with infty {version} on whole books. Its
memory has a fixed size, however long the text: {memory}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True, top_p=0.95)[0]))
```

It needs torch and transformers 5.17 or newer. `trust_remote_code` runs the code beside this card ({files} files).

## Long texts

What the model has read is in an `InftyCache`, whose size does not grow. Read a book in parts, as long as it is:

```python
book = tokenizer("Call me Ishmael. " * 400, return_tensors="pt").input_ids
cache = None
for part in book.split(4096, 1):
    cache = model(part, cache=cache, use_cache=True, logits_to_keep=1).past_key_values  # .cache in newer versions
```

Go on from there with new tokens only, under a mask over all of them, as often as you like. What you add becomes part of
what was read, so keep a copy of the book's cache to ask something else:

```python
import copy

import torch

question = tokenizer("Who is it that", return_tensors="pt").input_ids
for seed in (1, 2):
    torch.manual_seed(seed)
    mine = copy.deepcopy(cache)
    mask = torch.ones(1, mine.get_seq_length() + question.shape[1])
    ids = model.generate(question, cache=mine, attention_mask=mask, max_new_tokens=40, do_sample=True)
    print(tokenizer.decode(ids[0]))
```

To go on after that, give `mine` and what it has not read: the last token that was written, then yours. Tokens that a
cache has read already are refused, and it cannot be cropped; several beams or returned sequences go on from a copy.

A bookmark keeps what was read in one safetensors file, which only this model opens (same config, dtype and weights):

```python
cache.save("book.safetensors")
cache = model.load_cache("book.safetensors")
```

## Batches and documents

Rows of different lengths are padded on the left (`tokenizer(texts, padding=True)`) with an attention mask. Padding is
not read, also where it fills up a row that has ended. A document begins where `position_ids` is 0 (packed rows, as TRL
makes them), where `seq_idx` changes, or where `cu_seq_lens_q` says so; its row then forgets what it has read.
`cache.start_document(rows)` does the same between calls. `model(..., memory_enabled=False)` switches the long-term
memory off. Arguments that would have no effect (`output_attentions`, `cache_implementation`, ...) are refused.

{special}. The length is not limited; `config.max_position_embeddings` is a number that no text reaches.

## Training, quantisation, evaluation

* Trainer and TRL work, with packing, gradient checkpointing (`use_reentrant=False`) and LoRA. Names for
  `target_modules`: `qkv` (queries, keys and values in one: what others call `q_proj`, `k_proj` and `v_proj`, which
  name nothing here), `attention.out` (`o_proj`), `mlp.up` ({up}), `mlp.out` (`down_proj`){lora}.
* 8 and 4 bits: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, quantization_config=
  BitsAndBytesConfig(load_in_8bit=True))`. Weights are rounded; the memory itself stays in float32.
* `device_map="auto"` may move layers to the CPU or to a disk.
* lm-eval: `lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True --batch_size 1 --tasks ...` reads
  texts whole. Give a number for `--batch_size`: `auto` tries a text of the greatest length. Where a task has no
  context, lm-eval puts `{end}` before the text, which training never did.
* Not there: vLLM, GGUF, continuous batching, static or quantised caches, assisted generation, `torch.compile` and
  `torch.export` (refused: what is written when depends on how far each text has been read).

| | |
|---|---|
| family | {family}: {norm}, {activation}, {positions} positions |
| size | {layers} layers, hidden {hidden}, {heads} heads, {kv_heads} key/value heads, feed-forward {ffn} |
| vocabulary | {vocab} tokens |
| segment / short-term memory | {segment} / {stm} tokens |
| trained | {step} steps, {tokens} tokens |
| weights | {dtype} |

It continues text in the manner of its training data and was neither tuned to follow instructions nor made safe.
Limits: what was read long ago is remembered in outline, not word for word.
"""


UP = {"swiglu": "`gate_proj` and `up_proj` in one", "gelu": "`up_proj`"}
OWN = """There is no token that begins a text (no bos): in training a document began with its own first
token, and ended with `{end}`"""
FAMILYS = """Tokenizer, chat template, special tokens and generation settings are those of the model that was
adapted, byte for byte. In training a document began with its own first token, and ended with `{end}`"""


def write_card(
    folder: Path,
    config: Config,
    run: dict[str, Any],
    dtype: str,
    files: list[str],
    end: str,
    source: str | None = None,
) -> None:
    """Write README.md. end: the token that ends a document. source: the pretrained model that was adapted, if any."""
    model, tokens = config.model, run.get("tokens")
    (folder / "README.md").write_text(
        CARD.format(
            title=config.run.folder.name,
            version=__version__,
            how="pretrained" if source is None else f"made of {source} and trained",
            special=(OWN if source is None else FAMILYS).format(end=end),
            memory=_memory(config),
            files=len(files),
            family=model.family,
            norm=model.norm,
            activation=model.activation,
            positions=model.positions,
            layers=model.layers,
            hidden=model.hidden_size,
            heads=model.heads,
            kv_heads=model.kv_heads,
            ffn=model.ffn_size,
            vocab=f"{model.vocab_size:,}",
            segment=model.segment_length,
            stm=model.stm_length,
            step=f"{run['step']:,}",
            tokens="?" if tokens is None else f"{tokens:,}",
            dtype=dtype,
            end=end,
            up=UP[model.activation],
            lora=_lora(config),
        ),
        encoding="utf-8",
    )


def _memory(config: Config) -> str:
    """What the memories are, in words."""
    described = {
        name: memory_of(section).describe(section)
        for name, section in config.model.sections().items()
    }
    if len(described) == 1:
        return next(iter(described.values()))
    return "; ".join(f"{name}: {words}" for name, words in described.items()) or (
        "this model has none but its short-term memory"
    )


def _lora(config: Config) -> str:
    """The memories' projections, for `target_modules`."""
    names = [
        f"{name}.{part}"
        for name, section in config.model.sections().items()
        for part in memory_of(section).projections(section)
    ]
    return "".join(f", `{name}`" for name in names)
