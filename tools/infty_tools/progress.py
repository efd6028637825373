"""How long work that makes files shows what it does, and how it ends when it is told to."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from infty import stopping
from infty.exit_codes import STOPPED


class Stopped(typer.Exit):
    """A signal asked to stop, as from Slurm: the status says that the same command goes on."""

    def __init__(self) -> None:
        super().__init__(STOPPED)

    def __str__(self) -> str:
        return "stopped by a signal; rerun the same command to continue"


@contextmanager
def orderly_end() -> Iterator[None]:
    """Turn the signals that end a job into an orderly end."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped

    told = set(stopping.requests()) - {signal.SIGINT}  # which raises KeyboardInterrupt
    before = {number: signal.signal(number, stop) for number in told}
    try:
        yield
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """A bar for what is being done; in a log file a line now and then; nothing on the ranks nobody watches."""

    SECONDS = 30
    """Between lines in a log file."""

    def __init__(self, enabled: bool) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            transient=True,
        )
        self._enabled, self._lines = enabled, not self._bars.console.is_terminal
        self._bars.disable = self._lines or not enabled
        self._task, self._what, self._said = None, "", 0.0

    def __enter__(self) -> Progress:
        self._bars.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.__exit__(*error)

    def __call__(self, what: str, done: int, total: int) -> None:
        new, self._what = what != self._what, what
        if self._lines:
            if self._enabled and (new or time.monotonic() > self._said + self.SECONDS):
                self._said = time.monotonic()
                print(f"{what} {100 * done // total}%" if total else what, flush=True)
            return
        if new:  # a task of its own: its time left, and a bar that just moves when nobody knows how much there is
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(what, total=total or None)
        self._bars.update(self._task, completed=done)

    def tell(self, text: str) -> None:
        if self._enabled:
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
