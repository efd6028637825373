"""The whole journey on a small real corpus, as `make demo` runs it: every station is an ordinary `infty` command.

Each station is skipped when its result is already there, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from infty import exit_codes
from infty.errors import UserError
from infty_tools.export.standalone import HIDE
from infty_tools.stations import Stations, carry_out, console

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
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
    demo = (arguments.folder, arguments.books, arguments.config, arguments.overrides)
    carry_out(Demo.command, lambda: Demo(*demo).run())


class Demo(Stations):
    """The stations in order, and what each leaves behind."""

    def __init__(
        self, folder: Path, books: Path | None, config: Path, overrides: list[str]
    ) -> None:
        super().__init__(folder, books)
        self.config, self.overrides = config, overrides
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
        self.visit(stations)
        self.summary()

    def get_books(self) -> None:
        """Books"""
        self.infty(
            "books",
            "--output",
            self.folder / "books",
            *(["--books", self.books] if self.books else []),
        )

    def prepare(self) -> None:
        """Tokenizer and memory-mapped dataset"""
        self.infty(
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
            self.infty(
                *command, processes=2, meanwhile=self._stop_early, accepted=(0, exit_codes.STOPPED)
            )
            console.print(
                "[dim]part two: the same command again; it picks up where it stopped[/dim]"
            )
        self.infty(*command, processes=2)

    def pretrain_without(self) -> None:
        """The same blocks, steps and data without a memory: what a memory is worth is seen beside such a model only"""
        self.infty(*self._pretrain_command(self.without), *WITHOUT, processes=2)

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
        self.infty(
            "evaluate",
            self.without,
            self.run_folder,
            "--data",
            self.dataset / "validation",
            "--output",
            self.folder / EVALUATION,
        )

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
            escape(shlex.join([self.program("tensorboard"), "--logdir", str(self.run_folder)])),
        )
        table.add_row("exported model", escape(str(self.export)))
        table.add_row("this demo took", f"{(time.time() - self.started) / 60:.1f} minutes")
        console.print(Panel(table, title="[bold]done", border_style="green"))
        self.say_next(self.export, "Once more unto the breach")

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

    def _stop_early(self, process: subprocess.Popen) -> None:
        """Ask a running `pretrain` to stop when a third of its steps is done, as one can at any time."""
        while process.poll() is None:
            rows = self._metrics(self.run_folder)
            if rows and 3 * rows[-1]["step"] >= rows[-1]["steps"]:
                (self.run_folder / "stop").touch()
                return
            time.sleep(0.5)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
