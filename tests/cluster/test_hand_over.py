"""A rendered batch file under bash: what it hands over to the supervisor."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from infty_tools.slurm import job as jobs

RECORDER = f"""#!{sys.executable}
import json, os, signal, sys
held = sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS", "SRUN_CPUS_PER_TASK")
print(json.dumps({{"words": sys.argv[1:], "held": held, "cwd": os.getcwd(),
                   "environment": {{n: os.environ.get(n) for n in names}}}}))
"""


def _hand_over(folder: Path, job: jobs.Job, **environment: str) -> dict:
    """Run a batch file under bash; return with what it calls the supervisor."""
    recorder = folder / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    given = {
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(folder),
        "SLURM_CPUS_PER_TASK": "3",
        "PATH": os.environ["PATH"],
    }
    text = jobs.render(dataclasses.replace(job, python=shlex.quote(str(recorder))))
    done = subprocess.run(
        ["bash"],
        input=text,
        text=True,
        env=given | environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_batch_file_hands_over_to_the_supervisor(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    job = jobs.Job(
        logs="'my logs'",
        run_folder="'my runs/1'",
        command="'/my python' -m infty_tools",
        arguments="--config 'a b.yaml'",
        container="the image",
        setup=('echo "$NOWHERE_SET" >/dev/null',),
    )
    found = _hand_over(folder, job, RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", MASTER_PORT="2222")
    words = found["words"]
    assert words[:2] == ["-m", "infty_tools.slurm.supervise"]
    assert words[2:] == [
        "--told",
        "",
        "--logs",
        "my logs",
        "--starts",
        "50",
        "--run",
        "my runs/1",
        "--program",
        "'/my python' -m infty_tools",
        "--srun=--container-image=the image",
        "--",
        "pretrain",
        "--config",
        "a b.yaml",
    ]
    assert found["cwd"] == str(folder)
    assert found["environment"] == {
        "MASTER_ADDR": None,
        "MASTER_PORT": "2222",
        "RANK": None,
        "WORLD_SIZE": None,
        "LOCAL_RANK": None,
        "OMP_NUM_THREADS": "3",
        "SRUN_CPUS_PER_TASK": "3",
    }


def test_signals_during_the_setup_and_the_start_of_the_supervisor_are_not_lost(tmp_path):
    found = _hand_over(tmp_path, jobs.Job(setup=("kill -USR1 $$",)))
    assert found["words"][2:4] == ["--told", "USR1"]
    assert found["held"] == sorted([signal.SIGUSR1, signal.SIGTERM])


def test_without_a_recent_env_signals_do_not_end_the_batch_script(tmp_path):
    (tmp_path / "env").write_text("#!/bin/bash\nexit 125\n")
    (tmp_path / "env").chmod(0o755)
    found = _hand_over(tmp_path, jobs.Job(setup=(f"PATH={tmp_path}:$PATH",)))
    assert found["words"][0] == "-m" and found["held"] == []
