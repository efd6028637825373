"""What a job asks Slurm for: its state, a requeue, its nodes. Needs only the standard library."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

TRIES = 12
PAUSE = 5.0
"""Seconds between them: a controller that is busy or starts anew has about a minute."""
ANSWER = 60.0
"""Seconds in which scontrol must answer."""


class Controller:
    """Slurm's controller, asked by scontrol for one job."""

    def __init__(self, job: str) -> None:
        self.job = job
        """As scontrol is told: 7, or 7_3 in an array."""

    def state(self) -> str | None:
        """RUNNING, COMPLETING, ...; None when nobody tells."""
        answer, _ = _patiently("show", "job", "--oneliner", self.job)
        found = re.search(r"\bJobState=([A-Z_]+)", answer or "")
        return found and found[1]

    def requeue(self) -> str | None:
        """Have the job start again. Returns why not, or None."""
        answer, problem = _patiently("requeue", self.job)
        return problem if answer is None else None

    def nodes(self, names: str) -> list[str]:
        """Every node of a list such as node[1-3], in order."""
        answer, _ = _patiently("show", "hostnames", names)
        return (answer or "").split()

    def hosts(self, names: str) -> list[dict[str, str]]:
        """NodeHostName and NodeAddr of every node of a list; empty when nobody tells."""
        answer, _ = _patiently("show", "node", "--oneliner", names)
        return [
            dict(re.findall(r"\b(NodeHostName|NodeAddr)=(\S+)", line))
            for line in (answer or "").splitlines()
        ]

    def start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.Popen:
        """Start a job step that listens to signals, though this process holds them back."""
        return subprocess.Popen(command, env=dict(environment), preexec_fn=_listen)


def _listen() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _patiently(*words: str) -> tuple[str | None, str]:
    """Ask scontrol until it answers. Returns its answer, or None, and the last line of what it
    complained about."""
    problem = ""
    for tried in range(TRIES):
        if tried:
            time.sleep(PAUSE)
        try:
            done = subprocess.run(
                ["scontrol", *words], capture_output=True, text=True, timeout=ANSWER, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
            continue
        if done.returncode == 0:
            return done.stdout, ""
        problem = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        print(f"scontrol {words[0]}: {problem}", file=sys.stderr, flush=True)
    return None, problem
