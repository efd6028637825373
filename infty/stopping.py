"""Which signals ask a command to stop. Imports nothing that is slow."""

from __future__ import annotations

import signal

REQUESTS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""What terminals, launchers and batch systems send to whatever is to end soon.

A closed terminal: HUP; a keyboard: INT, QUIT; Slurm, PBS, Kubernetes: TERM; Slurm's `--signal` and Grid Engine's
`-notify`: USR1, USR2; LSF: USR2; a limit of processor time (`ulimit -t`, Grid Engine's `s_cpu`): XCPU.
"""


def requests() -> tuple[signal.Signals, ...]:
    """Those of REQUESTS that this process does not ignore.

    What was ignored from the start stays so: `nohup` means that a closed terminal shall not end a command, and a shell
    script means that Ctrl-C shall not end what it runs in the background.
    """
    return tuple(number for number in REQUESTS if signal.getsignal(number) != signal.SIG_IGN)
