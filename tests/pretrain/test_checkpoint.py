"""A checkpoint is whole or absent: which folder is chosen, which are kept, what is said about the others."""

from __future__ import annotations

import errno
import io
import json
import os
import pwd
import shutil
import stat
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from infty.errors import UserError
from infty_pretrain import checkpoint
from infty_pretrain.checkpoint.format import digest
from infty_tools import processes


def write(folder: Path, step: int, ephemeral: bool = False) -> Path:
    """A folder that is a checkpoint as far as its manifest goes."""
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("weights-00000.safetensors", "lanes-00000.safetensors"):
        (path / name).write_bytes(f"{name} of {step}".encode() * 20)
    (path / checkpoint.RUN).write_text(json.dumps({"step": step, checkpoint.EPHEMERAL: ephemeral}))
    files = {p.name: digest(p) for p in path.iterdir()}
    (path / checkpoint.MANIFEST).write_text(
        json.dumps({"format": checkpoint.FORMAT, "files": files})
    )
    return path


def steps(folder: Path) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in checkpoint.candidates(folder)]


def manifest(files: object) -> str:
    return json.dumps({"format": checkpoint.FORMAT, "files": files})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "cut": (
        lambda p: (p / "weights-00000.safetensors").write_bytes(b"w"),
        "has 1 bytes instead of",
    ),
    "flipped": (lambda p: flip(p / "lanes-00000.safetensors"), "is damaged: its sha256"),
    "missing": (lambda p: (p / checkpoint.RUN).unlink(), "run.json is missing"),
    "no manifest": (lambda p: (p / checkpoint.MANIFEST).unlink(), "it has no manifest.json"),
    "cut manifest": (
        lambda p: (p / checkpoint.MANIFEST).write_text('{"files": {'),
        "manifest.json is damaged",
    ),
    "binary manifest": (
        lambda p: (p / checkpoint.MANIFEST).write_bytes(b"\xff\xfe\x00"),
        "manifest.json is damaged",
    ),
    "list manifest": (
        lambda p: (p / checkpoint.MANIFEST).write_text("[]"),
        "manifest.json is damaged",
    ),
    "odd files": (
        lambda p: (p / checkpoint.MANIFEST).write_text(manifest([1])),
        "manifest.json is damaged",
    ),
    "no size": (
        lambda p: (p / checkpoint.MANIFEST).write_text(manifest({"run.json": {}})),
        "manifest.json is damaged",
    ),
    "pipe": (lambda p: piped(p / "lanes-00000.safetensors"), "lanes-00000.safetensors is no file"),
    "pipe manifest": (lambda p: piped(p / checkpoint.MANIFEST), "manifest.json is no file"),
    "repeated key": (
        lambda p: (p / checkpoint.MANIFEST).write_text('{"files": {}, "files": {}}'),
        "manifest.json is damaged",
    ),
    "empty files": (
        lambda p: (p / checkpoint.MANIFEST).write_text(manifest({})),
        "manifest.json is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_passed_over_with_the_reason(tmp_path, damage):
    for step in (5, 10, 15):
        write(tmp_path, step)
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "step-00000015")
    said = []
    assert checkpoint.newest_valid(tmp_path, said.append) == tmp_path / "step-00000010"
    assert len(said) == 1 and "step-00000015" in said[0] and reason in said[0]


def forbid(monkeypatch, name: str, number: int = errno.EACCES) -> None:
    """Files of this name are somebody else's. (The tests may run as root, who may read everything.)"""
    plain = io.open

    def opened(file, *arguments, **options):
        if Path(file).name == name:
            raise OSError(number, os.strerror(number), str(file))
        return plain(file, *arguments, **options)

    monkeypatch.setattr(io, "open", opened)  # pathlib's
    monkeypatch.setattr("builtins.open", opened)


@pytest.mark.parametrize("name", [checkpoint.MANIFEST, "lanes-00000.safetensors"])
def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch, name):
    write(tmp_path, 10)
    newest = write(tmp_path, 15)
    owner = pwd.getpwuid(newest.stat().st_uid).pw_name
    forbid(monkeypatch, name)
    with pytest.raises(
        UserError, match=rf"{name} cannot be read: it belongs to {owner}, group .*chmod -R g\+rX"
    ):
        checkpoint.newest_valid(tmp_path, pytest.fail)
    assert steps(tmp_path) == [15, 10]


def test_a_disk_that_fails_is_no_damage_either(tmp_path, monkeypatch):
    write(tmp_path, 15)
    forbid(monkeypatch, checkpoint.RUN, errno.EIO)
    with pytest.raises(UserError, match="it may be intact, so nothing was changed"):
        checkpoint.newest_valid(tmp_path, pytest.fail)


