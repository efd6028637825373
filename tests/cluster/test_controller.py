"""What the supervisor asks of Slurm's controller, and what it makes of the answers."""

from __future__ import annotations

import os

from infty_tools.slurm import controller
from support.programs import program


def test_the_controller_is_asked_again(monkeypatch, tmp_path):
    program(
        tmp_path,
        "scontrol",
        f"""
[ -e {tmp_path}/asked-$1 ] || {{ touch {tmp_path}/asked-$1; echo "Unable to contact slurm controller" >&2; exit 1; }}
[ $1 = requeue ] || echo "JobId=7 JobName=x JobState=RUNNING Reason=None"
""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(controller, "PAUSE", 0.0)
    asked = controller.Controller("7")
    assert asked.state() == "RUNNING" and asked.requeue() is None
    program(tmp_path, "scontrol", f"echo $1 >> {tmp_path}/asked; echo nobody is here >&2; exit 1")
    assert asked.state() is None and asked.requeue() == "nobody is here"
    assert len((tmp_path / "asked").read_text().splitlines()) == 2 * controller.TRIES


def test_what_scontrol_says_of_nodes_is_understood(monkeypatch, tmp_path):
    program(
        tmp_path,
        "scontrol",
        """
[ "$2" != hostnames ] || printf 'n1\\nn2\\n'
[ "$2" != node ] || echo 'NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=h1 Version=22'
[ "$2" != node ] || echo 'NodeName=n2 NodeAddr=n2 NodeHostName=h2'
""",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    asked = controller.Controller("7")
    assert asked.nodes("n[1-2]") == ["n1", "n2"]
    assert asked.hosts("n[1-2]") == [
        {"NodeAddr": "10.0.0.1", "NodeHostName": "h1"},
        {"NodeAddr": "n2", "NodeHostName": "h2"},
    ]
