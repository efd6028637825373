"""Preparation over the ranks of an MPI job: each takes the next largest source from a counter that all share."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from infty.data import build
from infty.data import prepare as one_process
from infty.data.build import Job
from infty.data.prepare import Progress, Request
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer
from infty.errors import UserError


def started_by_mpi() -> bool:
    """Whether this process is one of several started by mpirun."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or "1"
    return int(size) > 1


def prepare(request: Request, progress: Progress, tell: Callable[[str], None]) -> dict[str, Any]:
    """As `infty.data.prepare.prepare`, to the same bytes, by all ranks together. Every rank returns the report."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"started by mpirun, which needs mpi4py: pip install 'infty[mpi]' ({error})") from error
    world = MPI.COMM_WORLD
    train, validation = request.split()
    fingerprint = request.fingerprint(train, validation)

    def on_first(action: Callable[[], Any]) -> Any:
        """Run on rank 0; every rank gets the result, or the same UserError."""
        result, problem = None, None
        if world.rank == 0:
            try:
                result = action()
            except UserError as error:
                problem = str(error)
        result, problem = world.bcast((result, problem))
        if problem is not None:
            raise UserError(problem)
        return result

    try:
        return _together(MPI, request, train, validation, fingerprint, progress, tell, on_first)
    except UserError:
        raise  # on every rank
    except BaseException:
        traceback.print_exc()
        world.Abort(1)  # the other ranks would wait for this one for ever
        raise


def _together(MPI: Any, request: Request, train: list[Source], validation: list[Source], fingerprint: str,
              progress: Progress, tell: Callable[[str], None], on_first: Callable) -> dict[str, Any]:
    done = on_first(lambda: one_process.already_done(request, fingerprint))
    if done is not None:
        return done
    on_first(lambda: one_process.begin(request, fingerprint, tell))
    tokenizer = on_first(lambda: one_process.make_tokenizer(request, train, progress))
    job = Job(request.partial / build.SHARDS, tokenizer, request.field, request.min_words)
    _make_shards(MPI, job, train + validation, progress)
    return on_first(lambda: one_process.finish(request, job, train, validation, fingerprint, progress))


def _make_shards(MPI: Any, job: Job, all_sources: list[Source], progress: Progress) -> None:
    """Dynamic scheduling: the next index is fetched from a counter on rank 0 and increased in one atomic step."""
    world, order = MPI.COMM_WORLD, one_process.by_size(all_sources)
    tokenizer = Tokenizer.load(job.tokenizer)
    counter = np.zeros(1, dtype=np.int64)
    window = MPI.Win.Create(counter if world.rank == 0 else None, comm=world)
    one, mine = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    total, done = sum(s.size for s in all_sources), 0
    while True:
        window.Lock(0)
        window.Fetch_and_op(one, mine, 0, 0, MPI.SUM)
        window.Unlock(0)
        taken = int(mine[0])
        if taken >= len(order):
            break
        index = order[taken]
        build.make_shard(job, tokenizer, index, all_sources[index])
        done = sum(all_sources[i].size for i in order[:taken + 1])
        progress("tokenizing", done, total)
    world.Barrier()
    window.Free()
