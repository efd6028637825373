"""What a batch script hands over to: as a state machine with a made-up Slurm, and as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infty import exit_codes
from infty_tools.slurm import controller, supervise
from infty_tools.slurm.supervise import Journal, Request, Supervisor
from infty_tools.slurm.verdict import Verdict, verdict

PLAIN = {"told": False, "progress": False, "stalled": False}


@pytest.mark.parametrize(
    "code, state, facts, expected",
    [
        (0, "RUNNING", {}, Verdict.FINISHED),
        (0, "COMPLETING", {}, Verdict.FINISHED),
        (85, "RUNNING", {}, Verdict.REQUEUED),
        (85, None, {}, Verdict.REQUEUED),  # it would be lost otherwise
        (85, "COMPLETING", {"told": True}, Verdict.TAKEN),
        (1, "CANCELLED", {}, Verdict.TAKEN),
        (1, "RUNNING", {}, Verdict.FINAL),
        (1, None, {}, Verdict.FINAL),
        (143, "RUNNING", {"told": True}, Verdict.REQUEUED),
        (1, "RUNNING", {"progress": True}, Verdict.REQUEUED),
        (137, "RUNNING", {"stalled": True}, Verdict.REQUEUED),
        (2, "RUNNING", {"told": True, "progress": True, "stalled": True}, Verdict.FINAL),
    ],
)
def test_verdicts(code, state, facts, expected):
    assert verdict(code, state, **PLAIN | facts) is expected


class Slurm:
    """Stands in for Slurm and the kernel's signals: a step is a list of signals, then a status."""

    job = "7"

    def __init__(
        self,
        steps: dict[str, tuple],
        before: tuple[str, ...] = (),
        state: str | None = "RUNNING",
        problem: str | None = None,
    ) -> None:
        self.steps = steps
        self.before = list(before)
        self.answer = state
        self.problem = problem
        self.running: list = []
        self.sent: list[signal.Signals] = []
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.requeued = 0

    def state(self) -> str | None:
        return self.answer

    def requeue(self) -> str | None:
        self.requeued += self.problem is None
        return self.problem

    def nodes(self, names: str) -> list[str]:
        return ["localhost"]

    def hosts(self, names: str) -> list[dict[str, str]]:
        return []

    def start(self, command, environment) -> Slurm:
        self.commands.append(command)
        self.environments.append(environment)
        self.running = list(next(steps for verb, steps in self.steps.items() if verb in command))
        return self

    def poll(self) -> int | None:
        if len(self.running) > 1:
            return None
        code = self.running[0]
        return code() if callable(code) else code

    @property
    def returncode(self) -> int:
        return self.poll()

    def send_signal(self, number: signal.Signals) -> None:
        self.sent.append(number)

    def wait(self, seconds: float | None = None) -> str | None:
        if seconds is not None:
            return self.before.pop(0) if self.before else None
        return self.running.pop(0)


@pytest.fixture
def start(tmp_path):
    """Run one start; return the made-up Slurm, the exit status and the summary so far."""

    def run(verb: str = "pretrain", starts: int = 50, told: str = "", **slurm):
        made_up = Slurm(**{"steps": {"doctor": (0,), verb: (0,)}} | slurm)
        journal = Journal(tmp_path / "logs")
        journal.folder.mkdir(exist_ok=True)
        request = Request(verb, ["--config", "a b.yaml"], ["infty"], [], starts, tmp_path / "run")
        environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost"}
        code = Supervisor(request, made_up, journal, made_up, environment, told).run()
        summary = journal.folder / "summary.txt"
        return made_up, code, "" if summary.is_symlink() else summary.read_text()

    return run


