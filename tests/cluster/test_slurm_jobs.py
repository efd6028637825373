"""The batch files under a real slurmctld and two slurmd, with a stand-in for training: what is requeued, what not."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infty_tools.slurm import job as jobs
from support import slurm_cluster, stand_in

pytestmark = pytest.mark.skipif(
    slurm_cluster.missing() is not None, reason=slurm_cluster.missing() or ""
)
STAND_IN = Path(stand_in.__file__)
EXPORTED = 45000 + os.getpid() % 10000
"""A port that a job is told to use."""


@pytest.fixture(scope="module")
def cluster():
    with slurm_cluster.Cluster() as cluster:
        yield cluster


class Sent:
    """A submitted job and its folder."""

    def __init__(self, cluster, folder: Path, *behaviours: str, **settings) -> None:
        self.cluster, self.folder = cluster, folder
        run = f"{folder}/run" + ("-{task}" if "array" in settings else "")
        words = jobs.quote([run, *behaviours], settings.get("array"))
        job = jobs.Job(
            nodes=2,
            gpus_per_node=0,
            tasks_per_node=1,
            cpus_per_task=1,
            name=folder.name,
            command=f"{sys.executable} {STAND_IN}",
            python=sys.executable,
            arguments=words,
            run_folder=jobs.quote([run], settings.get("array")),
            logs=str(folder / "logs"),
            output=f"{str(folder).replace('%', '%%')}/%j.out",
            **{"time": "5", "lead_seconds": 10} | settings,
        )
        done = subprocess.run(
            ["sbatch", "--parsable"],
            input=jobs.render(job),
            text=True,
            cwd=folder,
            env=cluster.environment,
            capture_output=True,
            check=True,
        )
        self.number = done.stdout.strip()

    def ended(self) -> bool:
        return self.state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def state(self) -> str:
        return self.cluster.job(self.number)["JobState"]

    def finish(self, seconds: float = 90) -> str:
        """Wait for the end; return the summary."""
        try:
            self.cluster.wait(self.ended, seconds, f"{self.folder.name} to end")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.summary()}\n{self.output()}") from None
        return self.summary()

    def summary(self) -> str:
        return "\n".join(
            p.read_text() for p in sorted((self.folder / "logs").glob("*/summary.txt"))
        )

    def output(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self.folder.glob("*.out")))

    def has(self, name: str):
        return lambda: (self.folder / "run" / name).exists()


@pytest.fixture(scope="module")
def sent(cluster, tmp_path_factory):
    """All jobs at once: they share the nodes, and most of their time is waiting."""

    def send(name: str, *behaviours: str, **settings) -> Sent:
        folder = tmp_path_factory.mktemp(name)
        return Sent(cluster, folder, *behaviours, **settings)

    unwilling = _unwilling(tmp_path_factory.mktemp("unwilling"))
    return {
        "signal": send("signal", "wait", "0"),
        "limit": send("limit", "wait", "0", time="1", lead_seconds=55),
        "bounded": send("bounded", "+85", starts=2, setup=('echo "$NOWHERE_SET"',)),
        "progress": send("50%jam", "+1", "0"),
        "stuck": send("stuck", "1"),
        "stalled": send("stalled", "stalled", "1"),
        "mistake": send("mistake", "+2"),
        "sick": send("sick", "sick"),
        "array": send("array", "0", array="0-1"),
        "cancelled": send("cancelled", "wait", "0"),
        "early": send("early", "0", "slow"),
        "setup": send(
            "setup",
            "0",
            setup=(
                '[ -e begun ] || { touch begun; until [ "$TOLD" ]; do sleep .2; done; }',
                f"export MASTER_ADDR=127.0.0.1 MASTER_PORT={EXPORTED}",
            ),
        ),
        "unwilling": send("unwilling", "85", "0", setup=(f"export PATH={unwilling}:$PATH",)),
    }


def _unwilling(folder: Path) -> Path:
    """A scontrol that fails the first time it is asked for each thing."""
    asked = f'{folder}/asked-"$1-$SLURM_JOB_ID"'
    (folder / "scontrol").write_text(f"""#!/bin/bash
