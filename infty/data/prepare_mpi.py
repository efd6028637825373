"""Preparation over the ranks of an MPI job: each takes the next largest source from a counter that all share."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from infty import exit_codes
from infty.data import build
from infty.data import prepare as one_process
from infty.data.build import Job
from infty.data.prepare import Plan, Progress, Request
from infty.data.sources import Source
from infty.data.tokenizer import Tokenizer
from infty.data.workplace import Workplace, already_done
from infty.errors import UserError


def started_by_mpi() -> bool:
    """Whether this process is one of several started by mpirun."""
    size = os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or "1"
    return int(size) > 1


def prepare(request: Request, progress: Progress, tell: Callable[[str], None]) -> dict[str, Any]:
    """As `infty.data.prepare.prepare`, to the same bytes, by all ranks together. Every rank returns the report.

    A UserError ends all ranks: the first raises it, the others leave with its status, so that it is said once.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"started by mpirun, which needs mpi4py: pip install 'infty[mpi]' ({error})"
        ) from error
    place = Workplace(request.output)
    try:
        return _together(MPI, request, place, progress, tell)
    except UserError:
        if MPI.COMM_WORLD.rank:
            raise SystemExit(exit_codes.MISTAKE) from None
        raise
    except BaseException as error:  # on this rank alone: the others would wait for it for ever
        print(_reason(error), file=sys.stderr, flush=True)
        stopped = isinstance(error, KeyboardInterrupt)
        status = exit_codes.INTERRUPTED if stopped else getattr(error, "exit_code", 1)
        MPI.COMM_WORLD.Abort(status)
        raise
    finally:
        place.close()


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "error: stopped; rerun the same command to continue"
    if hasattr(error, "exit_code"):
        return f"{error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"error: the disk is full ({error.filename or error}): make room and run the same command again"
    return "".join(traceback.format_exception(error))


def _on_first(world: Any, action: Callable[[], Any]) -> Any:
    """Run on rank 0; every rank gets the result, or raises the same UserError."""
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


def _together(
    MPI: Any, request: Request, place: Workplace, progress: Progress, tell: Callable[[str], None]
) -> dict[str, Any]:
    world = MPI.COMM_WORLD
    plan = _on_first(world, lambda: Plan.of(request))
    done = _on_first(world, lambda: already_done(request.output, plan.options, plan.parts))
    if done is not None:
        if world.rank == 0:
            tell(f"{request.output} is already prepared")
        return done
    _on_first(world, lambda: place.begin(plan.fingerprint, tell))
    tokenizer = _on_first(world, lambda: one_process.make_tokenizer(request, place, plan, progress))
    job = Job(place.shards, tokenizer, request.field, request.min_words)
    _make_shards(MPI, job, plan.sources, progress)
    return _on_first(world, lambda: one_process.finish(request, place, job, plan, progress))


def _make_shards(MPI: Any, job: Job, all_sources: list[Source], progress: Progress) -> None:
    """Dynamic scheduling: the next index is fetched from a counter on rank 0 and increased in one atomic step."""
    world, order = MPI.COMM_WORLD, one_process.by_size(all_sources)
    counter = np.zeros(1, dtype=np.int64)
    window = MPI.Win.Create(counter if world.rank == 0 else None, comm=world)
    step, mine = np.ones(1, dtype=np.int64), np.zeros(1, dtype=np.int64)

    def take(count: int) -> int:
        step[0] = count
        window.Lock(0)
        window.Fetch_and_op(step, mine, 0, 0, MPI.SUM)
        window.Unlock(0)
        return int(mine[0])

    sizes = [all_sources[i].size for i in order]
    problem = None
    try:
        tokenizer = Tokenizer.load(job.tokenizer)
        while (taken := take(1)) < len(order):
            build.make_shard(job, tokenizer, order[taken], all_sources[order[taken]])
            progress("tokenizing", sum(sizes[: taken + 1]), sum(sizes))
    except UserError as error:
        problem = str(error)
        take(len(order))  # nobody begins another
    problems = [p for p in world.allgather(problem) if p is not None]
    window.Free()
    if problems:
        raise UserError(problems[0])
