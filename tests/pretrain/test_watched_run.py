"""What a run shows of itself, in TensorBoard and in its files, over a stop and a resume: neither overlap nor gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infty_pretrain.checkpoint import Saver
from infty_pretrain.records import BEGAN, DONE, RESUMED, SAVED, STOPPED
from infty_tools.report import reading
from infty_tools.report.summary import summary
from support import small_run, small_training

pytestmark = pytest.mark.usefixtures("single_process", "surroundings")
CHANGES = {
    "logging__tensorboard": True,
    "logging__every": 1,
    "logging__pictures": 2,
    "evaluation__every": 3,
    "run__steps": 6,
    "checkpoint__every": 3,
    "model__memory": {"basis": 16, "bins": 16, "output_gate": True},
}


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})
    found.Reload()
    return found


def steps(folder: Path, tag: str) -> list[int]:
    return [event.step for event in events(folder).Scalars(tag)]


def rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory, single_process, surroundings):
    """A run that was stopped after step 4 and went on from the checkpoint of step 3, as after a crash; and what was on
    disk when each checkpoint began."""
    root = tmp_path_factory.mktemp("watched")
    data = small_run.write_dataset(root / "data")
    held_out = small_run.write_dataset(root / "held-out", seed=1)
    changes = CHANGES | {"data__validation": str(held_out)}
    at_saves = []
    plain = Saver.start

    def start(saver, run):
        at_saves.append((run["step"], steps(root / "run", "train/loss")))
        return plain(saver, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "start", start)
        assert small_training.train(root / "run", data, 4, **changes) == 85
        last = root / "run" / "checkpoints" / "step-00000004"
        last.rename(root / "lost")
        assert small_training.train(root / "run", data, **changes) == 0
    return root / "run", at_saves


def test_all_that_was_told_is_on_disk_before_a_checkpoint(watched):
    assert watched[1][0] == (3, [1, 2, 3])


def test_curves_and_pictures_go_on_without_overlap_or_gap(watched):
    found = events(watched[0])
    for tag in ("train/loss", "memory_entropy/layer_01", "update_ratio/base_matrices"):
        assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4, 5, 6], tag
    for tag in ("memory_density/layer_00", "memory_room/layer_01", "memory_origin/layer_00"):
        assert [event.step for event in found.Images(tag)] == [2, 4, 6], tag
    assert [row["step"] for row in rows(watched[0], "figures.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(watched[0], "pictures.jsonl")] == [2, 4, 6]


def test_every_group_of_figures_is_there(watched):
    tags = set(events(watched[0]).Tags()["scalars"])
    groups = ("base_matrices", "base_vectors", "memory_matrices", "memory_vectors")
    expected = {f"{what}/{g}" for what in ("lr", "weight_size", "update_ratio") for g in groups}
    parts = ("reading", "forward", "backward", "optimizer", "other")
    expected |= {f"time_share/{part}" for part in parts}
    expected |= {"memory_gib/host", "lanes/documents_finished", "lanes/padding_share"}
    expected |= {"attention_share_of_stream/layer_00", "memory_share_of_stream/layer_01"}
    expected |= {"memory_outside/layer_00", "memory_gate/layer_00"}
    expected |= {"perplexity_by_position_memory_on/00000000_to_00000064"}
    assert expected <= tags
    assert {"_hparams_/experiment", "custom_scalars__config__"} <= set(
        events(watched[0]).summary_metadata
    )


def test_the_figures_are_right(watched):
    last = rows(watched[0], "figures.jsonl")[-1]["figures"]
    shares = [x for name, x in last.items() if name.startswith("time_share/")]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert last["lr/memory_matrices"] == pytest.approx(2 * last["lr/base_matrices"])
    assert 1e-5 < last["update_ratio/base_matrices"] < 1
    assert 0 < last["lanes/place_in_the_book_share"] < 1
    assert 0.01 < last["memory_gib/host"] < 1000


def test_the_journal_tells_of_the_restart(watched):
    found = rows(watched[0], "events.jsonl")
    kinds = [row["event"] for row in found]
    assert [k for k in kinds if k != SAVED] == [BEGAN, STOPPED, RESUMED, DONE]
    assert next(row["reached"] for row in found if row["event"] == RESUMED) == 4
    run = reading.read(watched[0], "run")
    [told] = summary([run])["runs"]
    assert told["facts"]["restarts"] == 1 and told["facts"]["parameters"] > 1000
    assert told["pictures"]["step"] == 6
    assert told["pictures"]["pictures"]["memory_density/layer_00"]["down"] == "token of the window"
    assert len(told["figures"]["memory_sigma/layer_00"]) == 6
