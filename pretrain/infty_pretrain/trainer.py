"""The training program, read from top to bottom."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from infty import files
from infty.access import refused
from infty.data.documents import Documents
from infty.data.lanes import LaneReader, LaneSchedule, usable_documents
from infty.errors import UserError
from infty.exit_codes import STOPPED
from infty.parallel import groups
from infty_pretrain import checkpoint, curriculum, evaluation, lock, memory_modes, origin, schedule
from infty_pretrain import config as configs
from infty_pretrain.checkpoint import Saved, Saver, canonical
from infty_pretrain.config import Config
from infty_pretrain.engine import Engine, StepResult
from infty_pretrain.faults.watchdog import REPORT, Watchdog
from infty_pretrain.launch import Launch, connect
from infty_pretrain.monitor import WHY, Monitor
from infty_pretrain.records import DONE, GAVE_UP
from infty_pretrain.records import STOPPED as WAS_STOPPED
from infty_pretrain.signals import StopFlag


def validate(config: Config, world: int) -> Config:
    """Everything that can be known to be wrong before any process is connected. Returns the resolved config."""
    documents = Documents.open(config.data.train)
    config = config.with_vocab(documents.vocab_size)
    if config.init.from_ is not None and not checkpoint.candidates(
        config.run.folder / "checkpoints"
    ):
        origin.check(config, origin.find(config.init.from_), documents.info.tokenizer_fingerprint)
    if config.data.validation is not None:
        held_out = Documents.open(config.data.validation)
        if held_out.info.tokenizer_fingerprint != documents.info.tokenizer_fingerprint:
            raise UserError(
                f"data.validation ({config.data.validation}) was made with a different tokenizer than "
                f"data.train ({config.data.train}): prepare them together"
            )
    config.check_layout(world)
    _check_folder(config.run.folder)
    return config


def crowding(lengths: np.ndarray, lanes: int) -> str | None:
    """What to say of a run with more lanes than documents of these `lengths` (tokens); None for any other."""
    usable = usable_documents(lengths)
    if lanes <= usable:
        return None
    most = math.ceil(lanes / usable)
    return (
        f"batch.lanes: {lanes} lanes for {usable} document(s): {lanes - usable} of them begin with a document that "
        f"another lane also reads, so that a step holds up to {most} identical rows, which teach nothing new: use "
        f"{usable} lanes or fewer, or more documents"
    )


def _check_folder(folder: Path) -> None:
    """Refuse a run's folder that is something else or cannot be written; make nothing yet."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.folder: {folder} is a file")
    if (folder / checkpoint.MANIFEST).exists():
        raise UserError(
            f"run.folder: {folder} is a checkpoint, which a run would spoil: give a new folder (and "
            "init.from for the checkpoint to begin with)"
        )
    if folder.is_dir() and not (folder / "config.yaml").exists():
        others = {
            p.name for p in folder.iterdir() if not p.name.startswith("config.yaml" + files.PARTIAL)
        } - {lock.NAME, REPORT, "stop", origin.ORIGINAL}
        if others:
            raise UserError(f"run.folder: {folder} holds other files; give a new or empty folder")
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(
            f"run.folder: {folder} cannot be made or written: {above} is not a writable folder"
        )


