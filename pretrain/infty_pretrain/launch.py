"""Finding out which rank this process is, under whatever started it, and leaving cleanly."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from infty.errors import UserError
from infty_pretrain import environment, rendezvous


@dataclass(frozen=True)
class Launch:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    launcher: str
    """env (torchrun, deepspeed), mpi, slurm or single."""

    def own_gpu(self, visible: int) -> int | None:
        """Which of the `visible` GPUs is this process's own; None where there are none, or several and still too few.

        Launchers show every process either all GPUs of its node, or its own alone (`srun --gpus-per-task=1`), which
        is then number 0 whatever the local rank.
        """
        if self.local_rank < visible:
            return self.local_rank
        return 0 if visible == 1 else None


def detect(environ: MutableMapping[str, str] | None = None) -> Launch:
    """Map what the launcher set to RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and report it.

    The order matters: mpirun inside a Slurm job inherits SLURM_PROCID from its daemon, and a batch script itself has
    SLURM_PROCID without being a task. Raises UserError for values that cannot be, or that contradict each other.
    """
    env = os.environ if environ is None else environ
    environment.check(env)
    launcher = _launcher(env)
    if launcher == "mpi":
        from_mpi(env)
    elif launcher == "slurm":
        env.update(
            RANK=env["SLURM_PROCID"],
            WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"],
            LOCAL_RANK=env["SLURM_LOCALID"],
        )
    elif launcher == "single":
        env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    env.setdefault("LOCAL_RANK", "0")
    if env["WORLD_SIZE"] == "1":
        rendezvous.alone(env)
    missing = [k for k in ("MASTER_ADDR", "MASTER_PORT") if not env.get(k)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be exported before the processes start, so that they find each "
            "other (infty submit writes batch files that do)"
        )
    return Launch(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), launcher)


def _launcher(env: MutableMapping[str, str]) -> str:
    """Who started this process: see `Launch.launcher`."""
    outer = "single"
    if any(k in env for k in ("OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")) or (
        "PMI_RANK" in env and "SLURM_STEP_ID" not in env
    ):  # srun --mpi=pmi2 sets PMI_RANK, too
        outer = "mpi"
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        outer = "slurm"
    if "RANK" in env and "WORLD_SIZE" in env and not _left_over(env, outer):
        return "env"
    return outer


def _left_over(env: MutableMapping[str, str], outer: str) -> bool:
    """Whether RANK and WORLD_SIZE come from the shell in which mpirun or srun was typed.

    torchrun and deepspeed started by mpirun or srun, one a node, set them for more processes than it started.
    """
    names = {
        "mpi": (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE")),
        "slurm": (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),),
        "single": (),
    }[outer]
    rank, size = next(
        ((int(env[r]), int(env[s])) for r, s in names if r in env and s in env), (0, 1)
    )
    if int(env["WORLD_SIZE"]) < size:
        if rank == 0:
            print(
                f"RANK={env['RANK']} and WORLD_SIZE={env['WORLD_SIZE']} in the environment are not this run's, which "
                f"has {size} processes: ignored",
                flush=True,
            )
        return True
    inner = "TORCHELASTIC_RUN_ID" in env or "CROSS_RANK" in env  # set by torchrun; by deepspeed
    if int(env["WORLD_SIZE"]) == size > 1 and int(env["RANK"]) != rank and not inner:
        raise UserError(
            f"RANK={env['RANK']} is set in the environment, but this is process {rank} of {size}: unset "
            "RANK and WORLD_SIZE before starting, or set both to what each process is"
        )
    return False


def from_mpi(env: MutableMapping[str, str]) -> None:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            "this process was started by mpirun, which needs mpi4py: pip install 'infty[mpi]' "
            f"({error})"
        ) from error
    world = MPI.COMM_WORLD
    local = env.get("OMPI_COMM_WORLD_LOCAL_RANK") or env.get("MPI_LOCALRANKID")
    here = world.Split_type(MPI.COMM_TYPE_SHARED)
    env.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=local or str(here.rank))
    given = {k: env.get(k) for k in ("MASTER_ADDR", "MASTER_PORT")}  # kept: exported on purpose
    try:
        found = (
            rendezvous.offer(given, one_host=here.size == world.size) if world.rank == 0 else None
        )
    except UserError as error:
        found = error
    found = world.bcast(found)
    if isinstance(found, UserError):
        raise found
    env.update(found)


def quiet() -> None:
    """Silence what libraries say to each other; call it before they are imported."""
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch.distributed.*")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def patience(stall_minutes: float | None) -> timedelta:
    """How long a collective waits: well beyond the watchdog, which knows better what to say; a year without one."""
    return timedelta(minutes=2 * stall_minutes + 10) if stall_minutes else timedelta(days=365)


def connect(launch: Launch, tensor: int, stall_minutes: float | None = 30.0) -> str:
    """Join the other processes and split them into tensor-parallel groups; return the device, `cpu` or `cuda:N`.

    `stall_minutes` is the watchdog's limit (None: there is none). Raises UserError where the processes cannot meet, or
    find no device of their own.
    """
    quiet()
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(environment.threads() or max(1, _cores() // _local_world(launch)))
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    from infty.parallel import groups

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # Only inference uses it, and it would be compiled at start-up, for a minute and more.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = "cpu"
    else:
        index = device_index(launch, accelerator.device_count())
        _tell_deepspeed(index)
        accelerator.set_device(index)
        device = f"cuda:{index}"
    wait = patience(stall_minutes)  # DeepSpeed's own would be ten minutes
    rendezvous.meet(launch.rank, launch.world, accelerator.communication_backend_name(), wait)
    deepspeed.init_distributed(
        accelerator.communication_backend_name(),
        auto_mpi_discovery=False,
        verbose=False,
        timeout=wait,
    )
    groups.initialize(tensor=tensor, timeout=wait)
    return device


def device_index(launch: Launch, visible: int) -> int:
    """Which of the `visible` GPUs is this process's own (Launch.own_gpu). Raises UserError where none is."""
    index = launch.own_gpu(visible)
    if index is None:
        raise UserError(
            f"process {launch.local_rank} of its node finds {visible} GPUs: start at most one process per GPU, "
            f"or check CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')})"
        )
    return index


def _tell_deepspeed(index: int) -> None:
    """DeepSpeed takes LOCAL_RANK for the number of a device, and insists that Open MPI's says the same."""
    os.environ["LOCAL_RANK"] = str(index)
    if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
        os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = str(index)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _local_world(launch: Launch) -> int:
    for name in (
        "LOCAL_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "MPI_LOCALNRANKS",
        "SLURM_NTASKS_PER_NODE",
    ):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return launch.world


def leave(launch: Launch, code: int, *, together: bool = True) -> NoReturn:
    """End the process with an exit code, without Python's teardown: gloo's threads can abort it.

    `together` waits for the other ranks first; not after an error, when they may never come.
    """
    import torch.distributed as dist

    if together and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        if launch.launcher == "mpi":
            from mpi4py import MPI

            MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
