"""Where the processes of a run meet: the address and port of rank 0, and what can be wrong with them."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta

from infty.errors import UserError

LOOPBACK = "127.0.0.1"
TOGETHER = timedelta(minutes=10)
"""How long the first process waits for the last one to start."""
ON_LOOPBACK = timedelta(minutes=1)
"""The same for a process that looks for rank 0 on its own host, though the run has several."""
NAMES = 10.0
"""Seconds in which a name server may recover."""
_ELSEWHERE = ("192.0.2.1", 9)
"""An address that belongs to no machine (RFC 5737): asked for the way to it, the kernel says which of this host's own
addresses it would leave from. Nothing is sent."""


def alone(env: MutableMapping[str, str]) -> None:
    """One process meets itself, at a port that it picks when it listens, whatever a shell has left in MASTER_ADDR and
    MASTER_PORT. (torchrun's own store would be another one to wait for.)"""
    env.update(MASTER_ADDR=LOOPBACK, MASTER_PORT="0")
    env.pop("TORCHELASTIC_USE_AGENT_STORE", None)


def offer(given: Mapping[str, str | None], one_host: bool) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for this process as rank 0: as `given`, or found. Raises UserError where no address
    of this host can be reached from others."""
    address = given.get("MASTER_ADDR") or (LOOPBACK if one_host else own_address())
    return {"MASTER_ADDR": address, "MASTER_PORT": given.get("MASTER_PORT") or str(_free_port())}


def own_address() -> str:
    """An address of this host that other hosts can reach. Its own name may well resolve to loopback, as Debian has
    it. Raises UserError when there is none."""
    host = socket.gethostname()
    try:
        named = resolve(host, patience=0)
    except UserError:
        named = []
    found = next((a for a in named if not _is_loopback(a)), None) or source_address(_ELSEWHERE)
    if found is None:
        raise UserError(
            f"{host} has no address but loopback, where other hosts cannot reach it: "
            "export MASTER_ADDR, an address of that host that the others can reach"
        )
    return found


def resolve(name: str, patience: float = NAMES) -> list[str]:
    """The addresses of a host's name. Raises UserError."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return list(
                dict.fromkeys(
                    str(a[4][0]) for a in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                )
            )
        except (OSError, UnicodeError) as error:
            temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            if not temporary or time.monotonic() > deadline:
                raise UserError(
                    f"MASTER_ADDR={name} is not the name or address of a host that {socket.gethostname()} "
                    f"knows ({getattr(error, 'strerror', None) or error}): export the one of the host that "
                    "runs rank 0"
                ) from error
        time.sleep(1)


def meet(rank: int, world: int, backend: str, patience: timedelta) -> None:
    """Set up torch.distributed over the store at MASTER_ADDR and MASTER_PORT, unless it is up already; collectives
    will wait for `patience`. Raises UserError where the processes do not meet."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    addresses = resolve(address)
    if backend == "gloo":
        choose_interface(addresses[0])
    lost = rank > 0 and _several_hosts(world) and all(map(_is_loopback, addresses))
    try:
        store, _, _ = next(
            iter(dist.rendezvous("env://", timeout=ON_LOOPBACK if lost else TOGETHER))
        )
    except dist.DistError as error:
        raise UserError(_explain(error, rank, world, address, port, addresses)) from error
    store.set_timeout(patience)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)


def _several_hosts(world: int) -> bool:
    """Whether the launcher says so. (Nodes of a test may still be one machine.)"""
    nodes = os.environ.get("SLURM_STEP_NUM_NODES", "")
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return (nodes.isdigit() and int(nodes) > 1) or (here.isdigit() and int(here) < world)


def _explain(
    error: Exception, rank: int, world: int, address: str, port: str, addresses: list[str]
) -> str:
    host = socket.gethostname()
    if "EADDRINUSE" in str(error) or "in use" in str(error):
        return (
            f"port {port} of {host} is in use by another program (or another run): export another MASTER_PORT, the "
            "same for every process"
        )
    if "EACCES" in str(error):
        return f"port {port} may not be used on {host}: export a MASTER_PORT of 1024 or more"
    if rank == 0:
        return (
            f"after {TOGETHER.total_seconds() / 60:.0f} minutes not all of {world} processes have connected to "
            f"{address}:{port} ({host}): check what the others say, and that MASTER_ADDR is {host}"
        )
    loopback = (
        (
            "; that is the loopback address, which means another machine on every host: export an "
            "address of rank 0's host that the others can reach"
        )
        if all(map(_is_loopback, addresses))
        else ""
    )
    return (
        f"rank {rank} on {host} gets no answer at MASTER_ADDR={address}, MASTER_PORT={port} "
        f"({', '.join(addresses)}){loopback or ': is that the host of rank 0, is it reachable, has it started?'}"
    )


def choose_interface(address: str) -> None:
    """gloo listens at the address that the host's own name resolves to. Where that is loopback and rank 0 is elsewhere,
    name the interface that leads there."""
    import psutil

    if "GLOO_SOCKET_IFNAME" in os.environ or _is_loopback(address):
        return
    try:
        named = resolve(socket.gethostname(), patience=0)
    except UserError:
        named = [LOOPBACK]
    mine = source_address((address, 9))
    if mine is None or not all(map(_is_loopback, named)):
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == mine for a in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def source_address(target: tuple[str, int]) -> str | None:
    """This host's address on the way to another one; None where there is no way."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try:
            s.connect(target)
        except OSError:
            return None
        found = str(s.getsockname()[0])
    return None if _is_loopback(found) or found == "0.0.0.0" else found


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]
