"""A run in the test's own process."""

from __future__ import annotations

import signal

import pytest

from infty import stopping
from infty.parallel import groups
from support import small_training


@pytest.fixture
def alone(single_process, monkeypatch):
    """One process, as a launcher would start it; and the trainer takes signals over, which pytest wants back."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("infty_pretrain.trainer.connect", small_training.join)
    before = {n: signal.getsignal(n) for n in stopping.REQUESTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    groups.initialize(tensor=1)
