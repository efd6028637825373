"""Which rank a process is, from what each launcher leaves in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from infty.errors import UserError
from infty_pretrain import launch

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.fixture
def mpi(monkeypatch):
    """mpirun's world without MPI."""
    def answer(env):
        env.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", **MASTER)

    monkeypatch.setattr(launch, "_from_mpi", answer)


def test_torchrun_and_deepspeed():
    assert launch.detect(TORCHRUN | MASTER) == launch.Launch(2, 4, 0, "env")
    assert launch.detect({"RANK": "0", "WORLD_SIZE": "1", **MASTER}).local_rank == 0


def test_torchrun_inside_a_slurm_step():
    assert launch.detect(TORCHRUN | STEP | MASTER) == launch.Launch(2, 4, 0, "env")


def test_srun():
    env = STEP | MASTER
    assert launch.detect(env) == launch.Launch(3, 4, 1, "slurm")
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == ("3", "4", "1")  # what DeepSpeed reads


def test_srun_without_an_address_says_what_to_export():
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        launch.detect(dict(STEP))


def test_srun_of_one_task_needs_no_address():
    found = launch.detect(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert (found.rank, found.world) == (0, 1)


def test_a_batch_script_is_no_task():
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
    assert launch.detect(env) == launch.Launch(0, 1, 0, "single")


@pytest.mark.parametrize("set_by_mpirun", [
    {"OMPI_COMM_WORLD_RANK": "1"},
    {"PMI_RANK": "1"},
    {"OMPI_COMM_WORLD_RANK": "1", **STEP},  # daemons of mpirun in a Slurm job pass their own SLURM_PROCID on
    {"PMI_RANK": "1", "MPI_LOCALRANKID": "1", **STEP},
])
def test_mpirun(mpi, set_by_mpirun):
    assert launch.detect(dict(set_by_mpirun)) == launch.Launch(1, 2, 1, "mpi")


def test_srun_with_pmi2_is_srun(mpi):
    assert launch.detect(STEP | MASTER | {"PMI_RANK": "3"}).launcher == "slurm"


def test_plain_execution_finds_a_port():
    one, two = {}, {}
    assert launch.detect(one) == launch.detect(two) == launch.Launch(0, 1, 0, "single")
    assert one["MASTER_ADDR"] == "127.0.0.1" and int(one["MASTER_PORT"]) > 1023
    assert launch.detect({"MASTER_PORT": "4321"}).world == 1


CONNECT = """
import torch, torch.distributed as dist
from infty.parallel import groups
from infty_pretrain import launch
launch.connect(launch.detect(), 1, 45.0)
for group in (dist.group.WORLD, groups.data_group(), groups.tensor_group()):
    print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 60)
import os; os._exit(0)
"""


def test_collectives_wait_longer_than_the_watchdog():
    """It tells who stands where; a collective that gives up first ends the run with a stack trace."""
    done = subprocess.run([sys.executable, "-c", CONNECT], capture_output=True, text=True, timeout=120, check=True,
                          env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
                          | {"PYTHONUNBUFFERED": "1"})
    assert [float(x) for x in done.stdout.split()[-3:]] == [100.0, 100.0, 100.0]
    assert launch.patience(None).days > 300
