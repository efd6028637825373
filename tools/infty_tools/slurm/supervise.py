"""Runs the steps of a Slurm job, passes signals on to them, and requeues the job when needed.

A batch script hands over by `exec python -m infty_tools.slurm.supervise`, so that Slurm's signals to
the batch script reach this process. It needs only the standard library: where training runs in a
container, the batch script runs outside it.

One start of a job:

    begin ──> preflight ──> step ──> verdict: FINISHED, REQUEUED, TAKEN or FINAL
      └ too many starts       └ USR1 or TERM: passed on to every task, which saves, then exits 85

`LOGS/JOB/summary.txt` says what happened, `LOGS/JOB/starts` has a line for each start, and
`LOGS/JOB/node-N.log` holds the output of the tasks of node N.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infty_tools.slurm import rendezvous
from infty_tools.slurm.controller import Controller
from infty_tools.slurm.verdict import MISTAKE, STOPPED, Verdict, verdict

DIED_OF_USR1 = 128 + signal.SIGUSR1
TOLD = {"USR1": signal.SIGUSR1, "TERM": signal.SIGTERM}
"""What tells a job to stop: Slurm or a person before the time limit, or scancel."""
WORDS = {"USR1": "told to stop", "TERM": "cancelled"}
GRACE = 60.0
"""Seconds in which Slurm ends the batch script of a job that has been requeued."""


@dataclass(frozen=True)
class Verb:
    """How a job that runs this verb is treated."""

    distributed: bool
    """Its processes need MASTER_ADDR and MASTER_PORT."""
    resumable: bool
    """Started again, it continues where it was."""
    preflight: bool
    """`infty doctor` looks at the nodes first."""


VERBS = {
    "pretrain": Verb(distributed=True, resumable=True, preflight=True),
    "prepare": Verb(distributed=False, resumable=True, preflight=False),
    "evaluate": Verb(distributed=True, resumable=False, preflight=False),
}


class Signals:
    """USR1, TERM and CHLD, held back by the kernel until they are asked for: none is lost."""

    def __init__(self) -> None:
        self._numbers = {*TOLD.values(), signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
        for number in self._numbers:  # the batch script ignores them while this interpreter starts
            signal.signal(number, signal.SIG_DFL)

    def wait(self, seconds: float | None = None) -> str | None:
        """The name of the next one: USR1, TERM or CHLD; None when none came within `seconds`."""
        if seconds is None:
            return signal.Signals(signal.sigwait(self._numbers)).name[3:]
        found = signal.sigtimedwait(self._numbers, seconds)
        return found and signal.Signals(found.si_signo).name[3:]


class Journal:
    """A job's folder of logs: its summary and the count of its starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = folder / "starts"

    def say(self, text: str) -> None:
        """Write a line to the summary and to the script's output. A full disk ends no job."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}  {text}\n"
        for write in (self._to_output, self._to_summary):
            try:
                write(line)
            except OSError:
                continue

    def _to_output(self, line: str) -> None:
        sys.stdout.write(line)
        sys.stdout.flush()

    def _to_summary(self, line: str) -> None:
        with open(self.folder / "summary.txt", "a") as f:
            f.write(line)

    def count_start(self, restarts: int) -> int:
        """The number of this start; Slurm's own count of restarts stands in for a file that cannot
        be written."""
        try:
            with open(self.starts, "a") as f:
                f.write("start\n")
            return len(self.starts.read_text().splitlines())
        except OSError:
            return restarts + 1


@dataclass(frozen=True)
class Request:
    """What a batch script asks for."""

    verb: str
    arguments: list[str]
    program: list[str]
    """What runs the verb: `infty`, or `python -m infty_tools`."""
    srun: list[str]
    """Further options of srun."""
    starts: int
    run: Path | None
    """Folder of the training run: its checkpoints tell progress."""


class Supervisor:
    """One start of a job."""

    def __init__(
        self,
        request: Request,
        controller: Controller,
        journal: Journal,
        signals: Signals,
        environment: Mapping[str, str],
        told: str = "",
    ) -> None:
        self.request = request
        self.kind = VERBS[request.verb]
        self.controller = controller
        self.journal = journal
        self.signals = signals
        self.environment = dict(environment)
        self.told = told
        self.say = journal.say

    def run(self) -> int:
        """Everything a start does. Returns the exit status of the batch script."""
        if not self._begin() or not self._meet():
            return 1
        before = self.newest()
        if self.kind.preflight:
            code = self._step("doctor")
            if self.told:
                return self._conclude(STOPPED, before)  # nothing has begun
            if code != 0:
                return self._refuse()
            self.say("preflight passed")
        return self._conclude(self._step(self.request.verb), before)

    def newest(self) -> str | None:
        """The path of the run's newest checkpoint. Unfinished and damaged ones have longer names."""
        if self.request.run is None:
            return None
        steps = {
            p.name.removeprefix("step-"): p for p in self.request.run.glob("checkpoints/step-*")
        }
        newest = max((step for step in steps if step.isdigit()), key=int, default=None)
        return None if newest is None else str(steps[newest])

    def stalled(self) -> bool:
        """Whether a task has been found to stand still in this start."""
        if self.request.run is None:
            return False
        try:
            report = self.request.run / "stalled.txt"
            return report.stat().st_mtime_ns > self.journal.starts.stat().st_mtime_ns
        except OSError:
            return False

    def _begin(self) -> bool:
        """Count this start; False when it is one too many."""
        if self.told:
            self.say(WORDS[self.told])
        if not self.kind.resumable:
            return True
        start = self.journal.count_start(int(self.environment.get("SLURM_RESTART_COUNT", 0)))
        most = self.request.starts
        self.say(
            f"start {start} of at most {most} on {self.environment.get('SLURM_JOB_NODELIST', '?')}"
        )
        if start > most:
            self.say(f"stopped for good: too many starts; look at {self.journal.folder}")
        return start <= most

    def _meet(self) -> bool:
        """Choose where the processes meet; False when there is no such place."""
        if not self.kind.distributed:
            return True
        try:
            place = rendezvous.choose(self.environment, self.controller)
        except rendezvous.NowhereToMeet as error:
            self.say(f"stopped for good: {error}")
            return False
        for note in place.notes:
            self.say(note)
        self.environment.update(MASTER_ADDR=place.address, MASTER_PORT=str(place.port))
        return True

    def _command(self, verb: str) -> list[str]:
        # Tasks end together and mean the same status; to kill the others at the first would hide
        # it. A task that is left behind by a crash has a minute.
        ends = (
            ["--kill-on-bad-exit=0", "--wait=60"]
            if self.kind.resumable
            else ["--kill-on-bad-exit=1"]
        )
        logs = str(self.journal.folder).replace("%", "%%")
        return [
            "srun",
            "--open-mode=append",
            f"--output={logs}/node-%n.log",
            *ends,
            *self.request.srun,
            *self.request.program,
            verb,
            *self.request.arguments,
        ]

    def _step(self, verb: str) -> int:
        """Run a job step, pass signals on to it, and return its status: 85 if told to stop before
        it began."""
        while (event := self.signals.wait(0)) is not None:
            self._hear(event)
        if self.told:
            return STOPPED
        try:
            process = self.controller.start(self._command(verb), self.environment)
        except OSError as error:
            self.say(f"srun cannot be started ({error})")
            return 127
        while process.poll() is None:
            event = self.signals.wait()
            if self._hear(event, passed_on=True):
                process.send_signal(TOLD[event])  # srun hands it to every task
        code = process.returncode
        code = 128 - code if code < 0 else code
        if code == DIED_OF_USR1:
            self.told = "USR1"  # its tasks were told (scancel --signal=USR1), and died of it
        return code

    def _hear(self, event: str | None, passed_on: bool = False) -> bool:
        """Take note of a signal; False for the end of a child."""
        if event not in TOLD:
            return False
        self.told = event
        self.say(WORDS[event] + ("; passed on" if passed_on else ""))
        return True

    def _refuse(self) -> int:
        """End a start whose preflight has found something."""
        if self.controller.state() not in ("RUNNING", None):
            self.say(Verdict.TAKEN.value)  # a lost node looks like a failed preflight
        else:
            self.say(
                "stopped for good: infty doctor found something wrong, "
                f"see {self.journal.folder}/node-*.log"
            )
        return 1

    def _conclude(self, code: int, before: str | None) -> int:
        """Say how a step ended and requeue the job if it should go on. Returns the status."""
        if not self.kind.resumable:
            self.say(f"ended with status {code}; results are in {self.journal.folder}/node-0.log")
            return code
        after = self.newest()
        state = self.controller.state()
        checkpoint = f"; newest checkpoint: {after or 'none'}" if self.request.run else ""
        self.say(f"ended with status {code} (JobState={state or 'unknown'}){checkpoint}")
        decided = verdict(
            code, state, told=bool(self.told), progress=after != before, stalled=self.stalled()
        )
        if decided is Verdict.REQUEUED:
            self._requeue()
        else:
            self.say(
                decided.value
                + (f", see {self.journal.folder}/node-*.log" if decided is Verdict.FINAL else "")
            )
        return code

    def _requeue(self) -> None:
        problem = self.controller.requeue()
        if problem is not None:
            self.say(
                f"could not be requeued ({problem}): "
                f"scontrol requeue {self.controller.job} starts it again"
            )
            return
        self.say(Verdict.REQUEUED.value)
        deadline = time.monotonic() + GRACE
        while self.signals.wait(max(0.0, deadline - time.monotonic())) == "CHLD":
            pass


