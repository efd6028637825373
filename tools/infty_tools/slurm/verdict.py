"""What becomes of a job when one of its steps has ended. Needs only the standard library."""

from __future__ import annotations

import enum

from infty.exit_codes import MISTAKE, STOPPED


class Verdict(enum.Enum):
    """What becomes of a job after a step."""

    FINISHED = "finished"
    REQUEUED = "requeued"
    TAKEN = "taken away by Slurm (scancel ends it, scontrol requeue starts it again)"
    FINAL = "stopped for good"


def verdict(code: int, state: str | None, *, told: bool, progress: bool, stalled: bool) -> Verdict:
    """What becomes of a job whose step ended with status `code`.

    `state` is Slurm's (None: it does not answer); `told` whether the job was told to stop;
    `progress` whether there is a newer checkpoint than before; `stalled` whether a task stood
    still.

    A job that is being cancelled is COMPLETING by now, and a requeue would bring it back to life.
    One whose state is unknown is taken to be running: it would be lost otherwise. Status 2 is a
    mistake that another start does not fix. Any other failure is tried again if this start was told to
    stop (a task that does not listen yet dies of that), got further than the one before, or had a
    task that stood still: that one is killed, and srun reports its status rather than that of the
    tasks that noticed.
    """
    if code == 0:
        return Verdict.FINISHED
    if state not in ("RUNNING", None):
        return Verdict.TAKEN
    if code == STOPPED or (code != MISTAKE and (told or progress or stalled)):
        return Verdict.REQUEUED
    return Verdict.FINAL
