"""Where the processes of a job meet: MASTER_ADDR and MASTER_PORT. Needs only the standard library.

The batch script runs on the job's first node, and so does rank 0, which listens there. What was
exported on purpose is kept if rank 0 can listen there and the others can reach it; what a shell had
left over is not such a place.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

FIRST_PORT = 20000
PORTS = 20000
"""A job's number chooses among so many."""


class NowhereToMeet(Exception):
    """No address of this node can be reached from the job's other nodes."""


class Nodes(Protocol):
    """Who knows the nodes of a job."""

    def nodes(self, names: str) -> list[str]: ...

    def hosts(self, names: str) -> list[dict[str, str]]: ...


@dataclass(frozen=True)
class Place:
    """MASTER_ADDR and MASTER_PORT, and what is worth telling about how they were found."""

    address: str
    port: int
    notes: tuple[str, ...] = ()


def choose(environment: Mapping[str, str], slurm: Nodes) -> Place:
    """Where the processes of this job meet. Raises NowhereToMeet, which says what to do."""
    search = _Search(environment, slurm)
    notes: list[str] = []
    address = environment.get("MASTER_ADDR")
    if address is not None and (problem := search.problem(address)):
        notes.append(f"MASTER_ADDR={address} was exported and is not used: {problem}")
        address = None
    if address is None:
        address = search.address()
    port, taken = _port(environment)
    if taken is not None:
        notes.append(
            f"MASTER_PORT={taken} was exported and is not a free port of {search.nodes[0]}: "
            f"{port} is used"
        )
    return Place(address, port, tuple(notes))


class _Search:
    """Looks for an address of this node, the job's first, that all of its nodes can reach."""

    def __init__(self, environment: Mapping[str, str], slurm: Nodes) -> None:
        self.slurm = slurm
        self.names = environment.get("SLURM_JOB_NODELIST", "")
        self.nodes = slurm.nodes(self.names) or [socket.gethostname()]
        self.count = int(environment.get("SLURM_JOB_NUM_NODES") or len(self.nodes))

    @cached_property
    def hosts(self) -> list[dict[str, str]]:
        return self.slurm.hosts(self.names)

    @property
    def one_host(self) -> bool:
        """Whether the job runs on one machine: Slurm can also run several nodes on one."""
        names = {host.get("NodeHostName") for host in self.hosts} if self.count > 1 else {"here"}
        return len(names) == 1 and None not in names

    def problem(self, address: str) -> str:
        """Why the processes cannot meet at an address; empty if they can."""
        found = resolve(address)
        if not found:
            return "it does not resolve"
        if all(is_loopback(ip) for ip in found) and not self.one_host:
            return "it is the loopback address, at which several hosts cannot meet"
        if not any(is_here(ip) for ip in found):
            return f"it is not an address of {self.nodes[0]}, where rank 0 listens"
        return ""

    def address(self) -> str:
        for candidate in self._candidates():
            if not self.problem(candidate):
                return candidate
        first = self.nodes[0]
        raise NowhereToMeet(
            f"no address of {first} was found that the other nodes can reach ({first} resolves to "
            f"{', '.join(resolve(first)) or 'nothing'}): fix its name in DNS or /etc/hosts, or "
            "export MASTER_ADDR in a setup line (infty submit --setup)"
        )

    def _candidates(self) -> Iterator[str]:
        yield self.nodes[0]
        if self.count == 1:
            yield "127.0.0.1"
            return
        for host in self.hosts[:1]:
            yield host.get("NodeAddr", "")
        for other in self.nodes[1:]:
            yield address_towards(other)


def resolve(name: str) -> list[str]:
    """The addresses of a name; none for an empty or unknown one."""
    try:
        return (
            [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
            if name
            else []
        )
    except (OSError, UnicodeError):
        return []


def is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip.partition("%")[0]).is_loopback


def is_here(ip: str) -> bool:
    """Whether an address is one of this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as s:
            s.bind((ip, 0))
        return True
    except OSError:
        return False


def address_towards(node: str) -> str:
    """This machine's address on the way to another; empty when there is no way. Nothing is sent."""
    for ip in resolve(node):
        try:
            with socket.socket(
                socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM
            ) as s:
                s.connect((ip, 9))
                return str(s.getsockname()[0])
        except OSError:
            continue
    return ""


def _port(environment: Mapping[str, str]) -> tuple[int, str | None]:
    """A free port of this node, and the one that was exported if that is not free."""
    exported = environment.get("MASTER_PORT")
    if (
        exported is not None
        and exported.isdigit()
        and 0 < int(exported) < 65536
        and _is_free(int(exported))
    ):
        return int(exported), None
    first = int(environment["SLURM_JOB_ID"]) % PORTS  # jobs on one node seldom want the same
    ports = (FIRST_PORT + (first + i) % PORTS for i in range(PORTS))
    return next(port for port in ports if _is_free(port)), exported


def _is_free(port: int) -> bool:
    try:
        with socket.socket() as s:
            s.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as rank 0 will: the last start's may linger
            s.bind(("", port))
        return True
    except OSError as error:
        return error.errno not in (errno.EADDRINUSE, errno.EACCES)
