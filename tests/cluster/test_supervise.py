"""What a batch script hands over to, as a state machine with a made-up Slurm."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from infty_tools.slurm import supervise
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
