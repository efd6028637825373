"""The runs of a league: each trained and evaluated in processes of their own, and kept as a row of a ledger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infty import files
from infty.errors import UserError
from infty_tools.bench import league
from infty_tools.bench.league import SYSTEMS, TASKS, Contest, Sizes

LEDGER = "recall.jsonl"
DATA_SEED = 0
"""Of the documents: every run of a task reads the same."""
Row = dict[str, Any]


class League:
    """A folder with the data of the tasks, the runs, and a row for every run that is done."""

    def __init__(self, folder: Path, sizes: Sizes, held_out: int, steps: int | None) -> None:
        self.folder, self.sizes, self.held_out, self.steps = folder, sizes, held_out, steps
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = folder / LEDGER
        self._writing = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._stopping = False

    def run(
        self, tasks: Sequence[str], systems: Sequence[str], seeds: Iterable[int], jobs: int
    ) -> list[Row]:
        """The rows of these runs; trains what is missing. Raises UserError, when the other runs of the moment ended."""
        from rich.progress import Progress

        wanted = [(task, system, seed) for task in tasks for seed in seeds for system in systems]
        done = {key: row for row in _lines(self.ledger) if (key := self._key(row)) is not None}
        self.ledger.touch()
        with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
            configs = {task: self._configs(task, systems) for task in tasks}
            for task in tasks:  # before runs side by side ask for them
                for times in TASKS[task].lengths:
                    self._data(task, times)
            bar = progress.add_task("runs", total=len(wanted), completed=0)
            running = []
            for key in wanted:
                if key in done:
                    progress.advance(bar)
                else:
                    values = configs[key[0]][key[1]]
                    running.append(pool.submit(self._one, *key, values, progress))
            try:
                for future in running:
                    row = future.result()
                    done[self._key(row)] = row
                    progress.advance(bar)
            except BaseException:
                self._stop(running)
                raise
        return [done[key] for key in wanted]

    def _stop(self, running: list[Any]) -> None:
        """Let what runs save itself, and begin nothing more."""
        self._stopping = True
        for future in running:
            future.cancel()
        for process in list(self._processes):
            process.terminate()

    def _settings(self, task: str) -> dict[str, Any]:
        """What a row depends on beside task, system and seed."""
        return {
            "sizes": asdict(self.sizes),
            "steps": self.steps or TASKS[task].steps,
            "held_out": self.held_out,
        }

    def _key(self, row: Row) -> tuple[str, str, int] | None:
        """Of a row of this league; None: of other settings."""
        if row["task"] not in TASKS or row["settings"] != self._settings(row["task"]):
            return None
        return row["task"], row["system"], row["seed"]

    def _separator(self) -> str:
        """A line end, where the last row was cut off."""
        text = self.ledger.read_text()
        return "\n" if text and not text.endswith("\n") else ""

    def _data(self, task: str, times: int) -> Path:
        """The documents of a task, made where they are missing."""
        from infty_tools.tasks.making import make

        contest = TASKS[task]
        folder = self.folder / "data" / f"{task}-{times}"
        steps = self._settings(task)["steps"]
        make(
            contest.task(times),
            folder,
            samples=max(2, min(16_000, self.sizes.lanes * steps)) if times == 1 else 2,
            validation_samples=self.held_out,
            seed=DATA_SEED,
        )
        return folder

    def _configs(self, task: str, systems: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The config of each system but for its folder and seed, all with as many parameters as the largest of all."""
        from infty.data.documents import Documents

        contest, steps = TASKS[task], self._settings(task)["steps"]
        data = self._data(task, 1)
        vocabulary = Documents.open(data / "train").info.vocab_size
        plain = {
            name: league.config(contest, name, 0, steps, self.sizes, self.folder, data)
            for name in SYSTEMS
        }
        models = {name: league.model_of(values, vocabulary) for name, values in plain.items()}
        largest = max(map(league.parameters, models.values()))
        return {name: league.widened(plain[name], vocabulary, largest) for name in systems}

    def _one(self, task: str, system: str, seed: int, values: dict[str, Any], progress: Any) -> Row:
        """Train and evaluate one system; its row is in the ledger then, and its checkpoints are gone."""
        name = f"{task}-{system}-{seed}"
        run = self.folder / "runs" / name
        values = values | {"run": values["run"] | {"folder": str(run), "seed": seed}}
        bar = progress.add_task(name, total=values["run"]["steps"])
        self._train(values, run, lambda step: progress.update(bar, completed=step))
        row = {"task": task, "system": system, "seed": seed, "settings": self._settings(task)}
        row |= self._figures(TASKS[task], task, run) | _sizes(values, run)
        with self._writing, open(self.ledger, "a") as ledger:
            ledger.write(self._separator() + json.dumps(row) + "\n")
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        progress.remove_task(bar)
        return row

    def _train(self, values: dict[str, Any], run: Path, tell: Callable[[int], None]) -> None:
        import yaml

        config = run.with_suffix(".yaml")
        config.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(config, yaml.safe_dump(values, sort_keys=False))
        arguments = ["pretrain", "--config", str(config)]
        self._call(arguments, run, lambda: tell(len(_lines(run / "metrics.jsonl"))))

    def _figures(self, contest: Contest, task: str, run: Path) -> dict[str, Any]:
        """Right answers in documents of each length, and the loss at the end of training."""
        found = {}
        for times in contest.lengths:
            output = run / f"answers-{times}.json"
            data = self._data(task, times) / "validation"
            arguments = ["evaluate", str(run), "--data", str(data), "--output", str(output)]
            self._call([*arguments, "--memory", "on"], run)
            figures = files.read_json(output)["models"][0]["memory"]
            (mode,) = figures.values()
            found[str(times)] = mode["answers"]
        losses = [row["loss"] for row in _lines(run / "metrics.jsonl")][-50:]
        return {"answers": found, "loss": sum(losses) / len(losses)}

    def _call(
        self, arguments: list[str], run: Path, tell: Callable[[], None] = lambda: None
    ) -> None:
        """`infty` with these arguments, in a process of its own. Raises UserError with the end of what it said."""
        if self._stopping:
            raise UserError("stopped")
        log = run.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(log, "w") as out,
            subprocess.Popen(
                [sys.executable, "-m", "infty_tools", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            ) as process,
        ):
            self._processes.add(process)
            try:
                while process.poll() is None:
                    try:
                        process.wait(1)
                    except subprocess.TimeoutExpired:
                        tell()
            finally:
                self._processes.discard(process)
        if process.returncode:
            raise UserError(
                f"infty {' '.join(arguments)} ended with status {process.returncode}: "
                f"{log.read_text(errors='replace')[-2000:]}"
            )


def _sizes(values: dict[str, Any], run: Path) -> dict[str, Any]:
    """What the system costs."""
    from infty.data.documents import Documents

    vocabulary = Documents.open(Path(values["data"]["train"])).info.vocab_size
    model = league.model_of(values, vocabulary)
    seconds = sorted(
        row["seconds_per_step"]
        for row in _lines(run / "metrics.jsonl")
        if "seconds_per_step" in row
    )
    return {
        "parameters": league.parameters(model),
        "state_floats": league.state_floats(model),
        "seconds_per_step": seconds[len(seconds) // 2],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
