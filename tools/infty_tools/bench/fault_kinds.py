"""The faults that `infty bench faults` brings about, each with what must come of it."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from infty.exit_codes import STOPPED
from infty_tools.bench import fault_runs as runs
from infty_tools.bench.fault_runs import STEPS, WORLD, Start


class TooLateError(Exception):
    """What the fault was to harm was over before it came."""


@dataclass
class Trial:
    """One run that is to be harmed."""

    start: Callable[..., Start]
    """Start the run; takes `harm`, see fault_runs.Start."""
    run: Path
    """Its folder."""
    random: random.Random
    seconds: float
    """How long an unharmed run of this layout takes."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is worth telling of it."""

    def folders(self, pattern: str) -> list[Path]:
        return sorted((self.run / "checkpoints").glob(pattern))

    def moment(self, start: Start, span: tuple[float, float]) -> None:
        """Let a random share of the run's time go by."""
        start.wait(self.random.uniform(*span) * self.seconds)

    def saved(self, start: Start, count: int) -> None:
        """Wait until there are so many checkpoints."""
        start.wait(runs.PATIENCE, lambda: len(self.folders("step-????????")) >= count)


def kill_one(trial: Trial) -> bool:
    """SIGKILL for one rank; the other must not wait for ever."""
    return end_by_signal(trial, signal.SIGKILL, [trial.random.randrange(WORLD)])


def kill_all(trial: Trial) -> bool:
    """SIGKILL for all: the power is gone."""
    return end_by_signal(trial, signal.SIGKILL, range(WORLD))


def stop_signal(trial: Trial) -> bool:
    """SIGTERM or SIGUSR1 for one rank: it ends with the status for `again`, and so do all once they are connected."""
    return end_by_signal(
        trial,
        trial.random.choice([signal.SIGTERM, signal.SIGUSR1]),
        [trial.random.randrange(WORLD)],
    )


def end_by_signal(trial: Trial, number: int, ranks: Any) -> bool:
    start = trial.start(partial(_tell_of_begin, run=trial.run))
    trial.moment(start, (0.02, 1.0))
    start.wait(runs.PATIENCE, lambda: all(_begun(trial.run, rank).exists() for rank in ranks))
    if None not in start.codes():
        start.end()
        if not all(_begun(trial.run, rank).exists() for rank in ranks):
            raise RuntimeError("a run ended without reading its config: _tell_of_begin misses it")
        raise TooLateError
    trial.facts["in a checkpoint"] = bool(trial.folders("*.partial"))
    greeted = "tokens per step" in start.said()
    start.signal(number, ranks)
    if greeted:
        ended = start.wait(runs.PATIENCE)
    else:  # the others cannot notice before they are connected; a launcher ends them then (srun --wait)
        ended = start.wait(
            runs.PATIENCE, lambda: all(start.codes()[rank] is not None for rank in ranks)
        )
    codes = start.codes()
    start.end()
    if None not in codes and not any(codes):  # whom it was for had just left
        raise TooLateError
    if number == signal.SIGKILL:
        return ended
    if greeted:
        return ended and set(codes) <= {0, STOPPED}
    return all(codes[rank] == STOPPED for rank in ranks)


def _begun(run: Path, rank: int) -> Path:
    return run.with_suffix(f".{rank}.begun")


def _tell_of_begin(rank: int, *, run: Path) -> None:
    """Leave a file when `infty pretrain` reads its config, the first thing it does: what comes earlier meets only the
    process that is to become one."""
    from infty_pretrain import config as configs

    plain = configs.written

    def written(*arguments: Any) -> Any:
        _begun(run, rank).touch()
        return plain(*arguments)

    configs.written = written


def kill_in_checkpoint(trial: Trial) -> bool:
    """A rank dies at one of the moments at which something of a checkpoint reaches the disk."""
    rank = trial.random.randrange(WORLD)
    start = trial.start(
        partial(_die_at_fsync, victim=rank, count=trial.random.randrange(1, 6 * STEPS))
    )
    ended = start.wait(runs.PATIENCE)
    codes = start.codes()
    start.end()
    if not any(codes):
        raise TooLateError
    trial.facts["in a checkpoint"] = True
    return ended and codes[rank] == -signal.SIGKILL


def _die_at_fsync(rank: int, *, victim: int, count: int) -> None:
    plain, left = os.fsync, [count]

    def fsync(file: int) -> None:
        left[0] -= 1
        if rank == victim and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(file)

    os.fsync = fsync


def truncated(trial: Trial) -> bool:
    """A file of the newest checkpoint is shorter than it was."""
    return _damage(
        trial, lambda path: os.truncate(path, trial.random.randrange(path.stat().st_size))
    )


