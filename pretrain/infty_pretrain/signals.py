"""Stopping at the end of a step, on which all ranks agree."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from infty import stopping

SAME_REQUEST = 3.0
"""Seconds in which a further signal belongs to the first: launchers pass Ctrl-C on to processes that got it already."""


class StopFlag:
    """Set by one of `stopping.requests()`, a file `stop` in the run's folder, or a wall-clock budget.

    A second signal (SAME_REQUEST seconds or more after the first) ends the process at once; checkpoints are whole or
    absent, so the last one is unharmed. The budget stops in time: when another step, or an evaluation or a checkpoint
    that lasts as long as the longest so far, would go beyond it.
    """

    def __init__(self, folder: Path, device: str, budget_minutes: float | None = None) -> None:
        self.file, self.device = folder / "stop", device
        self.deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
        self.reason: str | None = None
        self._asked, self._longest = time.monotonic(), 0.0
        _listen()
        for number in stopping.requests():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self.reason is None:
            self.reason = signal.Signals(number).name

    def agreed(self, *also: bool) -> tuple[bool, ...]:
        """Whether any rank wants to stop, and for each of `also` whether it is true on any rank.

        Every rank must call this at the same point of the step.
        """
        if self.reason is None and self.file.exists():
            self.reason = f"the file {self.file}"
        now = time.monotonic()
        self._longest, self._asked = max(self._longest, now - self._asked), now
        if (
            self.reason is None
            and self.deadline is not None
            and now + self._longest > self.deadline
        ):
            self.reason = "the time budget"
        flags = torch.tensor(
            [self.reason is not None, *also], dtype=torch.int32, device=self.device
        )
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        stop, *others = flags.bool().tolist()
        if stop and self.reason is None:
            self.reason = "another rank"
        return stop, *others

    def clear_file(self) -> None:
        """Remove a stop file that has been obeyed, so that the next start goes on."""
        self.file.unlink(missing_ok=True)


class _Ear:
    """Says that a first signal was heard, and ends the process at a second one.

    In a thread: a handler runs in the main thread, which may stand in a collective that another rank never joins, and
    that is when somebody sends a second signal.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        """When the first signal came."""
        self._mouth, self._ear = (
            socket.socketpair()
        )  # where the interpreter writes the numbers of signals
        self._mouth.setblocking(False)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while heard := self._ear.recv(1):
            number, now = heard[0], time.monotonic()
            if number not in stopping.REQUESTS:
                continue
            if self.first is None:
                self.first = now
                if os.environ.get("RANK", "0") == "0":
                    self._tell(number)
            # Nobody asks twice by SIGXCPU: the kernel repeats it every second.
            elif now - self.first >= SAME_REQUEST and number != signal.SIGXCPU:
                os._exit(128 + number)

    @staticmethod
    def _tell(number: int) -> None:
        text = (
            f"{signal.Signals(number).name}: saving after this step; again in {SAME_REQUEST:.0f} s to stop at "
            "once\n"
        )
        with contextlib.suppress(
            OSError
        ):  # the terminal may have been closed: that is what SIGHUP says
            os.write(2, text.encode())


_ear: _Ear | None = None
"""Open as long as the process: the interpreter writes to it."""


def _listen() -> None:
    global _ear
    if _ear is None:
        _ear = _Ear()
    _ear.first = None  # a new run


def _forget() -> None:
    """In a forked child: its signals are not its parent's."""
    global _ear
    if _ear is not None:
        signal.set_wakeup_fd(-1)
        _ear = None


os.register_at_fork(after_in_child=_forget)
