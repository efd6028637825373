"""`infty submit`: check a run, write its batch file, show both, hand it to Slurm."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from infty.errors import UserError
from infty_tools.options import CONFIG_OPTION, Number, any_path, one_of, utf8
from infty_tools.slurm.job import RANGES, Verb

if TYPE_CHECKING:
    from infty_pretrain.config import Config
    from infty_tools.slurm.job import Job

Option = typer.Option


def number(name: str) -> Number[int]:
    """Reads one of a job's numbers."""
    return Number(RANGES[name], int)


def submit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            parser=utf8,
            help="Changes to the config (section.key=value); with another --verb: its options, after --",
        ),
    ] = None,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
    nodes: Annotated[
        int | None,
        Option("--nodes", "-N", parser=number("nodes"), metavar="N", help="Machines [1]"),
    ] = None,
    verb: Annotated[
        str,
        Option(
            parser=one_of(*get_args(Verb)), metavar="VERB", help="pretrain, evaluate or prepare"
        ),
    ] = "pretrain",
    gpus_per_node: Annotated[
        int | None,
        Option(
            parser=number("gpus_per_node"),
            metavar="N",
            help="GPUs in each machine; 0: CPUs only [8]",
        ),
    ] = None,
    tasks_per_node: Annotated[
        int | None,
        Option(
            parser=number("tasks_per_node"), metavar="N", help="Processes per machine [one per GPU]"
        ),
    ] = None,
    cpus_per_task: Annotated[
        int | None, Option(parser=number("cpus_per_task"), metavar="N", help="Cores a process [8]")
    ] = None,
    memory: Annotated[
        str | None, Option(parser=utf8, help="Memory of a node, such as 200G")
    ] = None,
    time: Annotated[str | None, Option(parser=utf8, help="Time limit [24:00:00]")] = None,
    partition: Annotated[str | None, Option("--partition", "-p", parser=utf8)] = None,
    account: Annotated[str | None, Option("--account", "-A", parser=utf8)] = None,
    qos: Annotated[str | None, Option(parser=utf8)] = None,
    constraint: Annotated[str | None, Option(parser=utf8)] = None,
    exclude: Annotated[str | None, Option(parser=utf8, help="Nodes not to run on")] = None,
    array: Annotated[
        str | None,
        Option(parser=utf8, help="0-3%2: a run for each number; {task} in a change becomes it"),
    ] = None,
    sbatch: Annotated[
        list[str] | None, Option(parser=utf8, help="Further option of sbatch, such as --switches=1")
    ] = None,
    setup: Annotated[
        list[str] | None,
        Option(parser=utf8, help="Shell line that makes infty available on a node"),
    ] = None,
    container: Annotated[
        str | None, Option(parser=utf8, help="Image for srun --container-image")
    ] = None,
    container_mounts: Annotated[
        str | None, Option(parser=utf8, help="Mounts of the container")
    ] = None,
    lead_seconds: Annotated[
        int | None,
        Option(
            parser=number("lead_seconds"),
            metavar="N",
            help="Save and stop this long before the limit [300]",
        ),
    ] = None,
    starts: Annotated[
        int | None,
        Option(
            parser=number("starts"), metavar="N", help="How often the job may start in all [50]"
        ),
    ] = None,
    mpi: Annotated[
        str | None, Option(parser=utf8, help="srun --mpi for preprocessing [pmi2]")
    ] = None,
    name: Annotated[str | None, Option(parser=utf8, help="Name of the job")] = None,
    gpu: Annotated[str, Option(parser=utf8, help="Kind of GPU, for the plan")] = "h100-80",
    profile: Annotated[
        Path | None,
        Option(
            parser=any_path,
            metavar="PATH",
            help="YAML file with any of these, for a cluster: partition: ...",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Show the plan and the batch file, send nothing")
    ] = False,
) -> None:
    """Send a run to a Slurm cluster, after checking its config, its layout and that it fits.

    The job looks at its nodes first (`infty doctor`), runs one task per GPU, saves and requeues
    itself before its time limit, on a signal and when a node fails, and goes on from its newest
    checkpoint.

    Examples:

      infty submit --config configs/pg19-1.3b.yaml --nodes 4 --partition gpu --account books --dry-run

      infty submit -c configs/pg19-125m.yaml --array 0-2 run.seed={task} run.folder=runs/seed-{task}

      infty submit --verb evaluate --nodes 1 -- runs/pg19-125m --data data/pg19/validation
    """
    from infty_tools.slurm import job as jobs

    given = dict(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        memory=memory,
        time=time,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        exclude=exclude,
        array=array,
        sbatch=tuple(sbatch) if sbatch else None,
        container=container,
        setup=tuple(setup) if setup else None,
        container_mounts=container_mounts,
        starts=starts,
        mpi=mpi,
        lead_seconds=lead_seconds,
        name=name,
    )
    job = _job(
        _profile(profile) | {k: v for k, v in given.items() if v is not None} | {"verb": verb}
    )
    jobs.check_lead(job)
    words = list(arguments or [])
    job = (
        _pretraining(job, config, words, gpu)
        if job.verb == "pretrain"
        else _other(job, config, words)
    )
    _show(jobs.render(job))
    if dry_run:
        print("nothing was sent")
    else:
        _send(job, config)


