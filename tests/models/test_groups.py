"""Process groups of one layout after another in the same processes."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from infty.parallel import groups
from infty_tools import processes


def threads_of_layouts() -> list[int]:
    """Threads of this process with tensor parallelism 1, 2, 1, 2, ...; the groups of each layout work."""
    found = []
    for tensor in (1, 2) * 4:
        groups.initialize(tensor=tensor)
        for group, size in ((groups.tensor_group(), tensor), (groups.data_group(), 2 // tensor)):
            total = torch.ones(1)
            dist.all_reduce(total, group=group)
            assert total.item() == size
        found.append(len(os.listdir("/proc/self/task")))
    return found


def test_groups_of_a_layout_that_is_given_up_leave_no_threads():
    for threads in processes.run(2, threads_of_layouts):
        assert max(threads[2:]) <= max(threads[:2]), threads
