"""What a run tells: a line on the console, TensorBoard, `metrics.jsonl` with one row a step, `validation.jsonl` with
one an evaluation, and `events.jsonl` with what happened to it."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from infty.parallel import groups
from infty_pretrain import flops, records
from infty_pretrain.checkpoint import Saved
from infty_pretrain.config import Config
from infty_pretrain.engine import StepResult
from infty_pretrain.faults.spikes import FaultHistory
from infty_pretrain.records import METRICS, VALIDATION, Journal, forget_after

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
        self.peak: flops.Peak | None = None
        self.first_step, self.started = first_step, time.monotonic()
        self.reached = first_step
        self.interval_start, self.interval_tokens, self.interval_steps = self.started, 0, 0
        self.writer = None
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
        self.reached = max(forget_after(path, first_step) for path in (self.rows, self.validations))
        self.journal = Journal(config.run.folder)
        self.file = open(self.rows, "a")  # noqa: SIM115 - open as long as the run
        if config.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(
                str(config.run.folder / "tensorboard"), purge_step=first_step + 1
            )

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
        return step % self.config.logging.every == 0 or step == self.config.total_steps or step == 1

    def step(self, step: int, result: StepResult, rate: float, faults: FaultHistory) -> None:
        """Record a finished step (counted from 1). A loss or a norm that is not finite becomes null."""
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
            row |= self._speed()
            self._report(step, row, result)
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
        if self.writer is not None and (
            result.skipped or result.quarantined or self.wants_statistics(step)
        ):
            self.writer.add_scalar("faults/skipped", faults.skipped, step)
            self.writer.add_scalar("faults/quarantined", faults.quarantined, step)

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

    def _report(self, step: int, row: dict, result: StepResult) -> None:
        left = row["seconds_per_step"] * (self.config.total_steps - step)
        text = (
            f"step {step}/{self.config.total_steps}  loss {result.loss:.4f}  lr {row['lr']:.2e}  "
            f"norm {result.grad_norm:.2f}  {row['tokens_per_second']:,.0f} tokens/s"
        )
        if "mfu" in row:
            text += f"  mfu {100 * row['mfu']:.0f}%"
        elif MEASURED in row:
            text += f"  {100 * row[MEASURED]:.0f}% of the measured peak"
        self.say(f"{text}  left {_duration(left)}")
        if self.writer is None:
            return
        for name in ("loss", "lr", "grad_norm", "tokens_per_second", "tokens", "mfu", MEASURED):
            if row.get(name) is not None:
                self.writer.add_scalar(f"train/{name}", row[name], step)
        for name, value in result.figures.items():
            layer, memory, figure = name.split(".")
            self.writer.add_scalar(f"{memory}_{figure}/layer_{int(layer):02d}", value, step)

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
        with open(self.validations, "a") as f:
            f.write(json.dumps({"step": step, **figures}) + "\n")
        if self.writer is not None:
            for mode, f in figures.items():
                for name in ("nll", "accuracy"):
                    self.writer.add_scalar(f"validation/{name}_memory_{mode}", f[name], step)

    def saved(self, checkpoint: Saved) -> None:
        """Record a checkpoint that is in place."""
        self.say(
            f"saved {checkpoint.path.name}: training paused for {checkpoint.stall:.2f} s, writing took "
            f"{checkpoint.written:.2f} s"
        )
        step = int(checkpoint.path.name.removeprefix("step-"))
        seconds = {"stall": checkpoint.stall, "written": checkpoint.written}
        self.event(records.SAVED, step, **seconds)
        if self.rank == 0 and self.writer is not None:
            self.writer.add_scalar("checkpoint/stall_seconds", checkpoint.stall, step)
            self.writer.add_scalar("checkpoint/write_seconds", checkpoint.written, step)

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
            if self.writer is not None:
                self.writer.close()
            sys.stdout.flush()


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
