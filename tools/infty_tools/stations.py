"""What the demos have in common: stations that are ordinary `infty` commands, in a folder of their own."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from infty import exit_codes
from infty.errors import UserError

MARKER = ".infty-demo"
console = Console()


def carry_out(command: str, demo: Callable[[], None]) -> None:
    """Run a demo as the program that `command` starts: a mistake is one message, and Ctrl-C says how to go on."""
    try:
        demo()
    except UserError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        sys.exit(exit_codes.MISTAKE)
    except KeyboardInterrupt:
        console.print(f"\nstopped; `{command}` goes on from here")
        sys.exit(exit_codes.INTERRUPTED)


class Stations:
    """A folder, and how commands are run and shown. Each station is skipped when its result is already there."""

    command = "make demo"
    """What goes on where it stopped."""
    variable = "DEMO"
    """Of the Makefile: names the folder."""

    def __init__(self, folder: Path, books: Path | None) -> None:
        """Raises UserError for a folder that is something else, or books that are not there."""
        if books is not None and not books.is_dir():
            raise UserError(f"BOOKS={books} is not a folder: give one that holds .txt books")
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} exists and was not made by the demo; leaving it alone. "
                f"Name another folder: {self.command} {self.variable}=folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
        self.folder, self.books = folder, books
        self.dataset, self.run_folder = folder / "dataset", folder / "run"
        self.export = folder / "export"

    def visit(self, stations: tuple[Callable[[], None], ...]) -> None:
        """One after another, each announced by the first line of its docstring."""
        for number, station in enumerate(stations, 1):
            title = (station.__doc__ or "").splitlines()[0]
            console.rule(f"[bold]{number}/{len(stations)}  {title}")
            station()

    def export_model(self) -> None:
        """Hugging Face export"""
        if self.export.exists():
            console.print(f"already in {self.export}", markup=False)
            return
        self.infty("export", "--checkpoint", self.run_folder, "--output", self.export)

    @staticmethod
    def program(name: str) -> str:
        """A program of this environment, as one would type it here."""
        path = Path(sys.executable).parent / name
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def say_next(self, export: Path, prompt: str) -> None:
        """The command that writes on from a prompt, as one would type it here."""
        words = [self.program("infty"), "generate", "--model", str(export), "--prompt", prompt]
        console.print("Next, write on from a beginning of your own:", highlight=False)
        console.print(f"  {shlex.join(words)}", highlight=False, markup=False, soft_wrap=True)

    def infty(
        self,
        *arguments: str | Path,
        processes: int = 1,
        meanwhile: Callable[[subprocess.Popen], None] | None = None,
        accepted: tuple[int, ...] = (0,),
    ) -> None:
        """Run one verb, shown as one would type it; a failure ends the demo with what it said.

        `meanwhile` is given the first process while it runs; `accepted` are the statuses that are no failure.
        """
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
            if meanwhile is not None:
                meanwhile(started[0])
            codes = [process.wait() for process in started]
        except KeyboardInterrupt:
            for process in started:  # they got it too: let them save
                process.wait(timeout=120)
            raise
        if not set(codes) <= set(accepted):
            raise UserError(
                f"`infty {words[0]}` ended with status {max(codes, key=abs)}; what it said is above. "
                f"Once that is mended, `{self.command}` goes on from here"
            )


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