class Trainer:
    """One run: from a new folder or from its newest checkpoint, to its last step or to a stop."""

    def __init__(self, config: Config, launch: Launch) -> None:
        self.config = config = validate(config, launch.world)
        self.rank, self.folder = launch.rank, config.run.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoints = self.folder / "checkpoints"
        self.device = connect(launch, config.parallel.tensor, config.run.stall_minutes)
        self.watchdog = Watchdog(config.run.stall_minutes, self.folder)
        self.stop = StopFlag(self.folder, self.device, config.run.minutes)
        self.train_data = Documents.open(config.data.train)
        self.validation = Documents.open(config.data.validation) if config.data.validation else None
        self.engine = Engine(config, self.device)
        lanes = LaneSchedule(
            self.train_data.lengths,
            config.batch.lanes,
            config.model.segment_length,
            config.run.seed,
        )
        self.reader = LaneReader(self.train_data, lanes, self.engine.lanes)
        self.step, tokens = self._resume()
        self.monitor = Monitor(config, self.device, self.rank, self.step, tokens)
        self.saver = Saver(self.engine, self.checkpoints, config.checkpoint)
        self.last_saved, self.last_saved_at = self.step, time.monotonic()

    def run(self) -> int:
        """Train. Returns the exit code: 0 at the end, `STOPPED` when stopped before it."""
        self._greet()
        stopped = self._train()
        self.watchdog.tick("saving")
        self._saved(self.saver.finish())
        if stopped:
            return self._stopped()
        total = self.config.total_steps
        self.monitor.event(DONE, self.step, tokens=self.monitor.tokens)
        self.monitor.say(
            f"done: {total} steps, {self.monitor.tokens:,} tokens; checkpoint in {self.checkpoints}"
        )
        self.monitor.close()
        return 0

    def _train(self) -> bool:
        """Steps, and what falls due between them. Returns whether the run was stopped before its end."""
        total = self.config.total_steps
        while self.step < total:
            self.train_step()
            if self._due(self.config.evaluation.every):
                self._evaluate()
            stop, writing, overdue = self.stop.agreed(self.saver.writing(), self._overdue())
            stopping = stop and self.step < total
            if self.saver.pending and not writing:
                self._saved(self.saver.finish())
            lasting = stopping or self.step == total or self._due(self.config.checkpoint.every)
            if lasting or overdue:
                self.save(ephemeral=not lasting)
            if stopping:
                return True
        return False

    def train_step(self) -> None:
        self.watchdog.tick(f"reading data for step {self.step + 1}")
        with self.monitor.timed("reading"):
            segments = curriculum.window_segments(self.config.batch, self.step)
            window = self.reader.next_window(segments)
        self.watchdog.tick(f"computing step {self.step + 1}")
        rate = self.engine.set_rate(
            schedule.factor(self.step, self.config.total_steps, self.config.schedule)
        )
        next_step = self.step + 1
        wanted = self.monitor.wants_statistics(next_step), self.monitor.wants_pictures(next_step)
        result = self.engine.step(window, *wanted)
        self.step = next_step
        self.monitor.step(self.step, result, rate, self.engine.faults, self.reader.schedule)
        faults, over = self.engine.faults, self.step == self.config.total_steps
        if faults.in_a_row >= self.config.faults.patience or (faults.suspect and over):
            self._give_up(result)

    def _give_up(self, result: StepResult) -> None:
        """Raise UserError after too many skipped steps; keep what the steps before them have learned."""
        self._saved(self.saver.finish())
        kept = f"Nothing was saved after step {self.last_saved}"
        if not self.engine.faults.suspect:
            self.save()
            self._saved(self.saver.finish())
            kept = (
                f"Nothing was lost: skipped steps change no weights, and step {self.step} is saved"
            )
        self.monitor.event(GAVE_UP, self.step, why=result.skipped)
        raise UserError(
            f"step {self.step}: {self.engine.faults.in_a_row} steps in a row were skipped (faults.patience: "
            f"{self.config.faults.patience}), the last {WHY[result.skipped]}. {kept}. Lower optimizer.lr, look at the "
            "data, or, if such losses are expected, raise faults.spike_sigma; then start again"
        )

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _overdue(self) -> bool:
        """Whether a checkpoint is due by this rank's clock."""
        minutes = self.config.checkpoint.minutes
        return minutes is not None and time.monotonic() - self.last_saved_at > 60 * minutes

    def _evaluate(self) -> None:
        config = self.config
        self.engine.deepspeed.eval()
        model = evaluation.Trained(
            self.engine.model, config.batch.window_segments, self.device, self.engine.deepspeed
        )
        figures = {}
        for mode in self._modes():
            tally = evaluation.evaluate(
                memory_modes.reading(model, mode, self.validation),
                self.validation,
                lanes=config.batch.lanes,
                windows=config.evaluation.windows,
                progress=lambda done, _: self.watchdog.tick(f"evaluating, {done:,} tokens"),
            )
            figures[mode] = evaluation.figures(tally, self.validation)
        self.engine.deepspeed.train()
        self.monitor.evaluation(self.step, figures)

    def _modes(self) -> tuple[str, ...]:
        return ("on", "off") if self.config.model.remembers else ("off",)

    def save(self, ephemeral: bool = False) -> None:
        if self.engine.faults.suspect:
            self.monitor.say(
                f"step {self.step} is not saved: its loss is not finite, perhaps because of the weights"
            )
        if self.engine.faults.suspect or self.last_saved == self.step:
            return
        run = {
            "step": self.step,
            "tokens": self.monitor.tokens,
            "lanes": self.reader.schedule.state(),
            "data_fingerprint": self.train_data.fingerprint,
            "tokenizer_fingerprint": self.train_data.info.tokenizer_fingerprint,
            "tokenizer": str((self.train_data.folder / "tokenizer").resolve()),
            "faults": self.engine.faults.state(),
            checkpoint.EPHEMERAL: ephemeral,
        }
        if (self.folder / origin.ORIGINAL).is_dir():
            run["original"] = str((self.folder / origin.ORIGINAL).resolve())
        self.monitor.flush()
        self.watchdog.tick(f"saving step {self.step}")
        self._saved(self.saver.start(run))
        if not self.config.checkpoint.overlap:
            self._saved(self.saver.finish())
        self.last_saved, self.last_saved_at = self.step, time.monotonic()
        self.monitor.pause()

    def _saved(self, checkpoint: Saved | None) -> None:
        if checkpoint is not None:
            self.monitor.saved(checkpoint)

    def _stopped(self) -> int:
        self.monitor.event(WAS_STOPPED, self.step, reason=self.stop.reason)
        self.monitor.say(
            f"stopped by {self.stop.reason} after step {self.step}/{self.config.total_steps}; "
            f"rerun the same command to resume from the checkpoint of step {self.last_saved}"
        )
        if self.rank == 0:
            self.stop.clear_file()
        self.monitor.close()
        return STOPPED

    def _resume(self) -> tuple[int, int]:
        """Go on from the newest whole checkpoint, if there is one. Returns (step, tokens)."""
        found = self._on_first(self._prepare_folder)
        path = next((p for p in found if self._whole(p)), None)
        self._on_first(lambda: checkpoint.set_aside(self.checkpoints, path))
        if path is None:
            self._begin()
            return 0, 0
        run = checkpoint.Reader(path).run
        self._check_data(run, path)
        self._check_trained(path)
        kept = self.reader.schedule.restore(run["lanes"])
        checkpoint.load(self.engine, path, kept)
        self.engine.faults.restore(run.get("faults"))
        if self.config.checkpoint.memory == "replay":
            self._replay()
        if self.rank == 0:
            print(f"resumed from {path} at step {run['step']}", flush=True)
            changes = configs.differences(configs.load(path / checkpoint.CONFIG), self.config)
            if changes:
                print(f"changed since then: {'; '.join(changes)}", flush=True)
        return run["step"], run["tokens"]

    def _begin(self) -> None:
        """Take the weights of the checkpoint that the run is to begin with, if it names one."""
        if self.config.init.from_ is None:
            return
        path = self._on_first(lambda: origin.find(self.config.init.from_))
        if not self._whole(path):
            raise UserError(f"init.from: {path} is not a whole checkpoint (see above)")
        self._on_first(lambda: origin.keep_original(path, self.folder))
        read = origin.weights_for(checkpoint.Reader(path), self.engine.model)
        filled, fresh = canonical.load_weights(self.engine.deepspeed, read)
        if self.rank == 0:
            words = f"; {fresh} that are not there begin fresh" if fresh else ""
            print(f"began with {filled} weights of {path}{words}", flush=True)

    def _on_first(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, on every rank; what it finds wrong there is raised on every rank."""
        outcome: list = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except PermissionError as error:
                outcome[1] = refused(error)
            except (UserError, OSError) as error:
                outcome[1] = str(error)
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def _whole(self, path: Path) -> bool:
        """Whether a checkpoint is whole. Every rank reads a share of it, or a large one would take an hour. Raises
        UserError when nobody can know."""
        self.watchdog.tick(f"checking {path.name}")
        found: list = [None] * dist.get_world_size()
        try:
            mine = checkpoint.problem_with(path, self.rank, len(found)), None
        except UserError as error:
            mine = None, str(error)
        dist.all_gather_object(found, mine)
        problem, refusal = (next((x for x in each if x is not None), None) for each in zip(*found))
        if refusal is not None:
            raise UserError(refusal)
        if problem is not None and self.rank == 0:
            print(f"skipping checkpoint {path.name}: {problem}", flush=True)
        return problem is None

    def _prepare_folder(self) -> list[Path]:
        """Have the folder to ourselves; store the resolved config; remove what a killed run was writing. Returns the
        checkpoints that are there, newest first."""
        self.lock = lock.take(self.folder)
        files.write_whole(self.folder / "config.yaml", self.config.to_yaml())
        (self.folder / "stop").unlink(missing_ok=True)
        for leftover in self.checkpoints.glob(f"*{files.PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        return checkpoint.candidates(self.checkpoints)

    def _check_data(self, run: dict, path: Path) -> None:
        for key, name, value in (
            ("tokenizer_fingerprint", "tokenizer", self.train_data.info.tokenizer_fingerprint),
            ("data_fingerprint", "dataset", self.train_data.fingerprint),
        ):
            if run[key] != value:
                raise UserError(
                    f"{path} was trained with another {name} than data.train ({self.config.data.train}): "
                    "give the one the run began with, or another run.folder"
                )

    def _check_trained(self, path: Path) -> None:
        """What began to learn later would have no optimizer state to go on from."""
        before = configs.load(path / checkpoint.CONFIG).train
        if before != self.config.train:
            raise UserError(
                f"train: {path} was trained with {before}, this config says {self.config.train}: begin a new "
                f"run from it (init.from: {path}, and another run.folder)"
            )

    def _replay(self) -> None:
        self.engine.deepspeed.eval()
        state = evaluation.replay(
            self.engine.deepspeed,
            self.engine.model.initial_state(len(self.engine.lanes), self.device),
            self.reader,
            self.config.batch.window_segments,
            self.device,
            progress=lambda done, total: self.watchdog.tick(f"replaying, {done} of {total}"),
        )
        self.engine.deepspeed.train()
        self.engine.set_lane_state(state)

    def _greet(self) -> None:
        c = self.config
        layout = f"{groups.data_size()} data x {groups.tensor_size()} tensor parallel"
        learning = ""
        if c.train != "everything":
            learning = f", {self.engine.trained_count:,} of them learning (train: {c.train}),"
        self.monitor.say(
            f"{self.engine.parameter_count:,} parameters{learning} on "
            f"{groups.data_size() * groups.tensor_size()} process(es) ({layout}, "
            f"ZeRO-{c.parallel.zero_stage}, {c.precision}, {self.device.split(':')[0]}); "
            f"{c.batch.lanes} lanes x {c.batch.window_segments} segments x {c.model.segment_length} tokens = "
            f"{c.tokens_per_step:,} tokens per step; {len(self.train_data)} documents, "
            f"{self.train_data.info.tokens:,} tokens"
        )
        self.monitor.began(
            parameters=self.engine.parameter_count,
            learning=self.engine.trained_count,
            processes=groups.data_size() * groups.tensor_size(),
            layout=f"{layout}, ZeRO-{c.parallel.zero_stage}, {c.precision}",
            device=self.device.split(":")[0],
            documents=len(self.train_data),
            tokens=self.train_data.info.tokens,
        )
        if crowded := crowding(self.train_data.lengths, c.batch.lanes):
            self.monitor.say(crowded)
