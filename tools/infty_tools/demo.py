"""The whole journey on a small real corpus, as `make demo` runs it: every station is an ordinary `infty` command.

Each station is skipped when its result is already there, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from infty import exit_codes
from infty.errors import UserError
from infty_tools.export.standalone import HIDE

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
MARKER = ".infty-demo"
EVALUATION = "evaluation.json"
PROMPT = "HAMLET.\n"
# The same blocks, which never had a memory.
WITHOUT = ("model.memory=null", "model.memories=null")
# The generating process proves that the export stands alone: it cannot import what trained the model.
GENERATE = (
    HIDE
    + """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
torch.manual_seed(0)
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
out = model.generate(ids, max_new_tokens=120, do_sample=True, temperature=0.8, top_p=0.95)
print(tokenizer.decode(out[0], skip_special_tokens=True))
"""
)

console = Console()


def main() -> None:
    """Entry point of `make demo`: `python -m infty_tools.demo --folder demo [--books FOLDER]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes")
    parser.add_argument(
        "--books",
        type=Path,
        help="a folder with your own .txt books, instead of the default corpus",
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("overrides", nargs="*", help="changes to the config, such as run.steps=20")
    arguments = parser.parse_args()
    try:
        Demo(arguments.folder, arguments.books, arguments.config, arguments.overrides).run()
    except UserError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(exit_codes.MISTAKE)
    except KeyboardInterrupt:
        console.print("\nstopped; `make demo` goes on from here")
        sys.exit(exit_codes.INTERRUPTED)


class Demo:
    """The stations in order, and what each leaves behind."""

    def __init__(
        self, folder: Path, books: Path | None, config: Path, overrides: list[str]
    ) -> None:
        if books is not None and not books.is_dir():
            raise UserError(f"BOOKS={books} is not a folder: give one that holds .txt books")
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} exists and was not made by the demo; leaving it alone. "
                "Name another folder: make demo DEMO=folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
        self.folder, self.books, self.config, self.overrides = folder, books, config, overrides
        self.dataset, self.run_folder, self.export = (
            folder / "dataset",
            folder / "run",
            folder / "export",
        )
        self.without = folder / "run-without"
        self.started = time.time()

    def run(self) -> None:
        stations = (
            self.get_books,
            self.prepare,
            self.pretrain,
            self.pretrain_without,
            self.evaluate,
            self.export_model,
            self.generate,
        )
        for number, station in enumerate(stations, 1):
            console.rule(f"[bold]{number}/{len(stations)}  {station.__doc__.splitlines()[0]}")
            station()
        self.summary()

    def get_books(self) -> None:
        """Books"""
        self._infty(
            "books",
            "--output",
            self.folder / "books",
            *(["--books", self.books] if self.books else []),
        )

    def prepare(self) -> None:
        """Tokenizer and memory-mapped dataset"""
        self._infty(
            "prepare",
            "--input",
            self.folder / "books" / "train",
            "--validation",
            self.folder / "books" / "validation",
            "--output",
            self.dataset,
            "--vocab-size",
            "2048",
        )

    def pretrain(self) -> None:
        """Pretraining in two processes: tensor parallel 2, ZeRO-3; interrupted once, then resumed"""
        command = self._pretrain_command(self.run_folder)
        if not self._metrics(self.run_folder):
            console.print("[dim]part one: stopped on purpose about a third of the way[/dim]")
            self._infty(*command, processes=2, stop_at=1 / 3)
            console.print(
                "[dim]part two: the same command again; it picks up where it stopped[/dim]"
            )
        self._infty(*command, processes=2)

    def pretrain_without(self) -> None:
        """The same blocks, steps and data without a memory: what a memory is worth is seen beside such a model only"""
        self._infty(*self._pretrain_command(self.without), *WITHOUT, processes=2)

    def _pretrain_command(self, folder: Path) -> list[str | Path]:
        return [
            "pretrain",
            "--config",
            self.config,
            f"run.folder={folder}",
            f"data.train={self.dataset / 'train'}",
            *self.overrides,
        ]

    def evaluate(self) -> None:
        """Held-out works, read by both models: the one that never had a memory comes first"""
        self._infty(
            "evaluate",
            self.without,
            self.run_folder,
            "--data",
            self.dataset / "validation",
            "--output",
            self.folder / EVALUATION,
        )

    def export_model(self) -> None:
        """Hugging Face export"""
        if self.export.exists():
            console.print(f"already in {self.export}", markup=False)
            return
        self._infty("export", "--checkpoint", self.run_folder, "--output", self.export)

    def generate(self) -> None:
        """A paragraph by plain transformers, in a process that cannot import infty, deepspeed or megatron"""
        command = [sys.executable, "-c", GENERATE, str(self.export.resolve()), PROMPT]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False)
        if done.returncode:
            raise UserError(f"generation from {self.export} failed:\n{done.stderr[-2000:]}")
        text = re.sub(r"\n\s*\n\s*", "\n\n", done.stdout.strip())
        console.print(Panel(Text(text), title=f"after the prompt {PROMPT!r}", border_style="dim"))

    def summary(self) -> None:
        """What a newcomer wants to know, and the next command."""
        rows = [r for r in self._metrics(self.run_folder) if "loss" in r]
        table = Table(show_header=False, box=None, padding=(0, 2))
        table.add_row(
            "training loss",
            f"{rows[0]['loss']:.3f} at step {rows[0]['step']}  →  "
            f"{rows[-1]['loss']:.3f} at step {rows[-1]['step']}  (nats a token)",
        )
        for name, value in self._perplexities().items():
            table.add_row(name, value)
        speeds = sorted(r["tokens_per_second"] for r in rows if r.get("tokens_per_second"))
        if speeds:
            table.add_row(
                "training speed", f"{speeds[len(speeds) // 2]:,.0f} tokens/s on this machine"
            )
        table.add_row(
            "TensorBoard",
            escape(shlex.join([self._bin("tensorboard"), "--logdir", str(self.run_folder)])),
        )
        table.add_row("exported model", escape(str(self.export)))
        table.add_row("this demo took", f"{(time.time() - self.started) / 60:.1f} minutes")
        console.print(Panel(table, title="[bold]done", border_style="green"))
        console.print("Next, write on from a beginning of your own:", highlight=False)
        beginning = ["--prompt", "Once more unto the breach"]
        words = [self._bin("infty"), "generate", "--model", str(self.export), *beginning]
        console.print(f"  {shlex.join(words)}", highlight=False, markup=False, soft_wrap=True)

    def _perplexities(self) -> dict[str, str]:
        """Trained with a memory, beside trained without; "off" is left out on purpose (docs/evaluating.md)."""
        found = json.loads((self.folder / EVALUATION).read_text())
        without, trained = (model["memory"] for model in found["models"])
        [comparison] = found["comparisons"]
        ratio = f"{comparison['ratio']:.3f}"
        if "interval" in comparison:
            ratio += " (95 % over documents: {:.3f} to {:.3f})".format(*comparison["interval"])
        return {
            "held-out perplexity, trained with a memory": f"{trained['on']['perplexity']:.2f} a token",
            "held-out perplexity, trained without": f"{without['none']['perplexity']:.2f} a token",
            "with ÷ without": ratio,
        }

    @staticmethod
    def _metrics(folder: Path) -> list[dict]:
        path = folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @staticmethod
    def _bin(name: str) -> str:
        path = Path(sys.executable).parent / name
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def _infty(
        self, *arguments: str | Path, processes: int = 1, stop_at: float | None = None
    ) -> None:
        """Run one verb, shown as one would type it; a failure ends the demo with what it said."""
        words = [str(a) for a in arguments]
        launcher = "" if processes == 1 else f"torchrun --nproc-per-node {processes} --no-python "
        console.print(
            f"  $ {launcher}infty {shlex.join(words)}",
            style="cyan",
            markup=False,
            soft_wrap=True,
            highlight=False,
        )
        started = [
            subprocess.Popen([sys.executable, "-m", "infty_tools", *words], env=environment)
            for environment in _environments(processes)
        ]
        try:
            if stop_at is not None:
                self._stop_at(started[0], stop_at)
            codes = [process.wait() for process in started]
        except KeyboardInterrupt:
            for process in started:  # they got it too: let them save
                process.wait(timeout=120)
            raise
        if stop_at is not None and set(codes) <= {0, exit_codes.STOPPED}:
            return
        if any(codes):
            raise UserError(
                f"`infty {words[0]}` ended with status {max(codes, key=abs)}; what it said is above. "
                "Once that is mended, `make demo` goes on from here"
            )

    def _stop_at(self, process: subprocess.Popen, share: float) -> None:
        """Ask a running `pretrain` to stop when this share of its steps is done, as one can at any time."""
        while process.poll() is None:
            rows = self._metrics(self.run_folder)
            if rows and rows[-1]["step"] >= share * rows[-1]["steps"]:
                (self.run_folder / "stop").touch()
                return
            time.sleep(0.5)


def _environments(processes: int) -> list[dict[str, str]]:
    """What each process needs to know, as any launcher sets it. (torchrun itself would call a run that was stopped and
    saved a failure, with a page of traceback.)"""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    base = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    if processes == 1:
        return [base]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return [
        base
        | {
            "RANK": str(r),
            "LOCAL_RANK": str(r),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for r in range(processes)
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
