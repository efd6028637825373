"""Checkpoints that are written while training goes on.

Training stands still while what makes a checkpoint is copied to host memory. A thread of each rank then writes, and at
the first end of a step at which all threads are done the checkpoint is published: given its manifest and its name.
Until then it is a folder that no start of a run looks at.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from infty_pretrain.checkpoint import retention, writing
from infty_pretrain.config import CheckpointConfig
from infty_pretrain.engine import Engine


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is in place, and what it cost this rank."""

    path: Path
    stall: float
    """Seconds for which training stood still."""
    written: float
    """Seconds that writing took."""


class _Writing(threading.Thread):
    """Writes a snapshot. A daemon: a run that ends in an error does not wait for it."""

    def __init__(self, snapshot: writing.Snapshot) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self.snapshot, self.seconds = snapshot, 0.0
        self.digests: dict[str, Any] = {}
        self.problem: str | None = "the checkpoint could not be written (see the error above)"

    def run(self) -> None:
        start = time.monotonic()
        self.digests, self.problem = writing.write(self.snapshot)
        self.seconds = time.monotonic() - start


class Saver:
    """Saves one checkpoint at a time. All methods but `writing` are collectives."""

    def __init__(self, engine: Engine, folder: Path, config: CheckpointConfig) -> None:
        self.engine, self.folder, self.config = engine, folder, config
        self._thread: _Writing | None = None
        self._stall = 0.0

    def writing(self) -> bool:
        """Whether this rank's thread is still at it."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is written and not yet published; the same on every rank."""
        return self._thread is not None

    def start(self, run: dict[str, Any]) -> Saved | None:
        """Begin the checkpoint of step `run["step"]`. Returns the one before, if it was still to be published.

        Raises UserError when that one could not be written.
        """
        before = self.finish()
        start = time.monotonic()
        self._thread = _Writing(writing.collect(self.engine, self.folder, run))
        self._thread.start()
        self._stall = time.monotonic() - start
        return before

    def finish(self) -> Saved | None:
        """Wait until what was begun is written, and publish it. Raises UserError when it could not be written."""
        if self._thread is None:
            return None
        start, thread, self._thread = time.monotonic(), self._thread, None
        thread.join()
        writing.publish(thread.snapshot, thread.digests, thread.problem)
        if dist.get_rank() == 0:
            retention.prune(self.folder, self.config.keep_last, self.config.keep_every)
        return Saved(thread.snapshot.final, self._stall + time.monotonic() - start, thread.seconds)