def test_a_checkpoint_of_a_later_version_is_not_damaged(tmp_path):
    (write(tmp_path, 15) / checkpoint.MANIFEST).write_text('{"format": 9, "files": {}}')
    with pytest.raises(UserError, match="has the format 9, this version of infty reads 2"):
        checkpoint.newest_valid(tmp_path, pytest.fail)


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
    write(tmp_path, 15)

    def closed(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.candidates(tmp_path)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        snapshot = checkpoint.Snapshot(
            tmp_path / "step-00000007",
            {"weights-00000.safetensors": {"w": torch.ones(3)}},
            {checkpoint.RUN: "{}"},
        )
        assert checkpoint.write(snapshot)[1] is None
    finally:
        os.umask(before)
    assert stat.S_IMODE(snapshot.partial.stat().st_mode) == 0o777 & ~mask
    assert {stat.S_IMODE(p.stat().st_mode) for p in snapshot.partial.iterdir()} == {0o666 & ~mask}


def test_what_may_not_be_deleted_is_told_and_kept(tmp_path, monkeypatch):
    for step in (10, 20):
        write(tmp_path, step)

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", refuse)
    said = []
    checkpoint.prune(tmp_path, 1, None, said.append)
    assert steps(tmp_path) == [20, 10] and said == [
        "step-00000010 stays, though it is no longer needed: Operation not permitted"
    ]


def test_the_newest_whole_one_is_chosen_silently(tmp_path):
    for step in (5, 100, 20):
        write(tmp_path, step)
    said = []
    assert checkpoint.newest_valid(tmp_path, said.append) == tmp_path / "step-00000100"
    assert checkpoint.newest_valid(tmp_path / "none", said.append) is None
    assert not said


def test_half_written_folders_are_never_chosen(tmp_path):
    write(tmp_path, 5)
    for name in ("step-00000010.partial", "step-00000010.damaged"):
        write(tmp_path, 10).rename(tmp_path / name)
    (tmp_path / "step-00000020").write_text("a file")
    (tmp_path / "step-latest").mkdir()
    assert steps(tmp_path) == [5]
    assert checkpoint.newest_valid(tmp_path, pytest.fail) == tmp_path / "step-00000005"


def test_the_damaged_are_set_aside(tmp_path):
    for step in (5, 10, 15):
        write(tmp_path, step)
    checkpoint.set_aside(tmp_path, tmp_path / "step-00000010", lambda _: None)
    assert steps(tmp_path) == [10, 5] and (tmp_path / "step-00000015.damaged").is_dir()
    with pytest.raises(UserError, match="none is whole"):
        checkpoint.set_aside(tmp_path, None)
    assert steps(tmp_path) == [10, 5]


def test_pruning_keeps_the_last_and_every_nth(tmp_path):
    for step in range(10, 101, 10):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, keep_last=2, keep_every=40)
    assert steps(tmp_path) == [100, 90, 80, 40]
    checkpoint.prune(tmp_path, keep_last=1, keep_every=None)
    assert steps(tmp_path) == [100]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000100"]


def test_ephemeral_checkpoints_are_kept_until_the_next_and_push_none_out(tmp_path):
    for step, ephemeral in ((10, False), (13, True), (20, False), (23, True), (26, True)):
        write(tmp_path, step, ephemeral)
        checkpoint.prune(tmp_path, keep_last=2, keep_every=None)
    assert steps(tmp_path) == [26, 20, 10]
    write(tmp_path, 30)
    checkpoint.prune(tmp_path, keep_last=2, keep_every=13)
    assert steps(tmp_path) == [30, 20]


def publish_apart(root: Path) -> tuple[str, list[str]]:
    """Both ranks write, each on a disk of its own, as when run.folder is not shared by the nodes."""
    folder = root / str(dist.get_rank())
    snapshot = checkpoint.Snapshot(
        folder / "step-00000007",
        {f"weights-{dist.get_rank():05d}.safetensors": {"w": torch.ones(3)}},
        {},
    )
    try:
        checkpoint.publish(snapshot, *checkpoint.write(snapshot))
    except UserError as error:
        return str(error), steps(folder)
    return "published", steps(folder)


def test_what_not_all_nodes_see_is_no_checkpoint(tmp_path):
    for message, found in processes.run(2, publish_apart, tmp_path):
        assert (
            "weights-00001.safetensors is missing" in message
            and "a disk that all nodes share" in message
        )
        assert found == []


def test_ranks_share_the_reading_of_a_checkpoint(tmp_path):
    """Sizes are looked at by every rank, contents by one."""
    path = write(tmp_path, 5)
    flip(path / "lanes-00000.safetensors")
    assert [checkpoint.problem_with(path, rank, 3) is None for rank in range(3)].count(False) == 1
    (path / "lanes-00000.safetensors").unlink()
    assert [checkpoint.problem_with(path, rank, 3) for rank in range(3)] == [
        "lanes-00000.safetensors is missing"
    ] * 3


def test_a_checkpoint_of_the_version_before_is_refused_in_one_sentence_and_left_alone(tmp_path):
    """The manifest was written by infty 0.1 before memories had a contract."""
    shutil.copytree(Path(__file__).parent / "fixtures" / "format-1", tmp_path / "checkpoints")
    with pytest.raises(
        UserError, match=r"the format 1, this version of infty reads 2: continue with the"
    ):
        checkpoint.newest_valid(tmp_path / "checkpoints", print)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


RUN_VALUES = {"step": 5, "tokens": 9, "tokenizer": "t", "tokenizer_fingerprint": "f"}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{", "Expecting"),
        ("[]", "it is no object"),
        ('{"step": 5, "step": 6}', "'step' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps(RUN_VALUES | {"step": "x"}), "step is 'x'"),
        (json.dumps({"step": 5}), "tokens is None"),
        ("\udcff", ""),
    ],
)
def test_an_edited_checkpoint_is_one_sentence(tmp_path, text, problem):
    path = write(tmp_path, 5)
    (path / checkpoint.RUN).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        UserError,
        match=rf"^[^\n]*run\.json cannot be used [^\n]*{problem}[^\n]*was it edited[^\n]+$",
    ):
        checkpoint.Reader(path)


def test_weights_that_are_none_are_one_sentence(tmp_path):
    path = write(tmp_path, 5)
    (path / checkpoint.RUN).write_text(json.dumps(RUN_VALUES))
    with pytest.raises(UserError, match=r"weights-00000\.safetensors cannot be used [^\n]+$"):
        checkpoint.Reader(path)
