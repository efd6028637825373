"""Is an export the model that was trained? Loaded in a process of its own that can import nothing of this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infty.config import ModelConfig
from infty.errors import UserError
from infty.models.lm import InftyLM
from infty_tools.export.standalone import HIDE

SEGMENTS = 4
COLUMNS = 24  # logits compared in every segment
# Of the largest logit. What rounding does beyond that is measured, by reading in another order.
TOLERANCE = 2e-4

ALONE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, work = sys.argv[1:]
given = load_file(work + "/given.safetensors")
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    out = model(given["tokens"], logits_to_keep=given["columns"])
save_file({"logits": out.logits.float().contiguous()}, work + "/got.safetensors")
texts = json.load(open(work + "/texts.json"))
json.dump([tokenizer(t)["input_ids"] for t in texts], open(work + "/ids.json", "w"))
"""


def tokens(config: ModelConfig) -> Tensor:
    """int64 [1, T]: some segments and a part of one more."""
    generator = torch.Generator().manual_seed(0)
    length = SEGMENTS * config.segment_length - config.segment_length // 3
    return torch.randint(0, config.vocab_size, (1, length), generator=generator)


def columns(length: int) -> Tensor:
    """int64: the columns whose logits are compared."""
    return torch.linspace(0, length - 1, min(length, SEGMENTS * COLUMNS)).long()


def run_alone(folder: Path, given: Tensor, texts: list[str]) -> tuple[Tensor, list[list[int]]]:
    """Logits float32 [1, C, V] of the exported model, and its tokenizer's ids. Raises UserError if it does not load."""
    with tempfile.TemporaryDirectory() as work:
        save_file(
            {"tokens": given, "columns": columns(given.shape[1])}, f"{work}/given.safetensors"
        )
        Path(work, "texts.json").write_text(json.dumps(texts))
        environment = os.environ | {
            "HF_MODULES_CACHE": f"{work}/modules",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-c", HIDE + ALONE, str(folder.resolve()), work]
        done = subprocess.run(
            command, env=environment, cwd=work, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(
                "the export does not load by itself, so nothing was exported. It said:\n"
                f"{done.stderr[-3000:]}"
            )
        return load_file(f"{work}/got.safetensors")["logits"], json.loads(
            Path(work, "ids.json").read_text()
        )


@torch.no_grad()
def compare(model: InftyLM, given: Tensor, got: Tensor) -> str:
    """Raise UserError unless the logits are the training model's to rounding; say how close they are.

    The memory may magnify rounding from segment to segment. How much it does in this model shows in the training
    model itself, reading all segments at once and one by one.
    """
    expected, again = _logits(model, given, SEGMENTS), _logits(model, given, 1)
    scale = expected.abs().max().item()
    difference = (got - expected).abs().amax((0, 2))
    allowed = TOLERANCE * scale + 20 * torch.cummax((again - expected).abs().amax((0, 2)), 0).values
    if (
        got.shape != expected.shape
        or not torch.isfinite(got).all()
        or bool((difference > allowed).any())
    ):
        raise UserError(
            f"the exported model is not the trained one: logits differ by {difference.max():.2g} (largest "
            f"logit {scale:.2g}). Nothing was exported; this is a fault of infty, please report it"
        )
    return (
        f"Verified in a process without infty: same tokens, same logits over {SEGMENTS} segments (to "
        f"{difference.max() / scale:.0e} of the largest)"
    )


def _logits(model: InftyLM, given: Tensor, at_once: int) -> Tensor:
    """float32 [1, C, V] of the training model, reading `at_once` segments a window."""
    config = model.config
    padded = torch.zeros(1, SEGMENTS * config.segment_length, dtype=torch.int64)
    padded[:, : given.shape[1]] = given
    state, parts = model.initial_state(1), []
    for i, window in enumerate(padded.unflatten(1, (SEGMENTS, -1)).split(at_once, 1)):
        reset = torch.zeros(window.shape[:2], dtype=torch.bool)
        reset[:, 0] = i == 0
        logits, out = model(window, reset, state)
        state = out.state
        parts.append(logits.flatten(1, 2)[..., : config.vocab_size])
    keep = columns(given.shape[1])
    if at_once == SEGMENTS:
        return parts[0][:, keep]
    return torch.cat(
        [
            p[:, keep[keep // config.segment_length == i] % config.segment_length]
            for i, p in enumerate(parts)
        ],
        1,
    )
