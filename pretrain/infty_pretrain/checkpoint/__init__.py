"""Checkpoints that are whole or absent, and that any layout can read.

    step-00000500/
      manifest.json             sizes and sha256 of every file; written last
      run.json                  step, reading of the lanes, layout, fingerprints
      config.yaml               the resolved config
      weights-*.safetensors     whole float32 parameters, shared out over the ranks that wrote them
      optimizer-*.safetensors   `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`
      lanes-*.safetensors       memories, one file a data-parallel rank; rows are lanes, whole over tensor parallelism
      random-*.safetensors      random streams, one file a rank

A checkpoint is written to a folder of another name, flushed to disk, given its manifest and renamed.

| module | what it knows |
|---|---|
| `format` | the names of the files, and how a folder that is not whole is recognised |
| `canonical`, `lanes` | parameters and lanes in a form that knows no layout |
| `writing`, `saver` | from an engine to a folder, and that while training goes on |
| `reading`, `restoring` | from a folder to tensors by name, and to an engine |
| `retention` | which of a run's folders are chosen, kept and deleted |
"""

from infty_pretrain.checkpoint.format import EPHEMERAL, FORMAT, problem_with
from infty_pretrain.checkpoint.reading import Reader
from infty_pretrain.checkpoint.restoring import check_shapes, load
from infty_pretrain.checkpoint.retention import candidates, newest_valid, prune, set_aside
from infty_pretrain.checkpoint.saver import Saved, Saver
from infty_pretrain.checkpoint.writing import Snapshot, collect, publish, write
from infty_pretrain.records import CONFIG, MANIFEST, RUN

__all__ = [
    "CONFIG",
    "EPHEMERAL",
    "FORMAT",
    "MANIFEST",
    "RUN",
    "Reader",
    "Saved",
    "Saver",
    "Snapshot",
    "candidates",
    "check_shapes",
    "collect",
    "load",
    "newest_valid",
    "problem_with",
    "prune",
    "publish",
    "set_aside",
    "write",
]
