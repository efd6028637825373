"""What figures of a bench depend on beside what it measures: the machine and what is installed on it."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from infty_tools.bench import ledger

LIBRARIES = ("torch", "deepspeed", "megatron-core", "transformers", "triton")


def facts(device: str = "cpu") -> dict[str, Any]:
    """The date, the commit, the processor or the GPU, and versions: JSON values."""
    import torch

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": ledger.commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def processor() -> str:
    """What the system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def sentence(facts: dict[str, Any]) -> str:
    """In one line."""
    where = facts.get("gpu") or (
        f"{facts['processor']}, {facts['cores']} cores, {facts['instructions']}, "
        f"{facts['threads']} thread(s)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['date']}, commit {facts['commit']}: {where}; {versions}"
