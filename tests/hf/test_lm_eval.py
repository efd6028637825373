"""lm-eval's RULER tasks on an exported folder, without a network: `pip install lm_eval wonderwords nltk` to run it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from infty.hf.modeling_infty import InftyForCausalLM
from infty_tools.export.exporter import Exporter
from support.runs import make_run, tokenizer
from support.twins import VARIANTS

pytestmark = pytest.mark.usefixtures("single_process")
NEEDED = ("lm_eval", "accelerate", "wonderwords", "nltk")
MISSING = [n for n in NEEDED if importlib.util.find_spec(n) is None]
LENGTH = 4096
"""The shortest that the task has a name for, in tokens."""
EVALUATE = """
import json, socket, sys

def refuse(*_):
    raise OSError("there is no network here")

socket.socket.connect = refuse
import lm_eval
folder, length = sys.argv[1], int(sys.argv[2])
found = lm_eval.simple_evaluate(
    model="hf",
    model_args={"pretrained": folder, "trust_remote_code": True, "dtype": "float32"},
    tasks=["niah_single_1"],
    metadata={"pretrained": folder, "max_seq_lengths": [length]},
    limit=2,
    batch_size=1,
    device="cpu",
    bootstrap_iters=0,
)
samples = found["samples"]["niah_single_1"]
print(json.dumps({
    "score": found["results"]["niah_single_1"][f"{length},none"],
    "asked": [s["arguments"][0][0] for s in samples],
    "answered": [s["resps"][0][0] for s in samples],
}))
"""


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed")
def test_a_needle_is_asked_for_in_the_whole_text(tmp_path, monkeypatch):
    """What lm-eval is answered is what the model says after all of the text, memory and all."""
    monkeypatch.setattr(Exporter, "verify", lambda *_: "tested elsewhere")
    vocabulary = tokenizer(tmp_path)
    make_run(tmp_path / "run", VARIANTS["continuation"], vocabulary, 0.3)
    Exporter(tmp_path / "run").write(tmp_path / "export")
    # It looks for this folder of nltk's, which the task does not use, before it would download it.
    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)
    environment = os.environ | {
        "NLTK_DATA": str(tmp_path / "nltk"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(tmp_path / "export"), str(LENGTH)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 <= found["score"] <= 1
    model = InftyForCausalLM.from_pretrained(tmp_path / "export").eval()
    exported = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert len(found["asked"]) == 2
    for asked, answered in zip(found["asked"], found["answered"], strict=True):
        ids = torch.tensor([exported.encode(asked, add_special_tokens=False)])
        assert 0.8 * LENGTH < ids.shape[1] < LENGTH
        written = model.generate(ids, max_new_tokens=128, do_sample=False)[0, ids.shape[1] :]
        assert answered == exported.decode(written, skip_special_tokens=True)
