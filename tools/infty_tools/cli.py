"""The `infty` command. Every verb lives in a module of its own and imports what is heavy only when it runs."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
import traceback
from typing import NoReturn

import typer

from infty import __version__, exit_codes
from infty.access import refused
from infty.errors import UserError
from infty_tools.strict import StrictCommand
from infty_tools.tasks.command import TASKS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Pretrain language models with an unbounded continuous memory on whole books.\n\n"
    "The usual order: prepare, pretrain, evaluate, export, generate.",
)
task = typer.Typer(
    no_args_is_help=True,
    help="Make a dataset of questions whose answers are known, as hard as the options say.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure: every figure side by side in one run.")

# verb -> (module, function); a verb whose module is not part of this installation is not offered.
VERBS = {
    "prepare": ("data.prepare", "prepare"),
    "inspect": ("data.prepare", "inspect"),
    "books": ("data.books", "books"),
    "pretrain": ("pretrain", "pretrain"),
    "evaluate": ("evaluate.command", "evaluate"),
    "report": ("report.command", "report"),
    "adapt": ("adapt.command", "adapt"),
    "export": ("export.command", "export"),
    "generate": ("generate", "generate"),
    "look": ("look.command", "look"),
    "chat": ("chat", "chat"),
    "plan": ("plan.command", "plan"),
    "submit": ("slurm.submit", "submit"),
    "doctor": ("doctor.command", "doctor"),
}
BENCHES = {
    "memory": ("bench.memory", "memory"),
    "retention": ("bench.retention", "retention"),
    "room": ("bench.room", "room"),
    "layouts": ("bench.layouts", "layouts"),
    "faults": ("bench.faults", "faults"),
    "recall": ("bench.recall", "recall"),
    "growth": ("bench.growth", "growth"),
    "checkpoint": ("bench.checkpoint", "checkpoint"),
    "generate": ("bench.generate", "generate"),
    "inputs": ("bench.inputs", "inputs"),
    "train": ("bench.train", "train"),
    "gpu": ("bench.gpu", "gpu"),
    "prepare": ("bench.prepare", "prepare"),
}


def _register(target: typer.Typer, verbs: dict[str, tuple[str, str]]) -> None:
    for name, (module, function) in verbs.items():
        if importlib.util.find_spec(f"infty_tools.{module}") is not None:
            verb = getattr(importlib.import_module(f"infty_tools.{module}"), function, None)
            if verb is not None:
                target.command(name, cls=StrictCommand)(verb)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


_register(app, VERBS)
_register(task, TASKS)
app.add_typer(task, name="task")
_register(bench, BENCHES)
app.add_typer(bench, name="bench")


def main() -> NoReturn:
    """Run a verb; say what a person can mend in one message, and end with a status that tells what happened.

    2: a mistake in what was given. 130: Ctrl-C. 85: a run that was stopped and goes on when started again.
    """
    # The deepspeed launcher adds --local_rank=N; the environment says the same.
    arguments = [a for a in sys.argv[1:] if not a.startswith(("--local_rank", "--local-rank"))]
    code = 1
    try:
        # Outside its standalone mode typer returns the status of an Exit, and turns Ctrl-C into one of 130.
        result = app(args=arguments, prog_name="infty", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        if code == exit_codes.INTERRUPTED:
            _say("stopped", code)
    except UserError as error:
        code = _say(str(error), exit_codes.MISTAKE)
    except typer.Exit as leaving:
        code = leaving.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _say("stopped", exit_codes.INTERRUPTED)
    except Exception as error:
        code = _explain(error)
    end(code)


def _explain(error: Exception) -> int:
    """Say what ended the command; with a stack trace only where the program, not the person, can mend it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _say(
            f"the disk is full ({error.filename or error}): make room and run the same command again",
            1,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        name = str(error.filename or "")[:60]
        return _say(f"{error.strerror}: {name}... names no file or folder", exit_codes.MISTAKE)
    if isinstance(error, PermissionError):
        return _say(refused(error), exit_codes.MISTAKE)
    if hasattr(error, "format_message"):  # a usage error of the command line
        # Every rank is given the same words: one of them says what is wrong with them.
        message = error.format_message()
        return _say(message, exit_codes.MISTAKE) if launched_as() == 0 else exit_codes.MISTAKE
    if isinstance(error, RuntimeError) and any(
        f"Connection {e} by peer" in str(error) for e in ("closed", "reset")
    ):
        rank = os.environ.get("RANK", "0")
        print(
            f"error: rank {rank}: another process of this run has ended; its own message says why",
            file=sys.stderr,
            flush=True,
        )
        return 1
    traceback.print_exception(error)
    return 1


def launched_as() -> int:
    """The rank that a launcher gave this process; 0 without one."""
    names = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    given = next((os.environ[name] for name in names if os.environ.get(name, "").isdigit()), "0")
    return int(given)


def _say(message: str, code: int) -> int:
    if launched_as() == 0 or code == exit_codes.MISTAKE:
        line = message.replace(
            "\n", "\\n"
        )  # a value that was given may hold line ends: a mistake is one line
        print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def end(code: int) -> NoReturn:
    """Leave at once when process groups are up: another rank may never come, and gloo can abort a teardown."""
    sys.stdout.flush()
    sys.stderr.flush()
    connected = (
        "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    )
    if connected or (code == 1 and "mpi4py.MPI" in sys.modules):  # mpirun then ends the others
        os._exit(code)
    sys.exit(code)
