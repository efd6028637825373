"""Stands in for `infty` in a batch file: stand_in.py pretrain FOLDER BEHAVIOUR..., one behaviour for each start.

A behaviour is an exit status, with `+` when a new checkpoint appears first, or `wait`: until told to stop, then 85; or
`stalled`: task 0 reports task 1 and ends with 85, task 1 is killed. Of the preflight: `sick` finds something wrong,
`slow` makes the first one last until it is ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    verb, folder, *behaviours = sys.argv[1:]
    folder = Path(folder)
    if verb == "doctor":
        return _doctor(folder, behaviours)
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ["SLURM_PROCID"])
    start = len(list(folder.glob(f"start-*-{rank}")))
    (folder / f"start-{start}-{rank}").write_text(
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    )
    behaviour = behaviours[min(start, len(behaviours) - 1)]
    if behaviour.startswith("wait"):
        told = []
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda n, _: told.append(n))
        (folder / f"waiting-{start}-{rank}").touch()
        while not told:
            time.sleep(0.1)
        (folder / f"told-{start}-{rank}").write_text(signal.Signals(told[0]).name)
        behaviour = "+85"
    if behaviour == "stalled":
        time.sleep(1.1)  # file times may have whole seconds
        (folder / "stalled.txt").write_text("task 1 stands")
        behaviour = ("85", "137")[rank]
    if behaviour.startswith("+"):
        (folder / "checkpoints" / f"step-{start + 1:08d}").mkdir(parents=True, exist_ok=True)
    return int(behaviour.lstrip("+"))


def _doctor(folder: Path, behaviours: list[str]) -> int:
    begun = folder.with_name(f"{folder.name}-preflight-{os.environ['SLURM_PROCID']}")
    if "slow" in behaviours and not begun.exists():
        begun.touch()
        time.sleep(120)
    return int("sick" in behaviours)


if __name__ == "__main__":
    sys.exit(main())
