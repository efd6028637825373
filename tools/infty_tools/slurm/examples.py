"""`python -m infty_tools.slurm.examples`: renders the batch files of slurm/ from its jobs.yaml."""

from __future__ import annotations

from pathlib import Path

from infty_tools.slurm import job

FOLDER = Path(__file__).resolve().parents[3] / "slurm"
SHARED = {"setup": ("source .venv-infty/bin/activate",)}


def examples() -> dict[Path, str]:
    """The text of every file."""
    found = {}
    for name, values in job.read_values(FOLDER / "jobs.yaml").items():
        described = job.from_dict(SHARED | values, f"jobs.yaml: {name}")
        found[FOLDER / f"{name}.sbatch"] = job.render(described)
    return found


if __name__ == "__main__":
    for path, text in examples().items():
        path.write_text(text)
        print(path)
