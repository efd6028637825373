"""`infty bench faults`: harm runs in every way that clusters do, start them again, and look for what was lost."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from infty.errors import UserError
from infty_tools.bench import ledger
from infty_tools.options import SEED, any_path, check_new_file, several, utf8, whole


def faults(
    tries: Annotated[
        int,
        typer.Option(parser=whole(1, 10**6), metavar="N", help="Faults of each kind to inject"),
    ] = 25,
    kinds: Annotated[
        str | None,
        typer.Option(
            parser=several(utf8), help="Comma-separated [all]; a word of a name is enough"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(parser=SEED, metavar="N", help="Seed for when and where faults strike")
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            parser=any_path,
            metavar="PATH",
            help="Ledger (JSON lines): trials that are in it, of this commit and seed, are not made again",
        ),
    ] = None,
) -> None:
    """Inject faults into small runs of two processes; report what was detected, what resumed, and what was lost.

    Example:

      infty bench faults --tries 5 --kinds kill,stalled

    A run that a fault ends is started again by the same command. It must go on from the newest whole checkpoint, and
    in the end its loss curve and every tensor of its last checkpoint (weights, moments, memories of all lanes) must
    equal those of a run that nothing happened to, to the bit; anything else counts as lost. After a NaN in a lane all
    other lanes' memories, and after a loss spike all weights and moments, must be as if nothing had happened. Ends with
    status 1 when something was lost, or a fault was not noticed. Takes half an hour on two cores; stopped, it goes on
    where it was when started again with the same --output.
    """
    chosen = chosen_kinds(kinds)
    if output is not None:
        check_new_file(output, "--output")
        output.parent.mkdir(parents=True, exist_ok=True)
    rows = made(chosen, tries, seed, output)
    _show(rows)
    if any(row["lost"] or not row["detected"] for row in rows):
        raise typer.Exit(1)


def made(kinds: list[str], tries: int, seed: int, output: Path | None) -> list[ledger.Row]:
    """The rows of all trials: from the ledger where they are in it, or else made and added to it.

    When and where a fault strikes follows from the seed, the kind and the number of the trial alone.
    """
    from rich.progress import track

    common = {"seed": seed, "commit": ledger.commit()}
    done = {
        (row["kind"], row["number"]): row
        for row in ledger.rows(output)
        if common.items() <= row.items()
    }
    rows = []
    with tempfile.TemporaryDirectory(prefix="infty-faults-") as folder:
        harness = Harness(Path(folder), random.Random(seed))
        wanted = [(kind, number) for number in range(tries) for kind in kinds]
        for kind, number in track(wanted, description="faults"):
            if (kind, number) not in done:
                harness.random.seed(f"{seed} {kind} {number}")
                row = harness.trial(kind) | {"number": number} | common
                ledger.write_row(output, row)
                done[kind, number] = row
            rows.append(done[kind, number])
    return rows


def chosen_kinds(words: str | None) -> list[str]:
    """Names of kinds of faults that have one of the comma-separated words. Raises UserError."""
    from infty_tools.bench.fault_kinds import KINDS

    if words is None:
        return list(KINDS)
    found = []
    for word in (w.strip() for w in words.split(",")):
        matches = [kind for kind in KINDS if word and word.lower() in kind.lower()]
        if not matches:
            raise UserError(
                f"--kinds: no kind of fault has '{word}' in its name; there are: {'; '.join(KINDS)}"
            )
        found += [kind for kind in matches if kind not in found]
    return found


@dataclass
class Reference:
    """A run that nothing happens to."""

    folder: Path
    seconds: float
    curve: list[tuple]
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)

    def at(self, step: int) -> dict[str, Any]:
        from infty_tools.bench import fault_runs as runs

        if step not in self.checkpoints:
            self.checkpoints[step] = runs.tensors(self.folder, step)
        return self.checkpoints[step]


class Harness:
    """Makes, harms and judges runs in a folder of its own."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        from infty_pretrain import launch

        launch.quiet()
        from infty_tools.bench import fault_runs as runs

        self.folder, self.random = folder, chance
        self.data = runs.dataset(folder)
        self.references: dict[str, Reference] = {}
        self.count = 0

    def reference(self, layout: str) -> Reference:
        """The unharmed run of a layout, made when it is first asked for. Raises UserError when it fails."""
        from infty_tools.bench import fault_runs as runs

        if layout not in self.references:
            run = self.folder / f"reference-{len(self.references)}"
            config = runs.write_config(run.with_suffix(".yaml"), run, self.data, layout)
            start = runs.Start(config, run)
            done = start.wait(5 * runs.PATIENCE)  # the first start also imports everything
            start.end()
            if not done or any(start.codes()):
                raise UserError(f"an undisturbed run ({layout}) failed: {start.said()[-3000:]}")
            timed = runs.Start(
                runs.write_config(
                    run.with_suffix(".yaml"), Path(f"{run}-again"), self.data, layout
                ),
                run,
            )
            timed.wait(runs.PATIENCE)
            seconds = time.monotonic() - timed.began
            timed.end()
            self.references[layout] = Reference(run, seconds, runs.curve(run))
        return self.references[layout]

    def trial(self, kind: str) -> dict[str, Any]:
        """Harm one run and judge it: a row of plain values."""
        from infty_tools.bench import fault_kinds as faults
        from infty_tools.bench import fault_runs as runs

        layout = self.random.choice(list(runs.LAYOUTS))
        reference = self.reference(layout)
        seconds = reference.seconds
        for _ in range(20):
            self.count += 1
            run = self.folder / f"run-{self.count}"
            every = self.random.choice((1, 2, 3)) if kind in faults.ENDS else 1
            saving = {
                "every": every,
                "keep_last": self.random.choice((2, 100)) if kind in faults.ENDS else 100,
            }
            config = runs.write_config(
                run.with_suffix(".yaml"), run, self.data, layout, checkpoint=saving
            )
            trial = faults.Trial(
                lambda harm=None, c=config, r=run: runs.Start(c, r, harm),
                run,
                self.random,
                seconds,
            )
            try:
                detected = faults.KINDS[kind](trial)
            except faults.TooLateError:
                seconds *= 0.8  # the reference may have been timed while the machine was busy
                shutil.rmtree(run, ignore_errors=True)
                continue
            judge = self.judge_step if kind in faults.STEPS_HARMED else self.judge_end
            row = {"kind": kind, "layout": layout, "detected": detected} | judge(
                kind, trial, config, reference
            )
            if not row["lost"]:
                shutil.rmtree(run, ignore_errors=True)
            return row | trial.facts
        raise UserError(f"{kind}: twenty runs ended before the fault came")

    def judge_end(
        self, kind: str, trial: Any, config: Path, reference: Reference
    ) -> dict[str, Any]:
        """Start again, and compare what comes of it with what would have come of it."""
        from infty_pretrain import checkpoint
        from infty_tools.bench import fault_kinds as faults
        from infty_tools.bench import fault_runs as runs

        said: list[str] = []
        whole = checkpoint.newest_valid(trial.run / "checkpoints", tell=said.append)
        start = runs.Start(config, trial.run.with_name(f"{trial.run.name}-again"))
        went_on = start.wait(runs.PATIENCE) and not any(start.codes())
        start.end()
        wrong = [] if went_on else [f"the second start did not end well: {start.said()[-2000:]}"]
        if whole is not None and f"resumed from {whole}" not in start.said():
            wrong.append(f"it did not resume from {whole.name}")
        if went_on:
            wrong += _differences(trial.run, reference, runs.STEPS)
        row = {
            "went on": went_on,
            "lost": bool(wrong),
            "wrong": wrong,
            "from": int(whole.name.removeprefix("step-")) if whole else 0,
        }
        if kind in faults.DAMAGES:
            row["detected"] = f"skipping checkpoint {trial.facts['damaged']}" in start.said()
        return row

    def judge_step(
        self, kind: str, trial: Any, config: Path, reference: Reference
    ) -> dict[str, Any]:
        """All but what was harmed is as in a run that nothing happened to, when the harmed step is done."""
        import torch

        from infty_tools.bench import fault_runs as runs

        step = trial.facts["harmed step"]
        finished = (trial.run / "checkpoints" / f"step-{runs.STEPS:08d}").is_dir()
        if not finished:
            return {"went on": False, "lost": True, "wrong": ["the run did not finish"]}
        got = runs.tensors(trial.run, step)
        if kind == "loss spike":  # the memories read on, and weights and moments stay
            want = {k: v for k, v in reference.at(step - 1).items() if not k.startswith("lane ")}
            want |= {k: v for k, v in reference.at(step).items() if k.startswith("lane ")}
        else:
            own = f"lane {trial.facts['lane']}/"
            want = {
                k: v
                for k, v in reference.at(step).items()
                if k.startswith("lane ") and not k.startswith(own)
            }
        wrong = [f"{k} differs" for k, v in want.items() if not torch.equal(got[k], v)]
        wrong += [
            f"{k} is not finite"
            for k, v in runs.tensors(trial.run, runs.STEPS).items()
            if v.is_floating_point() and not v.isfinite().all()
        ]
        return {"went on": True, "lost": bool(wrong), "wrong": wrong[:5]}


