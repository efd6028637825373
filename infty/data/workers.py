"""Child processes that leave the decision to stop to their parent, and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from infty import stopping
from infty.errors import UserError

STOPS = set(stopping.REQUESTS)


class Workers:
    """A pool of processes. Leaving the `with` block by an error kills them at once: what they write is not whole until
    it is renamed."""

    def __init__(self, count: int, start: Callable[..., None] | None = None, *args: Any) -> None:
        # Spawned, not forked: the parent may hold threads. Making the pool starts a helper of Python's own.
        with _signals_blocked():
            self._pool = ProcessPoolExecutor(
                max(1, count),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(start, args),
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
        self._pool.shutdown()

    def map(self, function: Callable[..., Any], arguments: list[tuple]) -> Iterator[Any]:
        """Results of function(*a) for every a, as they come. Raises what the function raises."""
        with _signals_blocked():
            futures: list[Future] = [self._pool.submit(function, *a) for a in arguments]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, perhaps because memory ran out: rerun the same "
                "command with fewer --workers"
            ) from error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Children are born with the signals blocked, so that none reaches them before they ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(start: Callable[..., None] | None, args: tuple) -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if start is not None:
        start(*args)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
