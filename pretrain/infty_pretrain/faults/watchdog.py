"""A run that stands still is ended, with a table of who waits where, instead of holding its machines for hours.

A collective waits for the slowest rank for ever: a process that was stopped, a disk that does not answer, a node that
is gone without a word. Every rank tells the others where it is, through the store that they met in; a rank whose own
training has not moved for `run.stall_minutes` looks at what the others told, writes that to a file of the run's folder,
and ends with the status that asks to be started again. The rank that stands cannot: whoever starts it again has to look
at the file. The last checkpoint is whole, as after any other end.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from infty.exit_codes import STOPPED

BEATS = 4
"""How often a rank tells where it is, in a time after which it would be given up; and at least every MOST seconds."""
MOST = 10.0
REPORT = "stalled.txt"


@dataclass(frozen=True)
class Report:
    """Where a rank is, by its own account."""

    host: str
    phase: str
    ticks: int
    """How often it has moved on. All ranks make the same moves: the one with the fewest ticks is being waited for."""
    idle: float
    """Seconds since it moved on."""
    at: float
    """Its clock when it said so, seconds since the epoch."""


class Watchdog:
    """Give it the time that a rank may take between two ticks. Without minutes it does nothing."""

    def __init__(self, minutes: float | None, folder: Path) -> None:
        self.path = folder / REPORT
        self.rank, self.world, self.limit = (
            dist.get_rank(),
            dist.get_world_size(),
            60 * (minutes or 0),
        )
        self._now = (
            "starting",
            0,
            time.monotonic(),
        )  # phase, ticks, when: one assignment, so no lock
        if not minutes or self.world == 1:
            return
        self.every = min(MOST, self.limit / BEATS)
        store = (
            dist.distributed_c10d._get_default_store().clone()
        )  # a connection of its own: this one may have to wait
        self._store = dist.PrefixStore("watchdog", store)
        self._store.set_timeout(datetime.timedelta(seconds=max(1.0, self.every)))
        self._heard: dict[int, Report] = {}
        # Two threads: a store whose process was stopped never answers, and time must run out all the same.
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    def tick(self, phase: str) -> None:
        """The main thread moves on to something else; `phase` says to what, in a few words."""
        self._now = (phase, self._now[1] + 1, time.monotonic())

    def _exchange(self) -> None:
        """Tell the others, and hear them."""
        while True:
            with contextlib.suppress(
                RuntimeError, OSError
            ):  # whose process holds the store may be gone
                self._store.set(str(self.rank), json.dumps(vars(self._report())))
            self._heard = self._heard | self._others()
            time.sleep(self.every)

    def _watch(self) -> None:
        while True:
            report = self._report()
            if report.idle > self.limit:
                self._end(report)
            time.sleep(self.every)

    def _report(self) -> Report:
        phase, ticks, since = self._now
        return Report(socket.gethostname(), phase, ticks, time.monotonic() - since, time.time())

    def _end(self, mine: Report) -> None:
        """Tell who waits where, show where this process is, and leave."""
        reports = self._heard | {self.rank: mine}
        if self.rank == min(r for r, report in reports.items() if self._lives(report)):
            text = table(reports, self.world, self.limit, self.every)
            print(text, file=sys.stderr, flush=True)
            # By a thread: the disk may be what does not answer.
            threading.Thread(target=self._write, args=(text,), daemon=True).start()
            time.sleep(self.every)  # others may still want to read what this process' store holds
        print(f"rank {self.rank} stands here:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(STOPPED)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.path.write_text(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}: {text}\n")

    def _others(self) -> dict[int, Report]:
        found = {}
        for rank in range(self.world):
            with contextlib.suppress(RuntimeError, OSError, ValueError):
                if rank != self.rank and self._store.check([str(rank)]):
                    found[rank] = Report(**json.loads(self._store.get(str(rank))))
        return found

    def _lives(self, report: Report) -> bool:
        return time.time() - report.at < 3 * self.every


def table(reports: dict[int, Report], world: int, limit: float, every: float) -> str:
    """What every rank last said, and who is to blame."""
    now = time.time()
    silent = [r for r in range(world) if r not in reports or now - reports[r].at >= 3 * every]
    behind = min((reports[r].ticks for r in reports if r not in silent), default=0)
    late = silent or [r for r in sorted(reports) if reports[r].ticks == behind]
    lines = [
        f"no progress for {limit:,.0f} s; where each rank is:",
        f"{'rank':>5}  {'host':<20} {'in':<28} {'since':>9}  {'heard of':>9}",
    ]
    for rank in range(world):
        if rank not in reports:
            lines.append(f"{rank:>5}  {'?':<20} {'never heard of':<28}")
            continue
        r = reports[rank]
        lines.append(
            f"{rank:>5}  {r.host:<20} {r.phase:<28} {r.idle + now - r.at:>7.0f} s  {now - r.at:>7.0f} s"
        )
    for rank in late:
        heard = reports.get(rank)
        where = (
            "before its first message" if heard is None else f"on {heard.host} while {heard.phase}"
        )
        what = "does not answer any more; it stopped" if rank in silent else "stands"
        lines.append(
            f"rank {rank} {what} {where}"
            + ("" if len(late) == world else "; the others wait for it")
        )
    return "\n".join(lines)
