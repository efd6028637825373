"""`infty submit --dry-run` and the batch files in slurm/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infty.errors import UserError
from infty_tools.cli import app
from infty_tools.slurm import examples
from infty_tools.slurm import job as jobs

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


def _submit(*arguments: str):
    return CliRunner().invoke(app, ["submit", "--dry-run", *arguments])


@pytest.mark.parametrize(
    "path, text", examples.examples().items(), ids=lambda v: getattr(v, "name", "")
)
def test_batch_files_are_current_and_shell(path, text):
    assert path.read_text() == text, "run python -m infty_tools.slurm.examples"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert len(text.splitlines()) <= 35 and max(map(len, text.splitlines())) <= 120


def test_every_batch_file_is_rendered_and_names_a_config_that_fits_it():
    assert set((ROOT / "slurm").glob("*.sbatch")) == set(examples.examples())
    for job in jobs.read_values(ROOT / "slurm" / "jobs.yaml").values():
        for word in job["arguments"].split():
            assert not word.startswith("configs/") or (ROOT / word).exists()


@pytest.mark.parametrize("name, nodes", [("125m", 1), ("1.3b", 4), ("7b", 16)])
def test_dry_run_of_the_configs(name, nodes):
    result = _submit(
        "--config", str(CONFIGS / f"pg19-{name}.yaml"), "--nodes", str(nodes), "--partition", "gpu"
    )
    assert result.exit_code == 0, result.exception
    assert "plan for" in result.output and "nothing was sent" in result.output
    for said in (
        f"#SBATCH --nodes={nodes}",
        "#SBATCH --partition=gpu",
        "#SBATCH --signal=B:USR1@300",
        "#SBATCH --requeue",
        f" --run runs/pg19-{name} ",
    ):
        assert said in result.output


def test_all_options_reach_the_file():
    options = {
        "account": "books",
        "qos": "long",
        "constraint": "h100",
        "exclude": "node[3,7]",
        "memory": "200G",
        "time": "12:00:00",
        "container": "infty.sqsh",
        "container-mounts": "/data",
        "sbatch": "--switches=1",
        "setup": "module load cuda",
        "starts": "7",
        "lead-seconds": "120",
        "name": "mine",
    }
    result = _submit(
        "-c",
        str(CONFIGS / "pg19-125m.yaml"),
        *(w for k, v in options.items() for w in (f"--{k}", v)),
    )
    assert result.exit_code == 0, result.exception
    for said in (
        "--account=books",
        "--qos=long",
        "--constraint=h100",
        "--exclude=node[3,7]",
        "--mem=200G",
        "@120",
        "--time=12:00:00",
        "--srun=--container-image=infty.sqsh",
        "--srun=--container-mounts=/data",
        "#SBATCH --switches=1",
        "\nmodule load cuda\n",
        "--starts 7",
        "--job-name=mine",
        "-- pretrain --config",
    ):
        assert said in result.output, said


def test_a_profile_holds_what_a_cluster_wants(tmp_path):
    profile = tmp_path / "cluster.yaml"
    profile.write_text("partition: gpu\nsetup: [source env.sh]\ngpus_per_node: 4\n")
    result = _submit(
        "-c", str(CONFIGS / "pg19-125m.yaml"), "--profile", str(profile), "--partition", "debug"
    )
    assert "--partition=debug" in result.output and "source env.sh" in result.output
    assert "#SBATCH --ntasks-per-node=4" in result.output
    profile.write_text("partition: [gpu\n")
    broken = _submit("-c", "x", "--profile", str(profile)).exception
    assert isinstance(broken, UserError) and str(profile) in str(broken)
    profile.write_text("partitoin: gpu\n")
    assert "did you mean 'partition'" in str(
        _submit("-c", "x", "--profile", str(profile)).exception
    )


def test_arrays_put_the_number_where_task_stands():
    result = _submit(
        "-c",
        str(CONFIGS / "pg19-125m.yaml"),
        "--array",
        "0-3%2",
        "run.seed={task}",
        "run.folder=runs/my seed-{task}",
    )
    assert result.exit_code == 0, result.exception
    line = next(l for l in result.output.splitlines() if " pretrain " in l)
    words = line[line.index("--config") :]
    shown = subprocess.run(
        ["bash", "-c", f"SLURM_ARRAY_TASK_ID=2; printf '%s|' {words}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split("|")[2:4] == ["run.seed=2", "run.folder=runs/my seed-2"]
    refused = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "--array", "0-3")
    assert "run.folder" in str(refused.exception)


def test_an_array_keeps_its_logs_and_its_config_where_all_runs_find_them():
    result = _submit(
        "-c", str(CONFIGS / "pg19-125m.yaml"), "--array", "0-3", "run.folder=runs/{task}/125m"
    )
    assert result.exit_code == 0, result.exception
    for said in (
        " --logs runs/slurm ",
        "#SBATCH --output=runs/slurm/%A_%a.out\n",
        " pretrain --config runs/slurm/pg19-125m-",
        ' --run runs/"$SLURM_ARRAY_TASK_ID"/125m ',
    ):
        assert said in result.output, said


def test_spaces_are_quoted_and_variables_of_a_container_are_not():
    result = _submit(
        "-c",
        str(CONFIGS / "pg19-125m.yaml"),
        "run.folder=runs/my run",
        "--name",
        "my run",
        "--container",
        "$SCRATCH/the image.sqsh",
        "--container-mounts",
        "$SCRATCH/my books:/books",
    )
    for said in (
        "#SBATCH --output='runs/my run-slurm/%j.out'\n",
        "#SBATCH --job-name='my run'\n",
        ' --srun=--container-image="$SCRATCH/the image.sqsh"',
        ' --srun=--container-mounts="$SCRATCH/my books:/books"',
    ):
        assert said in result.output, said


def test_a_percent_sign_in_a_folder_is_no_pattern():
    result = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "run.folder=runs/50%jam")
    assert "#SBATCH --output=runs/50%%jam-slurm/%j.out\n" in result.output
    assert " --logs runs/50%jam-slurm " in result.output


@pytest.mark.parametrize(
    "text, expected",
    [
        ("90", 5400),
        ("1:30", 90),
        ("24:00:00", 86400),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-0:0:5", 86405),
        ("0", None),
        ("UNLIMITED", None),
        ("noon", None),
    ],
)
def test_times_are_read_as_slurm_reads_them(text, expected):
    assert jobs.seconds(text) == expected


@pytest.mark.parametrize(
    "time, lead, most",
    [("5", "300", "150"), ("0-1", "1801", "1800"), ("3:00", "61", "60"), ("2", "1", None)],
)
def test_a_job_that_would_be_told_to_stop_at_once_is_refused(time, lead, most):
    refused = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "--time", time, "--lead-seconds", lead)
    assert isinstance(refused.exception, UserError) and "longer --time" in str(refused.exception)
    if most is not None:
        assert f"--lead-seconds {most} or less" in str(refused.exception)
        assert (
            _submit(
                "-c", str(CONFIGS / "pg19-125m.yaml"), "--time", time, "--lead-seconds", most
            ).exit_code
            == 0
        )


@pytest.mark.parametrize("asked", ["--gpus-per-task=1", "--gres=gpu:h100:8", "-G 8"])
def test_gpus_are_asked_for_once(asked):
    result = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "--sbatch", asked)
    assert f"#SBATCH {asked}\n" in result.output and "--gpus-per-node" not in result.output


def test_outside_a_container_runs_the_python_that_submits():
    result = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "--container", "infty.sqsh")
    assert (
        f"{sys.executable} -m infty_tools.slurm.supervise" in result.output
        and "--program" not in result.output
    )
    result = _submit("-c", str(CONFIGS / "pg19-125m.yaml"))
    assert f'--program "{sys.executable} -m infty_tools"' in result.output
    result = _submit("-c", str(CONFIGS / "pg19-125m.yaml"), "--setup", "source env.sh")
    assert (
        " python -m infty_tools.slurm.supervise" in result.output
        and "--program" not in result.output
    )


def test_what_is_printed_after_sending_can_be_pasted(monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text("#!/bin/bash\ncat >/dev/null; echo 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = CliRunner().invoke(
        app, ["submit", "-c", str(CONFIGS / "pg19-125m.yaml"), f"run.folder={tmp_path}/my run"]
    )
    assert result.exit_code == 0, result.exception
    assert f"'{tmp_path}/my run-slurm'/7/summary.txt" in result.output
    assert (tmp_path / "my run-slurm" / "7.sbatch").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "--config is missing"),
        (("-c", "nowhere.yaml"), "there is no config"),
        (("-c", str(CONFIGS / "pg19-125m.yaml"), "optimizer.lrr=1"), "did you mean"),
        (("-c", str(CONFIGS / "pg19-125m.yaml"), "--nodes", "3"), "batch.lanes"),
        (("-c", str(CONFIGS / "pg19-125m.yaml"), "--tasks-per-node", "2"), "one task per GPU"),
        (
            (
                "-c",
                str(CONFIGS / "pg19-7b.yaml"),
                "parallel.zero_stage=1",
                "batch.lanes=8",
                "batch.micro_batch=1",
                "--gpu",
                "rtx4090-24",
            ),
            "does not fit",
        ),
        (("--verb", "prepare"), "after --"),
        (("-c", "x", "--time", "1\n2"), "one line"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(arguments, said):
    result = _submit(*arguments)
    assert isinstance(result.exception, UserError) and said in str(result.exception)


def test_other_verbs_get_their_own_options():
    result = _submit("--verb", "evaluate", "--", "runs/a b", "--data", "data/v")
    assert "evaluate 'runs/a b' --data data/v" in result.output
    result = _submit(
        "--verb",
        "prepare",
        "--gpus-per-node",
        "0",
        "--tasks-per-node",
        "16",
        "--nodes",
        "2",
        "--",
        "--input",
        "books",
        "--output",
        "data",
    )
    assert "--mpi=pmi2" in result.output and "--gpus-per-node" not in result.output


def test_templates_are_part_of_a_wheel():
    project = (ROOT / "pyproject.toml").read_text()
    assert '"slurm/templates" = "infty_tools/slurm/templates"' in project
    assert (jobs.templates() / "header.j2").is_file()


def test_without_slurm_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["submit", "-c", str(CONFIGS / "pg19-125m.yaml")])
    assert "there is no sbatch here" in str(result.exception)
