"""`infty doctor`: what it finds right and wrong, alone and in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
run: {folder: run, steps: 3}
data: {train: nowhere}
model: {hidden_size: 64, layers: 2, heads: 4, segment_length: 32, memory: {basis: 32}}
"""


def _doctor(
    *words: str, folder: Path, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    plain = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    command = [sys.executable, *(launcher or ("-m",)), "infty_tools", "doctor", *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=plain | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )


def test_a_laptop_is_fine(tmp_path):
    done = _doctor(folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is fine for 1 process" in done.stdout and not list(tmp_path.iterdir())


def test_two_processes_and_a_dataset_that_is_not_there(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = _doctor(
        "--config",
        "config.yaml",
        folder=tmp_path,
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for said in (
        "all-reduce among 2",
        "GB/s",
        "shared folder",
        "disk space",
        "write speed",
        "clocks",
        "nowhere does not exist",
        "infty prepare",
    ):
        assert said in done.stdout, said
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_wrong_versions_and_devices_say_what_to_do(monkeypatch):
    from infty_pretrain.launch import Launch
    from infty_tools.doctor import machines

    monkeypatch.setattr(machines, "installed_version", lambda package: "0.1")
    finding = machines.versions()
    assert not finding.fine and "pip install deepspeed==0.19.8" in finding.advice
    monkeypatch.setattr(machines.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machines.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machines.torch.cuda, "get_device_name", lambda _: "GPU")
    assert machines.devices(Launch(1, 4, 1, "slurm")).fine
    assert "one process per GPU" in machines.devices(Launch(3, 4, 3, "slurm")).advice


def test_a_task_that_sees_one_gpu_has_that_one(monkeypatch):
    """Under --gpus-per-task=1 local rank 3 sees one GPU, its own; without, four tasks may share the node's only one."""
    from infty_pretrain.launch import Launch
    from infty_tools.doctor import machines

    monkeypatch.setattr(machines.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machines.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(machines.torch.cuda, "get_device_name", lambda _: "GPU")
    assert machines.devices(Launch(3, 4, 3, "slurm")).fine
    assert machines.own_gpus([f"node GPU-{i}" for i in range(4)]).fine
    assert (
        machines.own_gpus(["node-1 GPU-0", "node-2 GPU-0"]).fine
        and machines.own_gpus([None, None]).fine
    )
    shared = machines.own_gpus(["node GPU-0", "node GPU-1", "node GPU-0"])
    assert shared.wrong and "ranks 0, 2 have the same GPU" in shared.advice


def _config(folder: Path, steps: int = 1000, **checkpoint):
    from infty_pretrain import config as configs

    return configs.from_dict(
        {
            "run": {"folder": str(folder), "steps": steps},
            "model": {"vocab_size": 100},
            "checkpoint": checkpoint,
        }
    )


def _checkpoints(folder: Path, *names: str) -> None:
    for name in names:
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "manifest.json").write_text("{}")


@pytest.fixture
def room(monkeypatch):
    """Let the disk have room for so many checkpoints."""
    from infty_tools.doctor import disk

    def set_to(config, count: float) -> None:
        free = count * disk.checkpoint_bytes(config)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("U", (), {"free": free})())

    return set_to


@pytest.mark.usefixtures("single_process")
def test_a_slow_or_full_disk_and_clocks_apart(monkeypatch, tmp_path, room):
    from infty_tools.doctor import disk, machines

    config = _config(tmp_path / "a" / "b")
    assert disk.space(config).fine and disk.write_speed(config).fine
    assert disk.shared_folder(config).fine
    monkeypatch.setattr(disk, "LONGEST_CHECKPOINT", 1e-9)
    slow = disk.write_speed(config)
    assert slow.wrong and "faster disk" in slow.advice
    room(config, 0.01)
    full = disk.space(config)
    assert full.wrong and "make room" in full.advice
    monkeypatch.setattr(machines, "SKEW", -1.0)
    assert machines.clocks().wrong
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("single_process")
@pytest.mark.parametrize(
    "policy, names, least",
    [
        ({}, [], 3),
        ({"minutes": 10}, [], 4),
        ({}, ["step-00000500"], 2),
        ({}, ["step-00000500", "step-00001000"], 1),
        (
            {},
            ["step-00000500", "step-00001000", "step-00001500"],
            1,
        ),  # one is pruned when the next is written, not before
        ({"minutes": 10}, ["step-00000500", "step-00001000", "step-00001200"], 1),
        ({}, ["step-00000500.partial", "step-00001000.damaged"], 3),
    ],
)
def test_the_runs_own_checkpoints_need_no_room(tmp_path, room, policy, names, least):
    from infty_tools.doctor import disk

    config = _config(tmp_path, **policy)
    _checkpoints(tmp_path, *names)
    (tmp_path / "checkpoints" / "step-00000400").mkdir(parents=True)  # no manifest: not whole
    room(config, least + 0.01)
    assert disk.space(config).fine
    room(config, least - 0.01)
    assert not disk.space(config).fine


@pytest.mark.usefixtures("single_process")
def test_what_is_kept_for_good_is_named(tmp_path, room):
    from infty_tools.doctor import disk

    config = _config(
        tmp_path, steps=10_000, every=500, keep_every=750
    )  # written at 1500, 3000, ... 9000
    room(config, 9.01)
    assert disk.space(config).fine and "keep_every will add 6," in disk.space(config).found
    room(config, 8.99)
    finding = disk.space(config)
    assert finding.verdict == "warning" and "raise checkpoint.keep_every" in finding.advice
    _checkpoints(tmp_path, "step-00003000", "step-00004000")
    assert "keep_every will add 4," in disk.space(config).found


@pytest.mark.usefixtures("single_process")
def test_a_run_that_goes_on_is_only_warned(monkeypatch, tmp_path, room):
    """Its job would be given up for good otherwise."""
    from infty_tools.doctor import checks, command, disk, findings

    config = _config(tmp_path)
    _checkpoints(tmp_path, "step-00000500")
    monkeypatch.setattr(disk, "LONGEST_CHECKPOINT", 1e-9)
    room(config, 0.01)
    for check in (disk.space, disk.write_speed):
        finding = findings.everywhere(check(config))
        assert finding.verdict == "warning" and not finding.wrong and finding.advice
    shown: list = []
    monkeypatch.setattr(checks, "run", lambda *_: [finding])
    monkeypatch.setattr("infty_pretrain.launch.leave", lambda _, code: shown.append(code))
    command.doctor([], None)
    assert shown == [0]


def _speed_of_two(folder: str, speed: float) -> list:
    from infty_tools.doctor import disk

    disk.measured_speed = lambda _: speed
    finding = disk.write_speed(_config(Path(folder)))
    return [finding.verdict, finding.found, disk.checkpoint_bytes(_config(Path(folder)))]


def test_the_speed_of_all_processes_counts(tmp_path):
    """Each has little of a disk that all share, and only its part to write."""
    size = _speed_in_two(tmp_path, 1.0)[0][2]
    for speed, verdict in ((1.05 * size / 1200, "ok"), (0.95 * size / 1200, "wrong")):
        for found in _speed_in_two(tmp_path, speed):
            assert found[0] == verdict and "2 process(es) together" in found[1]


def _speed_in_two(folder: Path, speed: float) -> list[list]:
    from infty_tools import processes

    return processes.run(2, _speed_of_two, str(folder), speed)


def _shared(folders: list[str]) -> list:
    import torch.distributed as dist

    from infty_tools.doctor import disk, findings

    disk.PATIENCE = 0.3
    mine = disk.shared_folder(_config(Path(folders[dist.get_rank()])))
    both = findings.everywhere(mine)
    return [mine.fine, both.wrong, both.found, both.advice]


def test_a_folder_that_not_every_process_sees(tmp_path):
    from infty_tools import processes

    for name in ("node-0", "node-1"):
        (tmp_path / name).mkdir()
    one, other = (str(tmp_path / name / "runs" / "run") for name in ("node-0", "node-1"))
    assert [fine for fine, *_ in processes.run(2, _shared, [one, one])] == [True, True]
    (fine, *_), (odd, wrong, found, advice) = processes.run(2, _shared, [one, other])
    assert fine and not odd and wrong
    assert "rank 1" in found and "disk that all nodes share" in advice
    assert not list((tmp_path / "node-0").iterdir()) and not list((tmp_path / "node-1").iterdir())