def flipped(trial: Trial) -> bool:
    """One bit of the newest checkpoint is another."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[trial.random.randrange(len(data))] ^= 1 << trial.random.randrange(8)
        path.write_bytes(data)

    return _damage(trial, flip)


def missing(trial: Trial) -> bool:
    """A file of the newest checkpoint is gone."""
    return _damage(trial, Path.unlink)


def _damage(trial: Trial, harm: Callable[[Path], None]) -> bool:
    """Harm a file while nothing runs. Whether it is found is seen when the run is started again."""
    start = trial.start()
    trial.saved(start, trial.random.randrange(2, STEPS))
    start.end()
    newest = trial.folders("step-????????")[-1]
    path = trial.random.choice(sorted(newest.iterdir()))
    harm(path)
    trial.facts |= {"file": path.name, "damaged": newest.name}
    return True


def full_disk(trial: Trial) -> bool:
    """The disk is full in the middle of a file of a checkpoint; somebody makes room."""
    start = trial.start(
        partial(
            _fill_disk,
            victim=trial.random.randrange(WORLD),
            count=trial.random.randrange(1, 4 * STEPS),
        )
    )
    ended = start.wait(runs.PATIENCE)
    codes, said = start.codes(), start.said()
    start.end()
    if not any(codes):
        raise TooLateError
    return ended and "is full" in said and "earlier ones are unharmed" in said


def _fill_disk(rank: int, *, victim: int, count: int) -> None:
    from infty_pretrain.checkpoint import writing

    plain, left = writing.write_file, [count]

    def write(path: Path, content: Callable[[Path], Any]) -> None:
        left[0] -= rank == victim
        plain(path, content)
        if left[0] == 0:
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    writing.write_file = write


def stalled(trial: Trial) -> bool:
    """A rank is stopped (SIGSTOP): a disk or a network that does not answer."""
    start, rank = trial.start(), trial.random.randrange(WORLD)
    start.wait(runs.PATIENCE, lambda: "tokens per step" in start.said())
    trial.moment(start, (0.0, 0.7))
    start.signal(signal.SIGSTOP, [rank])
    told = start.wait(runs.PATIENCE, lambda: start.codes()[1 - rank] is not None)
    codes, said = start.codes(), start.said()
    start.end()
    if not any(codes):
        raise TooLateError
    return (
        told
        and codes[1 - rank] == STOPPED
        and re.search(rf"rank {rank} (does not answer|stands)", said) is not None
    )


def nan_lane(trial: Trial) -> bool:
    """One number of one lane's memory is not finite: that lane is emptied, the others read on as if nothing were."""
    lane, step = trial.random.randrange(runs.LANES), trial.random.randrange(2, STEPS + 1)
    start = trial.start(partial(_spoil_lane, lane=lane, step=step))
    ended = start.wait(runs.PATIENCE)
    codes = start.codes()
    start.end()
    if not runs.inside_document(trial.run, step - 1, lane):
        raise TooLateError  # a new document begins in that step, with an empty memory
    told = {row["step"]: row.get("quarantined") for row in runs.rows(trial.run)}
    trial.facts |= {"lane": lane, "harmed step": step}
    return (
        ended and not any(codes) and [s for s in told if told[s]] == [step] and told[step] == [lane]
    )


def _before_step(step: int, harm: Callable[[Any], Callable[[], None] | None]) -> None:
    """Call `harm(engine)` before that step, and what it returns after it."""
    from infty_pretrain.engine import Engine

    plain, taken = Engine.step, [0]

    def harmed(engine: Engine, *arguments: Any) -> Any:
        taken[0] += 1
        mend = harm(engine) if taken[0] == step else None
        result = plain(engine, *arguments)
        if mend is not None:
            mend()
        return result

    Engine.step = harmed


def _spoil_lane(_rank: int, *, lane: int, step: int) -> None:
    def harm(engine: Any) -> None:
        state = engine.lane_state().map(lambda x: x.clone())
        if lane in engine.lanes:
            coefficients = state.named()["layers.0.memories.memory.signal.coefficients"]
            coefficients[lane - engine.lanes[0], 0, 3, 1] = float("nan")
        engine.set_lane_state(state)

    _before_step(step, harm)


def spike(trial: Trial) -> bool:
    """A loss far above recent ones: the step is not taken."""
    step = trial.random.randrange(STEPS // 2 + 1, STEPS + 1)
    start = trial.start(partial(_raise_loss, step=step))
    ended = start.wait(runs.PATIENCE)
    codes = start.codes()
    start.end()
    told = {row["step"]: row.get("skipped") for row in runs.rows(trial.run)}
    trial.facts |= {"harmed step": step}
    return (
        ended and not any(codes) and {s: why for s, why in told.items() if why} == {step: "spike"}
    )


def _raise_loss(_rank: int, *, step: int) -> None:
    from dataclasses import replace

    def harm(engine: Any) -> Callable[[], None]:
        def raised(_model: Any, _inputs: Any, outputs: Any) -> Any:
            loss, out = outputs
            return 100 * loss, replace(out, nll_sum=100 * out.nll_sum)

        return engine.model.register_forward_hook(raised).remove

    _before_step(step, harm)


ENDS = {
    "kill -9 of one rank": kill_one,
    "kill -9 of all": kill_all,
    "kill -9 in a checkpoint": kill_in_checkpoint,
    "SIGTERM, SIGUSR1": stop_signal,
    "full disk": full_disk,
    "stalled rank": stalled,
}
"""Faults that end the run; started again, it must come to what it would have come to."""
DAMAGES = {"truncated file": truncated, "flipped bit": flipped, "missing file": missing}
"""The same, and the next start must see that the newest checkpoint is not whole."""
STEPS_HARMED = {"NaN in a lane": nan_lane, "loss spike": spike}
"""The run goes on by itself."""
KINDS: dict[str, Callable[[Trial], bool]] = ENDS | DAMAGES | STEPS_HARMED
