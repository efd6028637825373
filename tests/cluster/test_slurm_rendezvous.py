"""Where the processes of a job meet, with made-up names and addresses of several hosts and one."""

from __future__ import annotations

import socket

import pytest

from infty_tools.slurm import rendezvous

LOOPBACK = "127.0.1.1"
REAL = "10.1.2.3"


class Nodes:
    """A made-up Slurm that knows so many nodes, on as many hosts or on one."""

    def __init__(self, count: int, one_host: bool = False, address: str = "") -> None:
        self.names = [f"n{i + 1}" for i in range(count)]
        self.one_host = one_host
        self.address = address
        self.asked = 0

    def nodes(self, names: str) -> list[str]:
        return self.names

    def hosts(self, names: str) -> list[dict[str, str]]:
        self.asked += 1
        return [
            {"NodeHostName": "h" if self.one_host else n, "NodeAddr": self.address or n}
            for n in self.names
        ]


@pytest.fixture
def network(monkeypatch):
    """Names and their addresses; of them, those of this machine."""

    def set_to(
        names: dict[str, str],
        here: tuple[str, ...] = (LOOPBACK, "127.0.0.1", REAL),
        towards: str = "",
    ) -> None:
        monkeypatch.setattr(
            rendezvous,
            "resolve",
            lambda name: [names.get(name, name)] if names.get(name) or (name[:1].isdigit()) else [],
        )
        monkeypatch.setattr(rendezvous, "is_here", lambda ip: ip in here)
        monkeypatch.setattr(rendezvous, "address_towards", lambda node: towards)

    return set_to


def _choose(nodes: Nodes, **environment: str) -> rendezvous.Place:
    return rendezvous.choose(
        {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(len(nodes.names)), **environment}, nodes
    )


def test_the_first_nodes_name_where_it_can_be_reached(network):
    network({"n1": REAL})
    nodes = Nodes(2)
    assert _choose(nodes).address == "n1" and not nodes.asked  # a busy controller costs a minute


@pytest.mark.parametrize("address, towards, expected", [(REAL, "", REAL), ("", REAL, REAL)])
def test_several_hosts_never_meet_on_loopback(network, address, towards, expected):
    network({"n1": LOOPBACK}, towards=towards)
    assert _choose(Nodes(2, address=address)).address == expected


@pytest.mark.parametrize("name", [{"n1": LOOPBACK}, {}])
def test_where_there_is_no_address_one_sentence_says_so(network, name):
    network(name, towards=LOOPBACK)
    with pytest.raises(rendezvous.NowhereToMeet, match="export MASTER_ADDR in a setup line"):
        _choose(Nodes(2))


def test_a_controller_that_does_not_answer_does_not_lead_to_loopback(network):
    network({"n1": LOOPBACK}, towards=REAL)
    silent = Nodes(2)
    silent.hosts = lambda names: []
    assert _choose(silent).address == REAL
    silent.nodes = lambda names: []
    with pytest.raises(rendezvous.NowhereToMeet):
        _choose(silent)


def test_one_host_may(network):
    network({"n1": LOOPBACK})
    assert _choose(Nodes(1)).address == "n1" and _choose(Nodes(2, one_host=True)).address == "n1"
    network({})
    assert _choose(Nodes(1)).address == "127.0.0.1"


def test_what_was_exported_on_purpose_is_kept(network):
    network({"n1": LOOPBACK, "ib1": REAL})
    for address in ("ib1", REAL):
        place = _choose(Nodes(2), MASTER_ADDR=address, MASTER_PORT=str(_free_port()))
        assert place.address == address and not place.notes
    port = _free_port()
    assert _choose(Nodes(1), MASTER_PORT=str(port)).port == port


@pytest.mark.parametrize(
    "left_over, said",
    [
        ("127.0.0.1", "loopback"),
        ("old", "does not resolve"),
        ("n2", "rank 0 listens"),
        ("", "does not resolve"),
    ],
)
def test_what_a_shell_had_left_over_is_not(network, left_over, said):
    network({"n1": REAL, "n2": "10.1.2.4"})
    place = _choose(Nodes(2), MASTER_ADDR=left_over)
    assert place.address == "n1" and len(place.notes) == 1 and said in place.notes[0]
    assert f"MASTER_ADDR={left_over} was exported and is not used" in place.notes[0]


def test_a_port_that_is_in_use_is_left_alone(network):
    network({"n1": REAL})
    assert _choose(Nodes(1)).port == 20007
    with socket.create_server(("127.0.0.1", 20007)):
        assert _choose(Nodes(1)).port == 20008
        place = _choose(Nodes(1), MASTER_PORT="20007")
        assert place.port == 20008 and "MASTER_PORT=20007 was exported" in place.notes[0]
    assert _choose(Nodes(1), MASTER_PORT="many").port == 20007


def test_this_machines_own_addresses():
    assert rendezvous.is_here("127.0.0.1") and not rendezvous.is_here("192.0.2.1")
    assert rendezvous.resolve("localhost") and not rendezvous.resolve("no-such-host.invalid")
    assert (
        rendezvous.is_loopback("127.0.1.1")
        and rendezvous.is_loopback("::1")
        and not rendezvous.is_loopback(REAL)
    )
    assert rendezvous.address_towards("localhost") in ("127.0.0.1", "::1")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
