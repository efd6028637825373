"""A Slurm job as a value, and its batch file, rendered from the templates in slurm/templates."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infty import ranges
from infty.errors import UserError
from infty.ranges import Range, whole

Verb = Literal["pretrain", "evaluate", "prepare"]
RANGES: dict[str, Range] = {
    "nodes": whole(1, 65_536),
    "gpus_per_node": whole(0, 1_024),
    "tasks_per_node": whole(1, 4_096),
    "cpus_per_task": whole(1, 65_536),
    "lead_seconds": whole(1, 10**6),
    "starts": whole(1, 10**6),
}
_TIMES = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_SPAN = r"\d+(-\d+(:\d+)?)?"
PATTERNS: dict[str, tuple[str, str]] = {
    "memory": (
        r"\d+([KMGT]B?)?",
        "a number with K, M, G or T, such as 200G, or 0 for all of a node's",
    ),
    "time": (
        "|".join(re.sub(r"\?P<\w+>", "", t) for t in _TIMES) + "|unlimited|infinite",
        "minutes, 24:00:00, 2-12:00:00, or unlimited",
    ),
    "array": (rf"{_SPAN}(,{_SPAN})*(%\d+)?", "numbers such as 0-3, 1,5,7 or 0-31%4"),
}
"""Of words that sbatch takes apart: what they may be, and examples."""


@dataclass(frozen=True)
class Job:
    """Everything a batch file says. What is left out is left to the cluster's defaults."""

    verb: Verb = "pretrain"
    arguments: str = ""
    """Of the verb, quoted for a shell."""
    name: str = "infty"
    nodes: int = 1
    gpus_per_node: int = 8
    """0: a CPU job."""
    tasks_per_node: int = 8
    cpus_per_task: int = 8
    memory: str | None = None
    """Of a node, such as 200G; `0` asks for all of it."""
    time: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """Nodes not to run on, such as node[3,7]."""
    array: str | None = None
    """Such as 0-3%2: one run for each number, which stands for {task} in the arguments."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, as they are: --switches=1."""
    setup: tuple[str, ...] = ()
    """Shell lines that make `infty` available: module load ..., source .../activate, export
    NCCL_...=..."""
    command: str = "infty"
    """What runs a verb on the nodes; inside the container, if there is one."""
    python: str = "python"
    """What runs the batch script's own program, outside the container: a Python that has infty."""
    container: str | None = None
    """Image for srun's --container-image (enroot/pyxis)."""
    container_mounts: str | None = None
    lead_seconds: int = 300
    """How long before the time limit the run is told to save and stop. Slurm may be a minute
    early."""
    starts: int = 50
    """How often the job may start in all, first start included."""
    mpi: str = "pmi2"
    """Of srun, for preprocessing."""
    logs: str = "logs"
    """Folder of the jobs' logs, quoted for a shell."""
    run_folder: str = ""
    """Of a training run, quoted for a shell."""
    output: str = "%x-%j.out"
    """Of the batch script itself."""

    @property
    def asks_for_gpus_itself(self) -> bool:
        """Whether a further option of sbatch takes the place of --gpus-per-node."""
        return any(re.match(r"--gpus|--gres[= ]gpu|-G", line) for line in self.sbatch)

    def __post_init__(self) -> None:
        """Raises UserError for values that Slurm would refuse or that would break the file."""
        ranges.check(self, RANGES, "--")
        checks = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            texts = value if isinstance(value, tuple) else [value] if isinstance(value, str) else []
            checks.append((not any("\n" in t for t in texts), f.name, "must be one line"))
        for name, (pattern, examples) in PATTERNS.items():
            value = getattr(self, name)
            fits = value is None or re.fullmatch(pattern, value, re.ASCII | re.IGNORECASE)
            checks.append((bool(fits), name, f"is not what sbatch reads: write {examples}"))
        for holds, key, problem in checks:
            if not holds:
                raise UserError(f"--{key.replace('_', '-')}: {getattr(self, key)!r} {problem}")


def from_dict(values: dict[str, Any], source: str) -> Job:
    """A job from plain values such as a profile's. Raises UserError for an unknown key or a wrong
    type."""
    from infty_pretrain import typed

    return typed.validated(Job, values, source)


def read_values(path: Path) -> Any:
    """What a YAML file of options holds. Raises UserError for one that cannot be read."""
    from infty_pretrain import typed

    return typed.read_yaml_file(path)


def templates() -> Path:
    """The folder of templates: beside this module in an installed wheel, slurm/templates in a
    clone."""
    here = Path(__file__).resolve().parent
    for folder in (here / "templates", here.parents[2] / "slurm" / "templates"):
        if (folder / "header.j2").is_file():
            return folder
    raise UserError(
        "the templates of batch files are missing from this installation: reinstall infty"
    )


def render(job: Job) -> str:
    """The batch file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters.update(directive=_directive, word=_word)
    return environment.get_template(f"{job.verb}.sbatch.j2").render(job=job)


def _directive(value: str) -> str:
    """A value on an #SBATCH line: sbatch ends it at a space or a #, and knows a shell's quotes."""
    return shlex.quote(value) if re.search(r"[\s'\"\\#]", value) else value


def _word(value: str) -> str:
    """One word of the script, in which variables such as $SCRATCH keep their meaning."""
    return value if shlex.quote(value) == value else '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'


def seconds(time: str) -> int | None:
    """A time limit as Slurm reads it; None for one without end (0) and for what only Slurm may
    understand."""
    found = next(filter(None, (re.fullmatch(pattern, time.strip()) for pattern in _TIMES)), None)
    if found is None:
        return None
    lengths = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    return (
        sum(lengths[unit] * int(count) for unit, count in found.groupdict(default="0").items())
        or None
    )


def check_lead(job: Job) -> None:
    """Raises UserError when the job would be told to stop before it has done much."""
    limit = seconds(job.time)
    if job.verb == "evaluate" or limit is None:  # an evaluation is not told to stop
        return
    most = min(limit // 2, limit - 120)  # a minute is Slurm's, another one the start's
    if job.lead_seconds > most:
        shorter = (
            f", or --lead-seconds {most} or less"
            if most >= 1
            else " (and fewer --lead-seconds, if necessary)"
        )
        raise UserError(
            f"--lead-seconds {job.lead_seconds} is too much for --time {job.time} ({limit} seconds): the "
            "job is told to stop that long before its limit, and Slurm may be a minute early. Give a "
            f"longer --time{shorter}"
        )


def quote(words: list[str], array: str | None) -> str:
    """Words for a shell; in an array, {task} becomes the number of the task."""
    return " ".join(quote_task(word) if array else shlex.quote(word) for word in words)


def quote_task(word: str) -> str:
    """A word for the shell of an array's task, with its number for {task}."""
    if "{task}" not in word:
        return shlex.quote(word)
    # The variable stands between double quotes, what surrounds it in its own.
    return '"$SLURM_ARRAY_TASK_ID"'.join(
        shlex.quote(part) if part else "" for part in word.split("{task}")
    )
