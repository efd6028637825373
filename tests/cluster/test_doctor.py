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


def _doctor(*words: str, folder: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    command = [sys.executable, *(launcher or ("-m",)), "infty_tools", "doctor", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env=plain | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"})


def test_a_laptop_is_fine(tmp_path):
    done = _doctor(folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is fine for 1 process" in done.stdout and not list(tmp_path.iterdir())


@pytest.mark.multiprocess
def test_two_processes_and_a_dataset_that_is_not_there(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = _doctor("--config", "config.yaml", folder=tmp_path,
                   launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"))
    assert done.returncode == 1, done.stdout + done.stderr
    for said in ("all-reduce among 2", "GB/s", "disk space", "write speed", "clocks", "nowhere does not exist",
                 "infty prepare"):
        assert said in done.stdout, said
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_wrong_versions_and_devices_say_what_to_do(monkeypatch):
    from infty_pretrain.launch import Launch
    from infty_tools import doctor_checks

    monkeypatch.setattr(doctor_checks, "_version", lambda package: "0.1")
    finding = doctor_checks.versions()
    assert not finding.fine and "pip install deepspeed==0.19.8" in finding.advice
    monkeypatch.setattr(doctor_checks.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor_checks.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(doctor_checks.torch.cuda, "get_device_name", lambda _: "GPU")
    assert doctor_checks.devices(Launch(1, 4, 1, "slurm")).fine
    assert "one process a GPU" in doctor_checks.devices(Launch(3, 4, 3, "slurm")).advice


def test_a_slow_or_full_disk_and_clocks_apart(monkeypatch, single_process, tmp_path):
    from infty_pretrain import config as configs
    from infty_tools import doctor_checks

    config = configs.from_dict({"run": {"folder": str(tmp_path / "a" / "b"), "steps": 1}, "model": {"vocab_size": 100}})
    assert doctor_checks.space(config).fine and doctor_checks.write_speed(config).fine
    monkeypatch.setattr(doctor_checks, "SLOWEST_DISK", 1e15)
    assert "faster disk" in doctor_checks.write_speed(config).advice
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: type("U", (), {"free": 10})())
    assert "make room" in doctor_checks.space(config).advice
    monkeypatch.setattr(doctor_checks, "SKEW", -1.0)
    assert not doctor_checks.clocks().fine
    assert not list(tmp_path.iterdir())
