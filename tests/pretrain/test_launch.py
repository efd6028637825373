"""Which rank a process is, from what each launcher leaves in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from infty.errors import UserError
from infty_pretrain import environment, launch

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "1234"}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture
def mpi(monkeypatch):
    """mpirun's world without MPI."""

    def answer(env):
        env.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", **MASTER)

    monkeypatch.setattr(launch, "from_mpi", answer)


def test_torchrun_and_deepspeed():
    assert launch.detect(TORCHRUN | MASTER) == launch.Launch(2, 4, 0, "env")
    assert launch.detect({"RANK": "0", "WORLD_SIZE": "1", **MASTER}).local_rank == 0


def test_torchrun_inside_a_slurm_step():
    assert launch.detect(TORCHRUN | STEP | MASTER) == launch.Launch(2, 4, 0, "env")


def test_srun():
    env = STEP | MASTER
    assert launch.detect(env) == launch.Launch(3, 4, 1, "slurm")
    assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"]) == (
        "3",
        "4",
        "1",
    )  # what DeepSpeed reads


def test_srun_without_an_address_says_what_to_export():
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT"):
        launch.detect(dict(STEP))


def test_srun_of_one_task_needs_no_address():
    found = launch.detect(
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    )
    assert (found.rank, found.world) == (0, 1)


def test_a_batch_script_is_no_task():
    env = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
    assert launch.detect(env) == launch.Launch(0, 1, 0, "single")


@pytest.mark.parametrize(
    "set_by_mpirun",
    [
        {"OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_RANK": "1"},
        {
            "OMPI_COMM_WORLD_RANK": "1",
            **STEP,
        },  # daemons of mpirun in a Slurm job pass their own SLURM_PROCID on
        {"PMI_RANK": "1", "MPI_LOCALRANKID": "1", **STEP},
    ],
)
def test_mpirun(mpi, set_by_mpirun):
    assert launch.detect(dict(set_by_mpirun)) == launch.Launch(1, 2, 1, "mpi")


def test_srun_with_pmi2_is_srun(mpi):
    assert launch.detect(STEP | MASTER | {"PMI_RANK": "3"}).launcher == "slurm"


@pytest.mark.parametrize(
    "left", [{}, MASTER, {"MASTER_PORT": "4321"}, MASTER | {"RANK": "0", "WORLD_SIZE": "1"}]
)
def test_one_process_listens_to_nothing_that_was_left_over(left):
    env = dict(left)
    found = launch.detect(env)
    assert (found.rank, found.world, found.local_rank) == (0, 1, 0)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("127.0.0.1", "0")


def test_a_rank_left_in_the_shell_is_not_that_of_a_process_of_mpirun(mpi, capsys):
    left = {"RANK": "0", "WORLD_SIZE": "1", **MASTER}
    assert launch.detect(left | {"PMI_RANK": "1", "PMI_SIZE": "2"}) == launch.Launch(1, 2, 1, "mpi")
    assert capsys.readouterr().out == ""
    launch.detect(left | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"})
    assert (
        "RANK=0 and WORLD_SIZE=1 in the environment are not this run's" in capsys.readouterr().out
    )
    assert launch.detect(left | STEP) == launch.Launch(3, 4, 1, "slurm")


def test_ranks_that_contradict_each_other_are_refused():
    with pytest.raises(
        UserError, match="RANK=0 is set in the environment, but this is process 3 of 4"
    ):
        launch.detect({"RANK": "0", "WORLD_SIZE": "4", **MASTER, **STEP})
    with pytest.raises(UserError, match="RANK=2 in the environment must be less than WORLD_SIZE=2"):
        launch.detect({"RANK": "2", "WORLD_SIZE": "2", **MASTER})


@pytest.mark.parametrize("own", [{"TORCHELASTIC_RUN_ID": "none"}, {"CROSS_RANK": "0"}, {}])
def test_a_launcher_on_every_node_started_by_mpirun_or_srun(own):
    """It has more processes than those that mpirun started; or what it says agrees."""
    eight = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER, **own}
    assert (
        launch.detect(
            eight | STEP | {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
        ).rank
        == 5
    )
    assert launch.detect(eight | STEP) == launch.Launch(5, 8, 1, "env")
    assert (
        launch.detect(STEP | MASTER | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}).launcher
        == "env"
    )


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("OMP_NUM_THREADS", "four", "is not a number of threads"),
        ("OMP_NUM_THREADS", "0", "1 or more"),
        ("OMP_NUM_THREADS", "2,", "is not a number of threads"),
        ("RANK", "-1", "0 or more"),
        ("RANK", "x", "RANK=x"),
        ("WORLD_SIZE", "0", "1 or more"),
        ("MASTER_PORT", "70000", "from 0 to 65,535"),
        ("MASTER_PORT", "a", "a port"),
        ("LOCAL_RANK", "1.5", "LOCAL_RANK=1.5"),
        ("DS_ACCELERATOR", "gpu", "one of cpu, cuda"),
        ("TORCH_DISTRIBUTED_DEBUG", "yes", "one of OFF, INFO, DETAIL"),
        ("PMI_SIZE", "two", "a number of processes"),
        ("GLOO_SOCKET_IFNAME", "no-such-link", "names no network interface"),
    ],
)
def test_a_value_that_cannot_be_is_named(name, value, words):
    with pytest.raises(UserError, match=words) as told:
        launch.detect({"RANK": "0", "WORLD_SIZE": "2", **MASTER, name: value})
    assert f"{name}={value} in the environment" in str(told.value)


@pytest.mark.parametrize(
    "value, threads", [(None, None), ("", None), ("3", 3), ("2,1", 2), (" 4 , 2,1", 4)]
)
def test_threads_of_the_first_level(value, threads):
    assert environment.threads({} if value is None else {"OMP_NUM_THREADS": value}) == threads


class OneGPUEach:
    """Stands in for DeepSpeed's accelerator on a node where every task sees its own GPU alone."""

    visible = 1

    def __init__(self):
        self.chosen = None

    def device_name(self):
        return "cuda"

    def communication_backend_name(self):
        return "gloo"

    def device_count(self):
        return self.visible

    def set_device(self, index):
        self.chosen = index


@pytest.mark.parametrize("local_rank, visible, index", [(3, 1, 0), (3, 4, 3), (0, 1, 0), (0, 8, 0)])
def test_the_device_is_one_that_is_visible(monkeypatch, local_rank, visible, index):
    import deepspeed
    from deepspeed import accelerator

    from infty.parallel import groups

    stand_in = OneGPUEach()
    stand_in.visible = visible
    monkeypatch.setattr(accelerator, "get_accelerator", lambda: stand_in)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda *_, **__: None)
    monkeypatch.setattr(launch.rendezvous, "meet", lambda *_: None)
    monkeypatch.setattr(groups, "initialize", lambda **_: None)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", str(local_rank))
    assert launch.connect(launch.Launch(3, 4, local_rank, "slurm"), 1) == f"cuda:{index}"
    assert stand_in.chosen == index
    # What DeepSpeed takes for the device, and what it compares with it.
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(index)


def test_fewer_devices_than_processes_are_told():
    with pytest.raises(
        UserError, match="process 3 of its node finds 2 GPUs: start at most one process per GPU"
    ):
        launch.device_index(launch.Launch(3, 4, 3, "env"), 2)


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
    done = subprocess.run(
        [sys.executable, "-c", CONNECT],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        | {"PYTHONUNBUFFERED": "1"},
    )
    assert [float(x) for x in done.stdout.split()[-3:]] == [100.0, 100.0, 100.0]
    assert launch.patience(None).days > 300
