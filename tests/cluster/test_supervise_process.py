"""The supervisor as a process: signals, its command line, and what it may import."""

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
from infty_tools.slurm import supervise
from support.programs import program


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
    program(
        tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=COMPLETING'
    )
    program(
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
    program(
        tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=COMPLETING'
    )
    process = _process(tmp_path, "--", "pretrain", before=_told_before)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 85 and "told to stop\n" in said


def test_without_srun_it_says_so(tmp_path):
    program(tmp_path, "scontrol", '[ "$2" = hostnames ] && echo localhost || echo JobState=RUNNING')
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