[ "$2" = hostnames ] || [ -e {asked} ] || {{ touch {asked}; echo "Unable to contact slurm controller" >&2; exit 1; }}
exec {shutil.which("scontrol")} "$@"
""")
    (folder / "scontrol").chmod(0o755)
    return folder


def test_a_signal_saves_and_requeues(cluster, sent):
    job = sent["signal"]
    cluster.wait(lambda: job.has("waiting-0-0")() and job.has("waiting-0-1")(), 60, "both tasks")
    cluster.slurm("scancel", "--batch", "--signal=USR1", job.number)
    summary = job.finish()
    assert job.state() == "COMPLETED" and "requeued" in summary and "finished" in summary
    assert [(job.folder / "run" / f"told-0-{rank}").read_text() for rank in (0, 1)] == [
        "SIGUSR1"
    ] * 2
    addresses = {(job.folder / "run" / f"start-0-{rank}").read_text() for rank in (0, 1)}
    assert addresses == {f"{cluster.nodes[0]}:{20000 + int(job.number) % 20000}"}
    assert (job.folder / "logs" / job.number / "node-1.log").exists()


def test_cancelling_saves_and_does_not_requeue(cluster, sent):
    job = sent["cancelled"]
    cluster.wait(lambda: job.has("waiting-0-0")() and job.has("waiting-0-1")(), 90, "both tasks")
    cluster.slurm("scancel", job.number)
    job.finish()
    cluster.wait(job.has("told-0-0"), 20, "the task to be told")
    assert job.state() == "CANCELLED" and not job.has("start-1-0")()


def test_a_signal_during_the_preflight_requeues(cluster, sent):
    job = sent["early"]
    begun = [job.folder / f"run-preflight-{rank}" for rank in (0, 1)]
    cluster.wait(lambda: all(path.exists() for path in begun), 90, "the preflight")
    cluster.slurm("scancel", "--batch", "--signal=USR1", job.number)
    summary = job.finish()
    assert (
        "told to stop; passed on" in summary
        and summary.count("requeued") == 1
        and "start 2" in summary
    )
    assert job.state() == "COMPLETED" and len(list((job.folder / "run").glob("start-*"))) == 2


def test_a_signal_during_the_setup_requeues(cluster, sent):
    job = sent["setup"]
    cluster.wait((job.folder / "begun").exists, 90, "the setup")
    cluster.slurm("scancel", "--batch", "--signal=USR1", job.number)
    summary = job.finish()
    assert "told to stop\n" in summary and summary.count("requeued") == 1 and "start 2" in summary
    assert job.state() == "COMPLETED"
    # On one host, which these two nodes are, even the loopback address is kept when it was exported.
    assert (job.folder / "run" / "start-0-0").read_text() == f"127.0.0.1:{EXPORTED}"


def test_a_controller_that_does_not_answer_is_asked_again(sent):
    summary = sent["unwilling"].finish()
    assert (
        sent["unwilling"].state() == "COMPLETED"
        and "start 2" in summary
        and summary.count("requeued") == 1
    )
    assert "Unable to contact" in sent["unwilling"].output() and "JobState unknown" not in summary


def test_the_time_limit_saves_and_requeues(sent):
    summary = sent["limit"].finish()
    assert (
        sent["limit"].state() == "COMPLETED" and "told to stop" in summary and "start 2" in summary
    )


def test_starts_are_bounded(sent):
    summary = sent["bounded"].finish()
    assert (
        sent["bounded"].state() == "FAILED"
        and "too many starts" in summary
        and "start 3 of at most 2" in summary
    )


def test_a_failure_after_progress_is_tried_again(sent):
    job = sent["progress"]
    assert "start 2" in job.finish() and job.state() == "COMPLETED"
    assert (
        job.folder / "logs" / job.number / "node-0.log"
    ).exists()  # in a folder whose name has a % in it


def test_a_start_in_which_a_task_stood_still_is_tried_again(sent):
    """Whatever status srun makes of it; the report of an earlier start does not count for a later one."""
    summary = sent["stalled"].finish()
    assert summary.count("requeued") == 1 and "stopped for good" in summary


@pytest.mark.parametrize("name", ["stuck", "mistake"])
def test_a_failure_that_repetition_cannot_mend_is_final(sent, name):
    summary = sent[name].finish()
    assert (
        sent[name].state() == "FAILED"
        and "stopped for good" in summary
        and "start 2" not in summary
    )


def test_a_sick_node_stops_the_job_before_training(sent):
    assert "infty doctor found" in sent["sick"].finish()
    assert not (sent["sick"].folder / "run").exists()


def test_a_port_in_use_is_left_alone(cluster, tmp_path):
    """Two jobs on a node may want the same port; another program may have it, too."""
    job = Sent(cluster, tmp_path, "0", sbatch=("--hold",))
    port = 20000 + int(job.number) % 20000
    with socket.create_server(("127.0.0.1", port)):
        cluster.slurm("scontrol", "release", job.number)
        job.finish()
    addresses = {(job.folder / "run" / f"start-0-{rank}").read_text() for rank in (0, 1)}
    assert addresses == {f"{cluster.nodes[0]}:{port + 1}"}


def test_an_array_is_a_run_for_each_number(cluster, sent):
    job = sent["array"]
    cluster.wait(
        lambda: job.number not in cluster.slurm("squeue", "-h", "-o", "%F"), 60, "the array"
    )
    assert sorted(p.name for p in job.folder.glob("run-*")) == ["run-0", "run-1"]


def test_a_run_of_an_array_requeues_itself_and_no_other(cluster, tmp_path):
    """Also the one that has the number of the whole array."""
    job = Sent(cluster, tmp_path, "wait", "0", array="0-1")
    cluster.wait(
        lambda: all(
            (tmp_path / f"run-{task}" / f"waiting-0-{rank}").exists()
            for task in (0, 1)
            for rank in (0, 1)
        ),
        60,
        "all tasks",
    )
    records = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in cluster.slurm("scontrol", "show", "job", "--oneliner", job.number).splitlines()
    ]
    whole = next(r["ArrayTaskId"] for r in records if r["JobId"] == r["ArrayJobId"])
    other = next(r["ArrayTaskId"] for r in records if r["ArrayTaskId"] != whole)

    def summary(task: str) -> str:
        return (tmp_path / "logs" / f"{job.number}_{task}" / "summary.txt").read_text()

    def stop(task: str) -> None:
        cluster.slurm("scancel", "--batch", "--signal=USR1", f"{job.number}_{task}")
        cluster.wait(
            lambda: "requeued" in summary(task),
            30,
            f"run {task} to requeue itself\n{summary(task)}",
        )

    stop(whole)
    cluster.wait(lambda: "finished" in summary(whole), 60, "the stopped run to finish")
    assert "told to stop" not in summary(other) and "start 2" not in summary(other)
    stop(other)
    cluster.wait(lambda: "finished" in summary(other), 60, "the other run to finish")
    assert all(
        "start 2" in summary(task) and "start 3" not in summary(task) for task in (whole, other)
    )


@pytest.mark.parametrize("name", ["my run", "it's a#1", 'the "second"'])
def test_sbatch_takes_any_name(cluster, tmp_path, name):
    config = Path(__file__).parents[2] / "configs" / "pg19-125m.yaml"
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "infty_tools",
            "submit",
            "--dry-run",
            "-c",
            str(config),
            f"run.folder=runs/{name}",
            "--name",
            name,
            "--container",
            f"{name}.sqsh",
            "--gpus-per-node",
            "0",
            "--tasks-per-node",
            "1",
            "--cpus-per-task",
            "1",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = said[said.index("#!/bin/bash") : said.index("nothing was sent")]
    subprocess.run(
        ["sbatch", "--test-only"],
        input=text,
        text=True,
        cwd=tmp_path,
        env=cluster.environment,
        check=True,
    )
    number = subprocess.run(
        ["sbatch", "--parsable", "--hold"],
        input=text,
        text=True,
        cwd=tmp_path,
        check=True,
        env=cluster.environment,
        capture_output=True,
    ).stdout.strip()
    known = cluster.slurm("scontrol", "show", "job", number)
    cluster.slurm("scancel", number)
    assert (
        f"JobName={name}\n" in known
        and f"StdOut={tmp_path}/runs/{name}-slurm/{number}.out\n" in known
    )


def test_nothing_is_left_behind():
    with slurm_cluster.Cluster() as own:
        step = subprocess.Popen(
            ["srun", "--nodes=2", "sleep", "60"], env=own.environment, stderr=subprocess.DEVNULL
        )
        own.wait(lambda: "R" in own.slurm("squeue", "-h", "-o", "%t"), 30, "a step")
    step.wait(60)
    assert not own.base.exists() and own.prefix not in slurm_cluster.HOSTS.read_text()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            assert str(own.base) not in (folder / "cmdline").read_text(), os.readlink(
                folder / "exe"
            )
        except OSError:
            continue
