"""What a run tells: a line on the console, TensorBoard, `metrics.jsonl` with one row a step, `validation.jsonl` with
one an evaluation, and `events.jsonl` with what happened to it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from infty import files
from infty.data.lanes import LaneSchedule
from infty.parallel import groups
from infty_pretrain import flops, pictures, records
from infty_pretrain.board import Board
from infty_pretrain.checkpoint import Saved
from infty_pretrain.config import Config
from infty_pretrain.engine import StepResult
from infty_pretrain.faults.spikes import FaultHistory
from infty_pretrain.records import FIGURES, METRICS, PICTURES, VALIDATION, Journal, forget_after
from infty_pretrain.tally import LARGEST_EXPONENT

WHY = {
    "loss": "because the loss is not finite",
    "gradient": "because the gradient is not finite",
    "spike": "because the loss is far above recent ones",
}
"""What `StepResult.skipped` means, in words."""

MEASURED = "mfu_of_measured_peak"
"""The utilisation where no data sheet says what the device could do."""


class Monitor:
    """Only rank 0 writes; the others' calls do nothing."""

    def __init__(
        self, config: Config, device: str, rank: int, first_step: int, tokens: int
    ) -> None:
        self.config, self.rank, self.tokens = config, rank, tokens
        self.device = device
        self.peak: flops.Peak | None = None
        self.first_step, self.started = first_step, time.monotonic()
        self.interval_start, self.interval_tokens, self.interval_steps = self.started, 0, 0
        self.seconds: dict[str, float] = defaultdict(float)
        """Of this interval, by what they went to."""
        self.board: Board | None = None
        self.reached = 0
        """The last step that earlier starts recorded; known to rank 0."""
        if rank != 0:
            return
        given = config.logging.peak_tflops
        self.peak = (
            flops.Peak(1e12 * given, "logging.peak_tflops")
            if given
            else flops.peak(device, config.precision)
        )
        self.rows = config.run.folder / METRICS
        self.validations = config.run.folder / VALIDATION
        self.figures, self.pictures = (config.run.folder / name for name in (FIGURES, PICTURES))
        for path in (self.figures, self.pictures):
            forget_after(path, first_step)
        self.reached = max(forget_after(path, first_step) for path in (self.rows, self.validations))
        self.journal = Journal(config.run.folder)
        self.file = open(self.rows, "a")  # noqa: SIM115 - open as long as the run
        if config.logging.tensorboard:
            self.board = Board(config, first_step)

    def began(self, **details: Any) -> None:
        """Record that the run begins or goes on, with plain values that tell where and with what."""
        if self.first_step:
            details["reached"] = max(self.reached, self.first_step)
        self.event(
            records.RESUMED if self.first_step else records.BEGAN, self.first_step, **details
        )

    def event(self, event: str, step: int, **details: Any) -> None:
        """Record something that happened; see `infty_pretrain.records`."""
        if self.rank == 0:
            self.journal.add(event, step, **details)

    def wants_statistics(self, step: int) -> bool:
        """Whether this step (counted from 1) is one that is reported."""
        reported = step % self.config.logging.every == 0 or self.wants_pictures(step)
        return reported or step == self.config.total_steps or step == 1

    def wants_pictures(self, step: int) -> bool:
        """Whether this step (counted from 1) is one whose memories are drawn."""
        every = self.config.logging.pictures
        return every is not None and (step % every == 0 or step == self.config.total_steps)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count what happens inside as a part of the steps' time."""
        start = time.monotonic()
        yield
        self.seconds[part] += time.monotonic() - start

    def step(
        self,
        step: int,
        result: StepResult,
        rate: float,
        faults: FaultHistory,
        lanes: LaneSchedule,
    ) -> None:
        """Record a finished step (counted from 1). A loss or a norm that is not finite becomes null."""
        for part, seconds in result.seconds.items():
            self.seconds[part] += seconds
        self.tokens += result.tokens
        self.interval_tokens += result.tokens
        self.interval_steps += 1
        if self.rank != 0:
            return
        row = {
            "step": step,
            "steps": self.config.total_steps,
            "loss": _finite(result.loss),
            "lr": rate,
            "grad_norm": _finite(result.grad_norm),
            "tokens": self.tokens,
        }
        if result.skipped or result.quarantined:
            row |= self._fault(step, result)
        if self.wants_statistics(step):
            figures = self._shares_of_time() | _memory(self.device) | _lanes(lanes)
            row |= self._speed()
            self._report(step, row)
            self._record(step, row, figures | result.gauges, result)
        self._count_faults(step, result, faults)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def _fault(self, step: int, result: StepResult) -> dict[str, Any]:
        """Say what went wrong in a step; returns what its row says of it."""
        row: dict[str, Any] = {}
        if result.quarantined:
            row["quarantined"] = list(result.quarantined)
            self.event(records.QUARANTINED, step, lanes=row["quarantined"])
            self.say(
                f"step {step}: lane {', '.join(map(str, result.quarantined))} had non-finite numbers: "
                "left out of the step, continues with an empty memory"
            )
        if result.skipped:
            row["skipped"] = result.skipped
            self.event(records.SKIPPED, step, why=result.skipped, loss=_finite(result.loss))
            figure = f" ({result.loss:.4f})" if math.isfinite(result.loss) else ""
            self.say(f"step {step}: skipped, {WHY[result.skipped]}{figure}")
        return row

    def _count_faults(self, step: int, result: StepResult, faults: FaultHistory) -> None:
        if self.board is not None and (
            result.skipped or result.quarantined or self.wants_statistics(step)
        ):
            self.board.scalars(
                step,
                {"faults/skipped": faults.skipped, "faults/quarantined": faults.quarantined},
            )

    def _shares_of_time(self) -> dict[str, float]:
        """Where this interval's time went; `other` is what is not measured, such as the start of a checkpoint."""
        whole = max(1e-9, time.monotonic() - self.interval_start, sum(self.seconds.values()))
        shares = {f"time_share/{part}": spent / whole for part, spent in self.seconds.items()}
        self.seconds.clear()
        return shares | {"time_share/other": max(0.0, 1 - sum(shares.values()))}

    def _speed(self) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(1e-9, now - self.interval_start)
        speed = self.interval_tokens / seconds
        figures = {
            "tokens_per_second": speed,
            "seconds_per_step": seconds / max(1, self.interval_steps),
        }
        figures |= self.utilisation(speed)
        self.interval_start, self.interval_tokens, self.interval_steps = now, 0, 0
        return figures

    def utilisation(self, speed: float) -> dict[str, float]:
        """Which share of the devices' peak `speed` tokens a second are. More than all of it cannot be: then the peak is
        wrong, and is said to be, once."""
        if self.peak is None:
            return {}
        devices = groups.tensor_size() * groups.data_size()
        operations = speed * flops.training_per_token(self.config.model) / devices
        share = operations / self.peak.operations
        if share <= 1:
            return {MEASURED if self.peak.measured else "mfu": share}
        self.say(
            f"no utilisation is shown: {operations / 1e12:.3g} TFLOP/s a device are above its peak of "
            f"{self.peak.operations / 1e12:.3g} ({self.peak.source}); give the right one in logging.peak_tflops"
        )
        self.peak = None
        return {}

    def _report(self, step: int, row: dict[str, Any]) -> None:
        left = row["seconds_per_step"] * (self.config.total_steps - step)
        text = (
            f"step {step}/{self.config.total_steps}  loss {_shown(row['loss'], '.4f')}  lr {row['lr']:.2e}  "
            f"norm {_shown(row['grad_norm'], '.2f')}  {row['tokens_per_second']:,.0f} tokens/s"
        )
        if "mfu" in row:
            text += f"  mfu {100 * row['mfu']:.0f}%"
        elif MEASURED in row:
            text += f"  {100 * row[MEASURED]:.0f}% of the measured peak"
        self.say(f"{text}  left {_duration(left)}")

    def _record(
        self, step: int, row: dict[str, Any], figures: dict[str, float], result: StepResult
    ) -> None:
        """Write a reported step's figures and pictures for TensorBoard and for `infty report`."""
        figures = figures | {pictures.tag(name): x for name, x in result.figures.items()}
        figures = {name: x for name, x in figures.items() if math.isfinite(x)}
        files.append_line(self.figures, json.dumps({"step": step, "figures": figures}))
        shown = {pictures.tag(name): pictures.plain(p) for name, p in result.pictures.items()}
        if shown:
            files.append_line(self.pictures, json.dumps({"step": step, "pictures": shown}))
        if self.board is None:
            return
        names = ("loss", "lr", "grad_norm", "tokens_per_second", "tokens", "mfu", MEASURED)
        train = {f"train/{name}": row[name] for name in names if row.get(name) is not None}
        self.board.scalars(step, train | figures)
        self.board.pictures(step, shown)

    def evaluation(self, step: int, figures: dict[str, dict[str, float]]) -> None:
        """Record what an evaluation found."""
        self.interval_start = time.monotonic()
        if self.rank != 0:
            return
        text = ", ".join(
            f"memory {mode}: {f.get('perplexity', math.inf):.2f} "
            f"({100 * f['accuracy']:.1f}% of tokens right)"
            for mode, f in figures.items()
        )
        self.say(f"step {step}: validation perplexity, {text}")
        files.append_line(self.validations, json.dumps({"step": step, **figures}))
        if self.board is not None:
            for mode, f in figures.items():
                values = {f"validation/{x}_memory_{mode}": f[x] for x in ("nll", "accuracy")}
                self.board.scalars(step, values | _by_position(mode, f["by_position"]))

    def saved(self, checkpoint: Saved) -> None:
        """Record a checkpoint that is in place."""
        self.say(
            f"saved {checkpoint.path.name}: training paused for {checkpoint.stall:.2f} s, writing took "
            f"{checkpoint.written:.2f} s"
        )
        step = int(checkpoint.path.name.removeprefix("step-"))
        seconds = {"stall": checkpoint.stall, "written": checkpoint.written}
        self.event(records.SAVED, step, **seconds)
        if self.board is not None:
            seconds = {f"checkpoint/{name}_seconds": x for name, x in seconds.items()}
            self.board.scalars(step, seconds)

    def flush(self) -> None:
        """Put on disk what was told so far: a run that goes on from here tells only what comes after."""
        if self.board is not None:
            self.board.flush()

    def pause(self) -> None:
        """Do not count the time of a checkpoint as training."""
        self.interval_start = time.monotonic() if self.interval_tokens == 0 else self.interval_start

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        if self.rank == 0:
            print(text, flush=True)

    def close(self) -> None:
        if self.rank == 0:
            self.file.close()
            if self.board is not None:
                self.board.close()
            sys.stdout.flush()


def _by_position(mode: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Perplexities by tag; the tags' names sort by position."""
    return {
        f"perplexity_by_position_memory_{mode}/{row['from']:08d}_to_{row['to']:08d}": math.exp(
            row["nll"]
        )
        for row in rows
        if row["nll"] < LARGEST_EXPONENT
    }


def _memory(device: str) -> dict[str, float]:
    """Of this process, in GiB: what the host holds, and the most that was in use on its GPU since the last time."""
    found = {"memory_gib/host": psutil.Process().memory_info().rss / 2**30}
    if device.startswith("cuda"):
        found["memory_gib/device_peak"] = torch.cuda.max_memory_allocated(device) / 2**30
        found["memory_gib/device_reserved"] = torch.cuda.memory_reserved(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return found


def _lanes(lanes: LaneSchedule) -> dict[str, float]:
    return {
        "lanes/documents_finished": lanes.finished,
        "lanes/place_in_the_book_share": lanes.progress,
        "lanes/padding_share": lanes.padding_share,
    }


def _shown(x: float | None, how: str) -> str:
    return "nan" if x is None else format(x, how)


def _finite(x: float) -> float | None:
    """JSON has no NaN."""
    return x if math.isfinite(x) else None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}:{minutes:02d}:{seconds:02d}"
