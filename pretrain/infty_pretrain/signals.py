"""Stopping at the end of a step, on which all ranks agree."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

REQUEUE = 85
"""Exit code of a run that was asked to stop before its end and has saved: start it again to go on."""

SAME_REQUEST = 3.0
"""Seconds in which a further signal belongs to the first: launchers pass Ctrl-C on to processes that got it already."""

_HANDLED = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Set by SIGUSR1, SIGTERM, SIGINT, a file `stop` in the run's folder, or a wall-clock budget.

    A second signal (SAME_REQUEST seconds or more after the first) ends the process at once; checkpoints are whole or
    absent, so the last one is unharmed.
    """

    def __init__(self, folder: Path, device: str, budget_minutes: float | None = None) -> None:
        self.file, self.device = folder / "stop", device
        self.deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
        self.reason: str | None = None
        self._asked_at = 0.0
        for number in _HANDLED:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self.reason is None:
            self.reason, self._asked_at = signal.Signals(number).name, now
            if os.environ.get("RANK", "0") == "0":  # not print: the signal may have come in the middle of one
                os.write(2, f"{self.reason}: saving after this step; again in {SAME_REQUEST:.0f} s to stop at once\n"
                         .encode())
        elif now - self._asked_at >= SAME_REQUEST:
            os._exit(128 + number)

    def agreed(self, *also: bool) -> tuple[bool, ...]:
        """Whether any rank wants to stop, and for each of `also` whether it is true on any rank.

        Every rank must call this at the same point of the step.
        """
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file}"
        if self.reason is None and self.deadline is not None and time.monotonic() > self.deadline:
            self.reason = "the time budget"
        flags = torch.tensor([self.reason is not None, *also], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        stop, *others = flags.bool().tolist()
        if stop and self.reason is None:
            self.reason = "another rank"
        return stop, *others

    def clear_file(self) -> None:
        """Remove a stop file that has been obeyed, so that the next start goes on."""
        self.file.unlink(missing_ok=True)


def ignore_in_worker() -> None:
    """For child processes (data workers, preprocessing): the parent decides when to stop."""
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
