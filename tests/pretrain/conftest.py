"""A run in the test's own process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from infty import stopping
from infty.parallel import groups
from support import small_training


def launched() -> Iterator[None]:
    """What a launcher would set; and the trainer takes signals over, which pytest wants back."""
    before = {n: signal.getsignal(n) for n in stopping.REQUESTS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
            patch.setenv(name, value)
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


surroundings = pytest.fixture(launched, scope="module", name="surroundings")


@pytest.fixture
def alone(single_process, monkeypatch):
    """One process, as a launcher would start it, whose trainer is connected already."""
    monkeypatch.setattr("infty_pretrain.trainer.connect", small_training.join)
    with contextlib.contextmanager(launched)():
        yield
    groups.initialize(tensor=1)
