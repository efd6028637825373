"""A real Slurm cluster on this one machine: slurmctld and two slurmd, in a folder of its own, gone when stopped.

Needs root and Debian's packages slurm-wlm, slurm-client and munge. Neither the machine's own munge nor its Slurm, if
any, is touched; the names of the nodes stand in /etc/hosts while the cluster runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged")
HOSTS = Path("/etc/hosts")
CONF = """
ClusterName=inftytest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its credentials to expire: two minutes by default.
AuthInfo=socket={base}/munge.socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=2,defer_batch,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=3600
SlurmctldTimeout=60
SlurmdTimeout=10
TCPTimeout=2
MessageTimeout=10
PropagateResourceLimits=NONE
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
NodeName={prefix}[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str | None:
    """Why no cluster can be started here; None when one can."""
    absent = [name for name in NEEDED if _find(name) is None]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)} missing): apt-get install slurm-wlm slurm-client munge"
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    return None


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Cluster:
    """`with Cluster() as cluster:`, then sbatch and friends with `cluster.environment`."""

    def __init__(self, nodes: int = 2) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="infty-slurm-"))
        self.base.chmod(0o755)  # munge's socket must be reachable
        self.prefix = f"n{os.getpid()}x"
        self.nodes = [f"{self.prefix}{i + 1}" for i in range(nodes)]
        self.environment = os.environ | {"SLURM_CONF": str(self.base / "slurm.conf")}
        self._hosts_line = f"127.0.0.1 {' '.join(self.nodes)}  # infty's test cluster\n"

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        first = _free_ports(len(self.nodes) + 1)
        (self.base / "slurm.conf").write_text(
            CONF.format(
                base=self.base,
                host=socket.gethostname().split(".")[0],
                port=first,
                first=first + 1,
                last=first + len(self.nodes),
                nodes=len(self.nodes),
                prefix=self.prefix,
            )
        )
        (self.base / "state").mkdir()
        with open(HOSTS, "a") as f:
            f.write(self._hosts_line)
        (self.base / "munge.key").write_bytes(os.urandom(128))
        (self.base / "munge.key").chmod(0o400)
        paths = {name: self.base / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self._call(
            "munged",
            "--force",
            "--num-threads=2",
            f"--key-file={self.base / 'munge.key'}",
            *(f"--{n}={p}" if n == "socket" else f"--{n}-file={p}" for n, p in paths.items()),
        )
        self._call("slurmctld", "-i")
        for node in self.nodes:
            self.start_node(node)
        self.wait(
            lambda: self.states() == {n: "idle" for n in self.nodes}, 30, "the nodes to come up"
        )

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        (self.base / "spool" / node).mkdir(parents=True, exist_ok=True)
        self._call("slurmd", "-N", node)

    def fail_node(self, node: str) -> None:
        """A node that loses its power: its daemon and everything it runs is gone at once."""
        for pid in [self._pid(f"slurmd.{node}.pid"), *self._pids_of(node)]:
            if pid is not None:
                _kill(pid)

    def states(self) -> dict[str, str]:
        lines = self.slurm("sinfo", "-h", "-N", "-o", "%N %T").split("\n")
        return dict(line.split() for line in lines if line)

    def slurm(self, *command: str) -> str:
        """Output of a Slurm command."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        words = self.slurm("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, condition, seconds: float, what: str) -> None:
        """Poll until `condition()` is true. Raises TimeoutError that says what was waited for."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{self.report()}")
            time.sleep(0.3)

    def report(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"--- {p.name}\n" + "\n".join(p.read_text().splitlines()[-15:])
            for p in sorted(self.base.glob("*.log"))
        )

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["scancel", "--user=root", "--signal=KILL", "--full"],
            env=self.environment,
            capture_output=True,
            check=False,
        )
        # First what runs on the nodes, then those who would start it again.
        for node in self.nodes:
            self.fail_node(node)
        for name in ("slurmctld.pid", "munge.pid"):
            pid = self._pid(name)
            if pid is not None:
                _kill(pid)
        HOSTS.write_text(HOSTS.read_text().replace(self._hosts_line, ""))
        shutil.rmtree(self.base, ignore_errors=True)

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [_find(name), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stdout}{done.stderr}\n{self.report()}")

    def _pid(self, file: str) -> int | None:
        """The process of a pid file, if it still is one of this cluster's."""
        try:
            pid = int((self.base / file).read_text())
            return (
                pid
                if any(
                    word in Path(f"/proc/{pid}/cmdline").read_text() for word in ("slurm", "munge")
                )
                else None
            )
        except (OSError, ValueError):
            return None

    def _pids_of(self, node: str) -> list[int]:
        """Steps and tasks of a node: they carry its name and this cluster's configuration in their environment."""
        marks = (f"SLURM_CONF={self.base}/slurm.conf\0", f"SLURMD_NODENAME={node}\0")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = "\0" + (folder / "environ").read_text(errors="replace")
                command = (folder / "cmdline").read_text(errors="replace")
            except OSError:
                continue
            ours = marks[0] in environment or str(self.base) in command
            step = "slurmstepd" in command and f"/spool/{node}" in " ".join(_open_files(folder))
            if (ours and marks[1] in environment) or step:
                found.append(int(folder.name))
        return found


def _open_files(folder: Path) -> list[str]:
    try:
        return [os.readlink(folder / "cwd"), *(os.readlink(p) for p in (folder / "fd").iterdir())]
    except OSError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports."""
    for first in range(23000 + os.getpid() % 7000, 60000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                s = socket.socket()
                sockets.append(s)
                s.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no free ports")
