"""Finding out which rank this process is, under whatever started it, and leaving cleanly."""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from infty.errors import UserError


@dataclass(frozen=True)
class Launch:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    launcher: str
    """env (torchrun, deepspeed), mpi, slurm or single."""


def detect(environment: MutableMapping[str, str] | None = None) -> Launch:
    """Map what the launcher set to RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and report it.

    The order matters: mpirun inside a Slurm job inherits SLURM_PROCID from its daemon, and a batch script itself has
    SLURM_PROCID without being a task.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        launcher = "env"
        env.setdefault("LOCAL_RANK", "0")
    elif any(k in env for k in ("OMPI_COMM_WORLD_RANK", "MPI_LOCALRANKID")) or (
            "PMI_RANK" in env and "SLURM_STEP_ID" not in env):  # srun --mpi=pmi2 sets PMI_RANK, too
        launcher = "mpi"
        _from_mpi(env)
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        launcher = "slurm"
        env.update(RANK=env["SLURM_PROCID"], WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"],
                   LOCAL_RANK=env["SLURM_LOCALID"])
        if env["WORLD_SIZE"] == "1":
            _alone(env)
    else:
        launcher = "single"
        env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        _alone(env)
    missing = [k for k in ("MASTER_ADDR", "MASTER_PORT") if k not in env]
    if missing:
        raise UserError(f"{' and '.join(missing)} must be exported before the processes start, so that they find each "
                        "other (infty submit writes batch files that do)")
    return Launch(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), launcher)


def _from_mpi(env: MutableMapping[str, str]) -> None:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError("this process was started by mpirun, which needs mpi4py: pip install 'infty[mpi]' "
                        f"({error})") from error
    world = MPI.COMM_WORLD
    local = env.get("OMPI_COMM_WORLD_LOCAL_RANK") or env.get("MPI_LOCALRANKID")
    if local is None:
        local = str(world.Split_type(MPI.COMM_TYPE_SHARED).rank)
    one_host = len(set(world.allgather(socket.gethostname()))) == 1
    address = "127.0.0.1" if one_host else socket.gethostbyname(socket.gethostname())
    address, port = world.bcast((address, _free_port()) if world.rank == 0 else None)
    env.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=local, MASTER_ADDR=address,
               MASTER_PORT=str(port))


def _alone(env: MutableMapping[str, str]) -> None:
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", str(_free_port()))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


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

    `stall_minutes` is the watchdog's limit (None: there is none).
    """
    quiet()
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or max(1, _cores() // _local_world(launch))))
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
        accelerator.set_device(launch.local_rank)
        device = f"cuda:{launch.local_rank}"
    wait = patience(stall_minutes)  # DeepSpeed's own would be ten minutes
    deepspeed.init_distributed(accelerator.communication_backend_name(), auto_mpi_discovery=False, verbose=False,
                               timeout=wait)
    groups.initialize(tensor=tensor, timeout=wait)
    return device


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _local_world(launch: Launch) -> int:
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
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
