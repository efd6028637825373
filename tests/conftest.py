"""Shared fixtures: small configs, and a single-process parallel state for tests that build the model in place."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton, as torch's own parts do
    os.environ.setdefault("TRITON_INTERPRET", "1")

import torch.distributed as dist

from support import marks

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# A shell ignores Ctrl-C in what it starts in the background, and so would every program that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    for item in items:
        for mark in marks.of(item):
            item.add_marker(mark)


@pytest.fixture(scope="session")
def watch():
    return marks.Watch()


@pytest.fixture(autouse=True)
def no_processes_without_the_mark(request, watch):
    """`make test-fast` starts none: what a test starts must be seen from its code (support/marks.py)."""
    watch.started.clear()
    yield
    fast = "not multiprocess" in request.config.option.markexpr
    if fast and watch.started and not request.node.get_closest_marker("multiprocess"):
        pytest.fail(
            f"starts {watch.started[0]}: name what starts it in STARTERS of tests/support/marks.py"
        )


@pytest.fixture(autouse=True)
def another_blas():
    """INFTY_TEST_BLAS=another: products round by their shapes, as on some other machine (test_cpu_kinds.py)."""
    if os.environ.get("INFTY_TEST_BLAS") != "another":
        yield
        return
    from support.another_blas import AnotherBlas

    with AnotherBlas():
        yield


@pytest.fixture(autouse=True)
def launched_by_nobody():
    """What a command that runs in the test's own process says of itself (`launch.detect`) is not for the next one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def single_process(tmp_path_factory):
    """A process group of one, with no port: what `infty` itself sets up under plain execution."""
    from infty.parallel import groups

    if not dist.is_initialized():
        store = tmp_path_factory.mktemp("store") / "rendezvous"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    groups.initialize(tensor=1)
    yield
    groups.destroy()
    dist.destroy_process_group()
