"""Renders the batch files of slurm/ from slurm/jobs.yaml: `python -m infty_tools.submit_examples`."""

from __future__ import annotations

from pathlib import Path

import yaml

from infty_tools import submit_job

FOLDER = Path(__file__).resolve().parents[2] / "slurm"
SHARED = {"setup": ("source .venv-infty/bin/activate",)}


def examples() -> dict[Path, str]:
    """The text of every file."""
    jobs = yaml.safe_load((FOLDER / "jobs.yaml").read_text())
    return {FOLDER / f"{name}.sbatch": submit_job.render(submit_job.from_dict(SHARED | values, f"jobs.yaml: {name}"))
            for name, values in jobs.items()}


if __name__ == "__main__":
    for path, text in examples().items():
        path.write_text(text)
        print(path)
