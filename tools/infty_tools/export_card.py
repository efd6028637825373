"""The model card of an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infty import __version__
from infty_pretrain.config import Config

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [infty, continuous-memory, long-context]
---
# {title}

A decoder language model with an unbounded continuous memory, pretrained with infty {version} on whole books. Its
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

**Long texts.** The state between calls is an `InftyCache`; read a book in parts and go on where you stopped:

```python
cache = None
for part in tokenizer(book, return_tensors="pt").input_ids.split(4096, 1):
    cache = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
```

The cache can be copied (`copy.deepcopy`) and reordered (beam search), but not cropped. Rows of different lengths are
padded on the left with an attention mask; padding is not read. `model(..., memory_enabled=False)` switches the
long-term memory off.

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


def write_card(folder: Path, config: Config, run: dict[str, Any], dtype: str, files: list[str]) -> None:
    """Write README.md."""
    model, tokens = config.model, run.get("tokens")
    (folder / "README.md").write_text(CARD.format(
        title=config.run.folder.name, version=__version__, memory=_memory(config), files=len(files),
        family=model.family, norm=model.norm, activation=model.activation, positions=model.positions,
        layers=model.layers, hidden=model.hidden_size, heads=model.heads, kv_heads=model.kv_heads, ffn=model.ffn_size,
        vocab=f"{model.vocab_size:,}", segment=model.segment_length, stm=model.stm_length, step=f"{run['step']:,}",
        tokens="?" if tokens is None else f"{tokens:,}", dtype=dtype), encoding="utf-8")


def _memory(config: Config) -> str:
    memory = config.model.memory
    if memory is None:
        return "this model has none but its short-term memory"
    return f"{memory.basis} basis functions a head and layer, contraction {memory.contraction}, sticky: {memory.sticky}"
