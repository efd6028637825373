"""What a run meets when it is started again: other data, another model, a full disk, damage, other lanes, another
stage. One process; every start is a start of the real trainer."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path

import pytest

from infty.errors import UserError
from infty_tools import processes
from support import small_run

STAGES = [(stage, "fp32") for stage in range(4)] + [(stage, "bf16") for stage in (1, 2, 3)]
BASE = {"model__dropout": 0.0, "parallel__zero_stage": 1}


def saved(folder: Path) -> dict[str, bytes]:
    """Every file of a run's checkpoints."""
    root = folder / "checkpoints"
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def everything(root: Path) -> dict:
    return refusals(root) | full_disk(root) | changes(root) | stages(root)


def refusal(folder: Path, data: Path, **options) -> str:
    from support.small_training import train

    try:
        train(folder, data, run__steps=4, **BASE | options)
    except UserError as error:
        return str(error)
    return "it went on"


def refusals(root: Path) -> dict:
    from support.small_training import train

    base, data = root / "base", root / "data"
    train(base, data, run__steps=2, **BASE)
    before = saved(base)
    out = {
        "refused": {
            "dataset": refusal(base, root / "other"),
            "tokenizer": refusal(base, root / "tokenizer"),
            "width": refusal(base, data, model__hidden_size=64),
            "family": refusal(base, data, model__family="gpt2"),
            "contraction": refusal(base, data, model__memory__contraction=0.5),
        }
    }
    shutil.copytree(base, root / "spoilt")
    for path in (root / "spoilt" / "checkpoints").glob("step-*/weights-*"):
        path.write_bytes(path.read_bytes()[:-1])
    out["refused"]["spoilt"] = refusal(root / "spoilt", data)
    out["refused"]["unreadable"] = unreadable(base, data)
    again = train(base, data, run__steps=2, **BASE)
    return out | {"untouched": saved(base) == before, "again": again}


def unreadable(folder: Path, data: Path) -> str:
    """One file of the newest checkpoint is somebody else's, who keeps it to himself."""
    from infty_pretrain.checkpoint import format

    plain = format.digest

    def digest(path):
        if path.name.startswith("lanes"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    format.digest = digest
    try:
        return refusal(folder, data)
    finally:
        format.digest = plain


def full_disk(root: Path) -> dict:
    """The disk is full for one file of the second checkpoint; a person makes room and starts again."""
    from infty_pretrain.checkpoint import writing
    from support.small_training import train

    folder, plain = root / "full", writing.write_file
    train(folder, root / "data", run__steps=4, checkpoint__every=2, stop_at=2, **BASE)
    before, out = saved(folder), {}
    for kind in ("weights", "lanes", "run", "manifest"):

        def write(path, how, kind=kind):
            if path.name.startswith(kind):
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            plain(path, how)

        writing.write_file = write
        out[f"full {kind}"] = (refusal(folder, root / "data"), saved(folder) == before)
    writing.write_file = plain
    return out | {"made room": train(folder, root / "data", run__steps=4, **BASE)}


def changes(root: Path) -> dict:
    """From one checkpoint at step 3 of 5: straight on, with other lanes, with empty memories, with accumulation."""
    from support.small_training import train

    base, out = root / "from", {}
    train(base, root / "data", run__steps=5, stop_at=3, **BASE)
    for name, options in {
        "on": {},
        "more": {"batch__lanes": 6},
        "fewer": {"batch__lanes": 2},
        "reset": {"checkpoint__memory": "reset"},
        "accumulated": {"batch__micro_batch": 1},
    }.items():
        shutil.copytree(base, root / name)
        code = train(root / name, root / "data", run__steps=5, **BASE | options)
        lanes = json.loads(
            (root / name / "checkpoints" / "step-00000005" / "run.json").read_text()
        )["lanes"]
        out[name] = (
            code,
            small_run.curve(root / name),
            len(lanes["cursors"]) if "cursors" in lanes else None,
        )
    return out


def stages(root: Path) -> dict:
    from support.small_training import train

    out = {}
    for stage, precision in STAGES:
        name, options = (
            f"{stage}-{precision}",
            {"parallel__zero_stage": stage, "precision": precision},
        )
        whole = train(root / f"{name}-whole", root / "data", run__steps=4, **options)
        codes = [
            train(root / name, root / "data", stop, run__steps=4, **options) for stop in (2, None)
        ]
        out[name] = (
            whole,
            codes,
            small_run.curve(root / f"{name}-whole"),
            small_run.curve(root / name),
        )
    return out


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    small_run.write_dataset(root / "data")
    small_run.write_dataset(root / "other", seed=5)
    info = json.loads((small_run.write_dataset(root / "tokenizer") / "dataset.json").read_text())
    info["tokenizer_fingerprint"] = "another"
    (root / "tokenizer" / "dataset.json").write_text(json.dumps(info))
    return processes.run(1, everything, root)[0]


@pytest.mark.parametrize(
    "change, words",
    [
        ("dataset", "another dataset than data.train"),
        ("tokenizer", "another tokenizer than data.train"),
        ("width", "a checkpoint of a different model"),
        ("family", "a checkpoint of a different model"),
        ("contraction", "model.memory.contraction"),
        ("spoilt", "none is whole"),
        ("unreadable", "lanes-00000.safetensors cannot be read"),
    ],
)
def test_what_does_not_belong_together_is_refused(seen, change, words):
    assert words in seen["refused"][change]


def test_a_refusal_and_a_finished_run_change_nothing(seen):
    assert seen["untouched"] and seen["again"] == 0


@pytest.mark.parametrize("kind", ["weights", "lanes", "run", "manifest"])
def test_a_full_disk_leaves_the_older_checkpoint(seen, kind):
    message, unharmed = seen[f"full {kind}"]
    assert "is full" in message and "earlier ones are unharmed" in message and unharmed


def test_after_room_was_made_the_run_ends(seen):
    assert seen["made room"] == 0


@pytest.mark.parametrize("name", ["more", "fewer", "reset"])
def test_changed_lanes_and_memories_go_on(seen, name):
    (code, on, _), (changed, curve, _) = seen["on"], seen[name]
    assert code == changed == 0 and [r[0] for r in curve] == [1, 2, 3, 4, 5]
    assert curve[:3] == on[:3] and all(math.isfinite(r[1]) for r in curve)
    assert curve[3][1] != on[3][1]


def test_accumulation_changes_nothing(seen):
    for got, expected in zip(seen["accumulated"][1], seen["on"][1]):
        assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage, precision", STAGES)
def test_every_stage_and_precision_resumes_to_the_bit(seen, stage, precision):
    whole, codes, expected, got = seen[f"{stage}-{precision}"]
    assert (whole, codes) == (0, [85, 0])
    assert got == expected and len(got) == 4
