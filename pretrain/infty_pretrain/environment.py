"""Environment variables that this program or the libraries below it read: their values are checked before use."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from infty.errors import UserError

# (name, least, most, what it is). Launchers set the first group; people export the second.
_NUMBERS = (
    *(
        (name, 0, None, "the number of a process")
        for name in (
            "RANK",
            "LOCAL_RANK",
            "SLURM_PROCID",
            "SLURM_LOCALID",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "PMI_RANK",
            "MPI_LOCALRANKID",
        )
    ),
    *(
        (name, 1, None, "a number of processes")
        for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
    ),
    ("MASTER_PORT", 0, 65_535, "a port"),
)
_CHOICES = {
    "DS_ACCELERATOR": ("cpu", "cuda"),
    "TORCH_DISTRIBUTED_DEBUG": ("OFF", "INFO", "DETAIL"),
}


def check(env: Mapping[str, str]) -> None:
    """Raises UserError that names the first variable with a value that nothing can be started with."""
    for name, least, most, what in _NUMBERS:
        if env.get(name):
            _check_number(name, env[name], least, most, what)
    if env.get("RANK") and env.get("WORLD_SIZE") and int(env["RANK"]) >= int(env["WORLD_SIZE"]):
        raise UserError(
            f"RANK={env['RANK']} in the environment must be less than WORLD_SIZE={env['WORLD_SIZE']}: "
            "unset both, or set them for every process"
        )
    for name, known in _CHOICES.items():
        if env.get(name) and env[name].upper() not in {k.upper() for k in known}:
            raise UserError(
                f"{name}={env[name]} in the environment is not one of {', '.join(known)}: unset it or give "
                "one of these"
            )
    _check_interface(env.get("GLOO_SOCKET_IFNAME"))
    threads(env)


def threads(env: Mapping[str, str] | None = None) -> int | None:
    """How many threads OMP_NUM_THREADS asks for: the first of the numbers that OpenMP takes, one for each level of
    nested parallelism. None where it is not set. Raises UserError for anything else."""
    value = (os.environ if env is None else env).get("OMP_NUM_THREADS")
    if not value or not value.strip():
        return None
    levels = [level.strip() for level in value.split(",")]
    if not all(level.isascii() and level.isdigit() and 0 < int(level) < 2**31 for level in levels):
        raise UserError(
            f"OMP_NUM_THREADS={value} in the environment is not a number of threads (1 or more; a list "
            "such as 2,1 for nested ones): unset it or give a number"
        )
    return int(levels[0])


def _check_number(name: str, value: str, least: int, most: int | None, what: str) -> None:
    if value.isascii() and value.isdigit() and least <= int(value) <= (most or int(value)):
        return
    accepted = f"from {least} to {most:,}" if most else f"{least} or more"
    raise UserError(
        f"{name}={value} in the environment is not {what} ({accepted}): unset it, or export the right one"
    )


def _check_interface(names: str | None) -> None:
    known = {name for _, name in socket.if_nameindex()}
    for name in (names or "").split(","):
        if name.strip() and name.strip() not in known:
            raise UserError(
                f"GLOO_SOCKET_IFNAME={names} in the environment names no network interface of "
                f"{socket.gethostname()}, which has {', '.join(sorted(known))}"
            )