def job_name(environment: Mapping[str, str]) -> str:
    """How scontrol is told which job this is. One task of an array may have the number of the whole
    array, which would name all of its tasks."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m infty_tools.slurm.supervise",
        allow_abbrev=False,
        usage="%(prog)s [options] -- VERB ARGUMENTS...",
        description="Run a verb of infty (pretrain, evaluate, prepare) as steps of this Slurm job.",
    )
    parser.add_argument("--logs", type=Path, required=True, help="the job's folder is made in it")
    parser.add_argument(
        "--starts", type=int, default=50, help="how often the job may start in all [50]"
    )
    parser.add_argument("--run", type=Path, help="the training run's folder")
    parser.add_argument(
        "--program", type=shlex.split, default=["infty"], help="what runs a verb [infty]"
    )
    parser.add_argument(
        "--srun", action="append", default=[], metavar="OPTION", help="further option of srun"
    )
    parser.add_argument(
        "--told", default="", choices=["", *TOLD], help="signal that came before this program"
    )
    return parser


def _request(words: list[str]) -> tuple[argparse.Namespace, Request]:
    """Read the command line; a mistake in it ends the program with status 2."""
    parser = _parser()
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    verb, *arguments = words[cut + 1 :] or [""]
    if verb not in VERBS:
        parser.error(f"{verb!r} is not a verb that a job can run: {', '.join(VERBS)}")
    return options, Request(
        verb, arguments, options.program, options.srun, options.starts, options.run
    )


def main(words: list[str] | None = None) -> int:
    """Run one start of this job. Returns the exit status of the batch script."""
    signals = Signals()
    options, request = _request(sys.argv[1:] if words is None else words)
    if "SLURM_JOB_ID" not in os.environ:
        print(
            "error: this is not a Slurm job (SLURM_JOB_ID is not set): "
            "infty submit writes batch files that run it",
            file=sys.stderr,
        )
        return MISTAKE
    job = job_name(os.environ)
    folder = options.logs / job
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: the folder of logs cannot be made: {error}", file=sys.stderr)
        return 1
    return Supervisor(
        request, Controller(job), Journal(folder), signals, os.environ, options.told
    ).run()


if __name__ == "__main__":
    sys.exit(main())