def _differences(run: Path, reference: Reference, step: int) -> list[str]:
    import torch

    from infty_tools.bench import fault_runs as runs

    wrong = [] if runs.curve(run) == reference.curve else ["the loss curve differs"]
    got, want = runs.tensors(run, step), reference.at(step)
    if got.keys() != want.keys():
        return [*wrong, "the checkpoint holds other tensors"]
    return wrong + [f"{k} differs" for k in want if not torch.equal(got[k], want[k])][:5]


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("fault", "tried", "detected", "went on", "lost", "while a checkpoint was written")
    groups = {
        kind: [r for r in rows if r["kind"] == kind]
        for kind in dict.fromkeys(r["kind"] for r in rows)
    }
    for kind, some in (groups | {"all": rows}).items():
        inside = sum(bool(r.get("in a checkpoint")) for r in some)
        table.add_row(
            kind,
            *(
                str(n)
                for n in (
                    len(some),
                    *(sum(bool(r[k]) for r in some) for k in ("detected", "went on", "lost")),
                )
            ),
            str(inside or "-"),
            end_section=kind == list(groups)[-1],
        )
    Console().print(table)
    for row in rows:
        for wrong in row["wrong"]:
            print(f"{row['kind']} ({row['layout']}): {wrong}")
        if not row["detected"]:
            print(f"{row['kind']} ({row['layout']}): not detected: {row}")