def _job(values: dict[str, Any]) -> Job:
    """The job that these options ask for, before what it runs is looked at."""
    from infty_tools.slurm import job as jobs

    values.setdefault("tasks_per_node", values.get("gpus_per_node", 8) or 1)
    this_python = shlex.quote(sys.executable)
    if (
        "setup" not in values or "container" in values
    ):  # the batch script itself runs outside a container
        values.setdefault("python", this_python)
    if "setup" not in values and "container" not in values:
        values.setdefault("command", f"{this_python} -m infty_tools")
    return jobs.from_dict(values, "submit")


def _profile(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from infty_tools.slurm.job import read_values

    if not path.is_file():
        raise UserError(f"--profile {path}: no such file")
    values = read_values(path) or {}
    if not isinstance(values, dict):
        raise UserError(
            f"--profile {path} must hold options, one per line (partition: gpu), not a "
            f"{type(values).__name__}"
        )
    return values


def _pretraining(job: Job, config: Path | None, overrides: list[str], gpu: str) -> Job:
    """Check the run on the cluster it is meant for, and fill in what its batch file needs to
    know."""
    import dataclasses

    from infty_pretrain import idle
    from infty_tools.slurm.job import quote

    if config is None:
        raise UserError("--config is missing: name the run's YAML file")
    numbers = [o.replace("{task}", "0") for o in overrides] if job.array else overrides
    if job.array and not any("{task}" in o for o in overrides if o.startswith("run.folder=")):
        raise UserError(
            "an array needs a folder for each of its runs: add run.folder=runs/NAME-{task}"
        )
    resolved = idle.load(config, numbers)
    _check_plan(resolved, job, gpu)
    folder = resolved.run.folder
    if job.array:
        folder = Path(next(o for o in overrides if o.startswith("run.folder=")).partition("=")[2])
    logs = _shared(folder) / "slurm" if job.array else folder.parent / f"{folder.name}-slurm"
    words = quote(["--config", str(_snapshot(logs, config)), *overrides], job.array)
    return dataclasses.replace(
        job,
        arguments=words,
        run_folder=quote([str(folder)], job.array),
        logs=shlex.quote(str(logs)),
        output=f"{_literal(logs)}/{'%A_%a' if job.array else '%j'}.out",
        name=job.name if job.name != "infty" else _job_name(config),
    )


def _literal(path: Path) -> str:
    """A path in a pattern of sbatch's, in which % begins a number."""
    return str(path).replace("%", "%%")


def _shared(folder: Path) -> Path:
    """The folder that all runs of an array have in common."""
    return next(p for p in folder.parents if "{task}" not in str(p))


def _snapshot(logs: Path, config: Path) -> Path:
    """Where a submitted job keeps its config: it may start, and start again, long after somebody
    has edited the file it was submitted with."""
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    return logs / f"{config.stem}-{digest[:12]}.yaml"


def _job_name(config: Path) -> str:
    return config.stem.replace(" ", "-")


def _check_plan(config: Config, job: Job, gpu: str) -> None:
    """Refuse a layout that is not one, or that does not fit; say how fast it would be."""
    from infty import hardware
    from infty_tools.plan import report as plan_report
    from infty_tools.plan import search as plan_search
    from infty_tools.plan.command import refuse_unless_it_fits, with_vocab

    config.check_layout(job.nodes * job.tasks_per_node)
    if job.gpus_per_node == 0:
        print(
            f"{job.nodes} x {job.tasks_per_node} CPU processes; "
            "the plan is for GPUs and was left out"
        )
        return
    if job.tasks_per_node != job.gpus_per_node:
        raise UserError(
            f"--tasks-per-node {job.tasks_per_node}: a GPU run has one task per GPU, "
            f"{job.gpus_per_node} a node"
        )
    config, _ = with_vocab(config)
    device = hardware.find(gpu)
    chosen = plan_search.evaluate(
        config,
        plan_search.of_config(config, job.nodes * job.gpus_per_node),
        device,
        job.gpus_per_node,
    )
    fits = chosen.total <= device.memory
    fitting = [] if fits else plan_search.search(config, job.nodes, job.gpus_per_node, device)
    refuse_unless_it_fits(config, chosen, fitting, device, job.nodes, job.gpus_per_node)
    rate = chosen.cost.tokens_per_second
    days = config.total_tokens / rate / 86400
    print(
        f"plan for {job.nodes} x {job.gpus_per_node} {gpu}: {plan_report.name(chosen)}; "
        f"{chosen.total / 2**30:.1f} of {device.memory / 2**30:.1f} GiB per GPU; about {rate:,.0f} tokens/s, "
        f"{days:,.1f} days ({config.total_steps:,} steps). More: infty plan"
    )


def _other(job: Job, config: Path | None, words: list[str]) -> Job:
    """Evaluation and preprocessing: their own options are passed on as they are."""
    import dataclasses

    from infty_tools.slurm.job import quote

    if config is not None:
        raise UserError(
            f"--config is for pretraining; give the options of `infty {job.verb}` after --"
        )
    if not words:
        raise UserError(f"give the options of `infty {job.verb}` after --, as on the command line")
    return dataclasses.replace(
        job,
        arguments=quote(words, job.array),
        name=job.name if job.name != "infty" else f"infty-{job.verb}",
        logs="logs",
        output=f"logs/{'%A_%a' if job.array else '%j'}.out",
    )


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "bash", background_color="default"))


def _send(job: Job, config: Path | None) -> None:
    """Give the batch file to sbatch and say where to look."""
    from infty_tools.slurm.job import render

    text = render(job)
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch here: run this on a login node of a Slurm cluster, or add --dry-run"
        )
    folder = Path(shlex.split(job.logs)[0])
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        shutil.copyfile(config, _snapshot(folder, config))
    # The batch script reads what it was submitted with, whatever later happens to a file.
    done = subprocess.run(
        ["sbatch", "--parsable"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("SBATCH_", "SLURM_JOB"))},
    )
    if done.returncode:
        raise UserError(f"sbatch refused the job: {done.stderr.strip()}")
    number = done.stdout.strip().split(";")[0]
    (folder / f"{number}.sbatch").write_text(text)
    each = f"{number}_*" if job.array else number
    logs = f"{job.logs}/{each}"  # quoted: to be pasted into a shell
    print(
        f"submitted job {number}\n  what happens:  {logs}/summary.txt\n"
        f"  log of a node: {logs}/node-0.log"
    )
    if job.verb != "evaluate":
        print(f"  stop and save: scancel --batch --signal=USR1 {number}")
