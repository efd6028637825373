"""A checkpoint loaded for reading only."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch

from infty.data.documents import Documents
from infty.errors import UserError
from infty_pretrain import checkpoint
from infty_pretrain import config as configs
from infty_pretrain.checkpoint.canonical import slice_for_rank
from infty_pretrain.evaluation import Trained


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder, or the newest whole one of a run's folder. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run's folder or one of its checkpoints")
    if (path / checkpoint.MANIFEST).exists():
        problem = checkpoint.problem_with(path)
        if problem:
            raise UserError(f"{path} is not a whole checkpoint: {problem}")
        return path
    found = checkpoint.newest_valid(path / "checkpoints")
    if found is None:
        raise UserError(
            f"{path} holds no whole checkpoint: is it the folder of a run (run.folder)?"
        )
    return found


class CheckpointModel:
    """The model of a checkpoint, without optimizer, split over the run's tensor-parallel group."""

    window = None

    def __init__(self, path: Path, documents: Documents) -> None:
        """Check that the checkpoint is whole and fits the documents; nothing is loaded yet. Raises UserError."""
        self.folder = find_checkpoint(path)
        self.config = configs.load(self.folder / checkpoint.CONFIG)
        self._reader = checkpoint.Reader(self.folder)
        run = self._reader.run
        if run["tokenizer_fingerprint"] != documents.info.tokenizer_fingerprint:
            raise UserError(
                f"{documents.folder} was prepared with another tokenizer than {self.folder} was trained with: prepare "
                f"it with --tokenizer {shlex.quote(run['tokenizer'])}"
            )
        self.description = f"checkpoint of step {run['step']:,}"

    @property
    def remembers(self) -> bool:
        """Whether it has a long-term memory."""
        return self.config.model.remembers

    @property
    def tensor(self) -> int:
        """The tensor-parallel size of its run; any other will do."""
        return self.config.parallel.tensor

    def load(self, device: str) -> Trained:
        """Needs megatron-core's parallel state."""
        from infty.models.lm import InftyLM

        model = InftyLM(self.config.model)
        checkpoint.check_shapes(model, self._reader)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(slice_for_rank(self._reader.parameter(name), p))
        if self.config.precision == "bf16":
            model.bfloat16()
        window_segments = self.config.batch.window_segments
        return Trained(model.to(device).eval(), window_segments, device)