def _checkpoint(folder: Path, step: int, code: int):
    def appear() -> int:
        (folder / "run" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
        return code

    return appear


def test_a_run_that_nothing_happens_to(start):
    slurm, code, said = start()
    assert code == 0 and "start 1 of at most 50 on localhost" in said and "preflight passed" in said
    assert said.rstrip().endswith("finished") and not slurm.requeued
    assert [c[-3:] for c in slurm.commands] == [
        [v, "--config", "a b.yaml"] for v in ("doctor", "pretrain")
    ]
    assert all({"MASTER_ADDR", "MASTER_PORT"} <= set(e) for e in slurm.environments)


@pytest.mark.parametrize("name, word", [("USR1", "told to stop"), ("TERM", "cancelled")])
def test_a_signal_is_passed_on_and_the_job_requeued(start, name, word):
    slurm, code, said = start(steps={"doctor": (0,), "pretrain": ("CHLD", name, "CHLD", 85)})
    assert code == 85 and slurm.sent == [getattr(signal, f"SIG{name}")] and slurm.requeued == 1
    assert f"{word}; passed on" in said and said.rstrip().endswith("requeued")


@pytest.mark.parametrize(
    "happens, steps",
    [
        ({"told": "USR1"}, 0),
        ({"before": ("USR1",)}, 0),
        ({"steps": {"doctor": ("USR1", 1), "pretrain": (0,)}}, 1),
        ({"steps": {"doctor": ("USR1", 0), "pretrain": (0,)}}, 1),
        (
            {"steps": {"doctor": (-signal.SIGUSR1,), "pretrain": (0,)}},
            1,
        ),  # scancel told the tasks alone
        ({"steps": {"doctor": (128 + signal.SIGUSR1,), "pretrain": (0,)}}, 1),
    ],
)
def test_a_signal_before_training_requeues(start, happens, steps):
    slurm, code, said = start(**happens)
    assert code == 85 and slurm.requeued == 1 and len(slurm.commands) == steps
    assert "infty doctor found" not in said


def test_a_step_that_is_killed_by_the_signal_is_requeued(start):
    slurm, _, _ = start(steps={"doctor": (0,), "pretrain": ("TERM", -signal.SIGTERM)})
    assert slurm.requeued == 1


def test_a_cancelled_job_is_not_brought_back_to_life(start):
    slurm, code, said = start(steps={"doctor": (0,), "pretrain": ("TERM", 85)}, state="COMPLETING")
    assert (
        code == 85
        and not slurm.requeued
        and "taken away by Slurm" in said
        and "JobState=COMPLETING" in said
    )


def test_a_state_that_nobody_tells_and_a_requeue_that_fails(start):
    slurm, _, said = start(steps={"doctor": (0,), "pretrain": (85,)}, state=None)
    assert slurm.requeued == 1 and "JobState=unknown" in said
    _, _, said = start(steps={"doctor": (0,), "pretrain": (85,)}, problem="no controller")
    assert "could not be requeued (no controller): scontrol requeue 7 starts" in said


def test_progress_and_a_task_that_stood_still_are_tried_again(start, tmp_path):
    slurm, _, said = start(steps={"doctor": (0,), "pretrain": (_checkpoint(tmp_path, 9, 1),)})
    assert slurm.requeued == 1 and "step-00000009" in said
    slurm, code, said = start(steps={"doctor": (0,), "pretrain": (1,)})
    assert code == 1 and not slurm.requeued and "stopped for good, see" in said
    time.sleep(0.02)
    (tmp_path / "run" / "stalled.txt").touch()  # of that start: it does not count for the next
    time.sleep(0.02)
    assert start(steps={"doctor": (0,), "pretrain": (1,)})[0].requeued == 0
    slurm, _, _ = start(steps={"doctor": (0,), "pretrain": (_stalled(tmp_path, 137),)})
    assert slurm.requeued == 1


def _stalled(folder: Path, code: int):
    def report() -> int:
        time.sleep(0.02)
        (folder / "run" / "stalled.txt").write_text("rank 1")
        return code

    return report


def test_unfinished_and_damaged_checkpoints_are_no_progress(start, tmp_path):
    for name in ("step-00000100.damaged", "step-00000101.partial", "step-99", "step-00000100"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    assert "/step-00000100\n" in start()[2]


def test_a_preflight_that_finds_something_is_final(start):
    slurm, code, said = start(steps={"doctor": (1,), "pretrain": (0,)})
    assert code == 1 and "infty doctor found something wrong" in said and len(slurm.commands) == 1
    _, _, said = start(steps={"doctor": (1,), "pretrain": (0,)}, state="NODE_FAIL")
    assert said.rstrip().endswith("starts it again)")


def test_starts_are_bounded(start):
    assert start(starts=1, steps={"doctor": (0,), "pretrain": (85,)})[0].requeued == 1
    slurm, code, said = start(starts=1)
    assert (
        code == 1
        and not slurm.commands
        and "start 2 of at most 1" in said
        and "too many starts" in said
    )


def test_an_evaluation_runs_once(start):
    slurm, code, said = start("evaluate", steps={"evaluate": ("USR1", 85)})
    assert code == 85 and not slurm.requeued and slurm.sent == [signal.SIGUSR1]
    assert "results are in" in said and "--kill-on-bad-exit=1" in slurm.commands[0]


def test_preprocessing_needs_no_meeting_point_and_no_preflight(start):
    slurm, code, _ = start("prepare", steps={"prepare": (0,)})
    assert code == 0 and len(slurm.commands) == 1 and "MASTER_ADDR" not in slurm.environments[0]


def test_a_full_disk_does_not_end_a_job(start, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "summary.txt").symlink_to("/dev/full")
    (tmp_path / "logs" / "starts").mkdir()  # cannot be written either
    assert start(steps={"doctor": (0,), "pretrain": (85,)})[0].requeued == 1


def test_a_task_of_an_array_has_its_own_name():
    assert supervise.job_name({"SLURM_JOB_ID": "9"}) == "9"
    assert (
        supervise.job_name(
            {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
        )
        == "7_2"
    )


def test_the_controller_is_asked_again(monkeypatch, tmp_path):
    _program(
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
    _program(tmp_path, "scontrol", f"echo $1 >> {tmp_path}/asked; echo nobody is here >&2; exit 1")
    assert asked.state() is None and asked.requeue() == "nobody is here"
    assert len((tmp_path / "asked").read_text().splitlines()) == 2 * controller.TRIES


def test_what_scontrol_says_of_nodes_is_understood(monkeypatch, tmp_path):
    _program(
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


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def _process(folder: Path, *words: str, path: str = "", before=None) -> subprocess.Popen:
    environment = {
        "PATH": path or f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
    }
    command = [sys.executable, "-m", "infty_tools.slurm.supervise", "--logs", f"{folder}/my logs"]
    return subprocess.Popen(
        [*command, *words],
        env=environment,
        cwd=folder,
        preexec_fn=before,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_real_signal_reaches_a_real_step(tmp_path):
    """Also the one that came before the supervisor listened; srun itself holds no signal back."""
    _program(
        tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=COMPLETING'
    )
    _program(
        tmp_path,
        "srun",
        f"""
case "$*" in *doctor*) exit 0;; esac
grep -E 'Sig(Blk|Ign)' /proc/$$/status > {tmp_path}/masks
trap 'echo told > {tmp_path}/told; exit 85' USR1
touch {tmp_path}/begun
while :; do sleep 0.05; done
""",
    )
    process = _process(tmp_path, "--", "pretrain")
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (
        process.returncode == 85
        and (tmp_path / "told").exists()
        and "told to stop; passed on" in said
    )
    assert (tmp_path / "my logs" / "7" / "summary.txt").read_text() == said
    masks = dict(line.split(":\t") for line in (tmp_path / "masks").read_text().splitlines())
    wanted = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGTERM - 1
    assert not any(int(mask, 16) & wanted for mask in masks.values())


def _told_before() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_signal_that_came_while_the_interpreter_started_is_heard(tmp_path):
    _program(
        tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=COMPLETING'
    )
    process = _process(tmp_path, "--", "pretrain", before=_told_before)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 85 and "told to stop\n" in said


def test_without_srun_it_says_so(tmp_path):
    _program(
        tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=RUNNING'
    )
    process = _process(tmp_path, "--", "evaluate", path=str(tmp_path))
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 127 and "srun cannot be started" in said


@pytest.mark.parametrize(
    "words, environment, said",
    [
        (["--logs", "l", "--", "evaluate"], {}, "this is not a Slurm job"),
        (["--logs", "l", "--", "train"], {"SLURM_JOB_ID": "7"}, "'train' is not a verb"),
        (["--logs", "l"], {"SLURM_JOB_ID": "7"}, "'' is not a verb"),
        (["--", "pretrain"], {"SLURM_JOB_ID": "7"}, "--logs"),
    ],
)
def test_a_mistake_on_its_command_line(tmp_path, words, environment, said):
    done = subprocess.run(
        [sys.executable, "-m", "infty_tools.slurm.supervise", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_it_needs_the_standard_library_alone(tmp_path):
    """The batch script runs on machines whose containers hold everything else."""
    program = (
        "import sys, json; import infty_tools.slurm.supervise; "
        "print(json.dumps([n.partition('.')[0] for n in sys.modules]))"
    )
    packages = (Path(supervise.__file__).parents[2], Path(exit_codes.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": os.pathsep.join(map(str, packages))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(json.loads(done.stdout)) - {"__main__", "sitecustomize", "usercustomize"}
    assert loaded <= set(sys.stdlib_module_names) | {"infty", "infty_tools"}, loaded
