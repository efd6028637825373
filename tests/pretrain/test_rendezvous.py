"""Where processes meet: what was exported is kept, what was left over is not, what cannot work is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from infty.errors import UserError
from infty_pretrain import rendezvous

DEBIAN = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]


@pytest.fixture
def loopback_name(monkeypatch):
    """A host whose own name resolves to loopback."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: DEBIAN)


def test_one_process_never_looks_at_left_overs():
    env = {
        "MASTER_ADDR": "192.0.2.7",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    rendezvous.alone(env)
    assert env == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


def test_what_was_exported_is_kept():
    given = {"MASTER_ADDR": "head.cluster", "MASTER_PORT": "4321"}
    assert (
        rendezvous.offer(given, one_host=True) == rendezvous.offer(given, one_host=False) == given
    )
    found = rendezvous.offer({"MASTER_ADDR": "head.cluster", "MASTER_PORT": None}, one_host=False)
    assert found["MASTER_ADDR"] == "head.cluster" and int(found["MASTER_PORT"]) > 1023


def test_one_host_meets_on_loopback():
    assert rendezvous.offer({}, one_host=True)["MASTER_ADDR"] == "127.0.0.1"


def test_several_hosts_do_not_meet_on_loopback(loopback_name, monkeypatch):
    monkeypatch.setattr(rendezvous, "source_address", lambda _: "10.1.2.3")
    assert rendezvous.offer({}, one_host=False)["MASTER_ADDR"] == "10.1.2.3"
    monkeypatch.setattr(rendezvous, "source_address", lambda _: None)
    with pytest.raises(UserError, match=r"no address but loopback.*export MASTER_ADDR"):
        rendezvous.offer({}, one_host=False)


def test_gloo_is_told_the_interface_where_the_own_name_is_loopback(loopback_name, monkeypatch):
    import psutil

    monkeypatch.setattr(rendezvous, "source_address", lambda _: "10.1.2.3")
    monkeypatch.setattr(
        psutil,
        "net_if_addrs",
        lambda: {
            "lo": [SimpleNamespace(address="127.0.0.1")],
            "ib0": [SimpleNamespace(address="10.1.2.3")],
        },
    )
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    rendezvous.choose_interface("10.1.2.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")  # on purpose
    rendezvous.choose_interface("10.1.2.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


MEET = """
import sys
from datetime import timedelta
from infty.errors import UserError
from infty_pretrain import launch, rendezvous
rendezvous.TOGETHER = rendezvous.ON_LOOPBACK = timedelta(seconds=2)
rendezvous.NAMES = 0.0
try:
    here = launch.detect()
    rendezvous.meet(here.rank, here.world, "gloo", timedelta(minutes=1))
    print("met")
except UserError as error:
    print(error)
import os; sys.stdout.flush(); os._exit(0)
"""


def meet(**env: str) -> str:
    """What one process says that meets others by these variables."""
    plain = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    done = subprocess.run(
        [sys.executable, "-c", MEET],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=plain | {"TORCH_CPP_LOG_LEVEL": "FATAL"} | env,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_a_process_alone_meets_itself_whatever_was_left_over():
    left = {"MASTER_ADDR": "192.0.2.7", "MASTER_PORT": "29500"}
    assert meet(**left) == "met"
    assert meet(RANK="0", WORLD_SIZE="1", **left) == "met"


def test_every_failure_to_meet_is_one_sentence():
    two = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = meet(**two, MASTER_PORT=port)
        assert said.startswith(f"port {port} of ") and "export another MASTER_PORT" in said
    assert "not all of 2 processes have connected to 127.0.0.1" in meet(**two, MASTER_PORT=port)
    other = two | {"RANK": "1", "LOCAL_WORLD_SIZE": "1"}
    assert "loopback address" in meet(**other, MASTER_PORT=port)
    said = meet(**other | {"MASTER_ADDR": "no-such-host.invalid"}, MASTER_PORT=port)
    assert said.startswith("MASTER_ADDR=no-such-host.invalid is not the name or address of a host")
