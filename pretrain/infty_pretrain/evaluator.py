"""A checkpoint loaded for reading only: what `infty evaluate` runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import torch
from rich.progress import Progress

from infty.data.documents import Documents
from infty.errors import UserError
from infty_pretrain import checkpoint, evaluation
from infty_pretrain import config as configs
from infty_pretrain.checkpoint.canonical import slice_for_rank
from infty_pretrain.launch import Launch, connect


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


class Evaluator:
    """The model of a checkpoint, without optimizer, split over this run's processes as the checkpoint's was, or whole
    on every process where their number does not allow that."""

    def __init__(self, path: Path, data: Path, launch: Launch) -> None:
        self.rank = launch.rank
        found = find_checkpoint(path)
        self.documents = Documents.open(data)
        self.config = configs.load(found / checkpoint.CONFIG)
        reader = checkpoint.Reader(found)
        if reader.run["tokenizer_fingerprint"] != self.documents.info.tokenizer_fingerprint:
            raise UserError(
                f"{data} was prepared with another tokenizer than {found} was trained with: prepare it "
                f"with --tokenizer {shlex.quote(reader.run['tokenizer'])}"
            )
        tensor = self.config.parallel.tensor
        self.device = connect(launch, tensor if launch.world % tensor == 0 else 1)
        self.model = self._load(reader)

    def _load(self, reader: checkpoint.Reader) -> torch.nn.Module:
        from infty.models.lm import InftyLM

        model = InftyLM(self.config.model)
        checkpoint.check_shapes(model, reader)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(slice_for_rank(reader.parameter(name), p))
        if self.config.precision == "bf16":
            model.bfloat16()
        return model.to(self.device).eval()

    def run(self, lanes: int, windows: int | None = None) -> dict[str, dict[str, float]]:
        """Figures by mode: memory "on" and "off" (only "off" for a model without)."""
        modes = ("on", "off") if self.config.model.remembers else ("off",)
        figures = {}
        with Progress(disable=self.rank != 0, transient=True) as progress:
            for mode in modes:
                task = progress.add_task(f"memory {mode}", total=None)
                figures[mode] = evaluation.evaluate(
                    self.model,
                    self.model.initial_state,
                    self.documents,
                    lanes=min(lanes, len(self.documents)),
                    segment_length=self.config.model.segment_length,
                    window_segments=self.config.batch.window_segments,
                    device=self.device,
                    windows=windows,
                    memory=mode == "on",
                    progress=lambda done, total, t=task: progress.update(
                        t, completed=done, total=total
                    ),
                )
        return figures
