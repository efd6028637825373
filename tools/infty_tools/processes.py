"""Run a function in several real processes of this machine that talk gloo: for benchmarks and tests."""

from __future__ import annotations

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def context() -> BaseContext:
    """Starts processes as forks of one that has done the imports: an import takes longer than most of what is run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what that process inherits
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    found = mp.get_context("forkserver")
    found.set_forkserver_preload(["infty_tools.preloaded"])
    return found


def run(
    world: int, function: Callable[..., Any], *args: Any, tensor: int = 1, timeout: float = 600
) -> list[Any]:
    """Call `function(*args)` in `world` processes with the parallel state initialised; return what each returned.

    `function` must be importable (defined at the top of a module) and return what torch.save can write. Raises
    RuntimeError with every process's traceback when one fails or dies, or is not done after `timeout` seconds: many, as
    a busy machine can take ten times as long as a quiet one.
    """
    with tempfile.TemporaryDirectory(prefix="infty-") as folder:
        processes = [
            context().Process(
                target=_worker, args=(rank, world, tensor, folder, function, args), daemon=True
            )
            for rank in range(world)
        ]
        for p in processes:
            p.start()
        for p in processes:
            p.join(timeout)
        alive = [p for p in processes if p.is_alive()]
        for p in alive:
            p.kill()
            p.join()
        errors = [f.read_text() for f in sorted(Path(folder).glob("error.*"))]
        if errors:
            raise RuntimeError("a process failed:\n" + "\n".join(errors))
        if alive:
            raise RuntimeError(f"{len(alive)} of {world} processes were not done in {timeout:g} s")
        if any(p.exitcode for p in processes):
            raise RuntimeError(f"processes died: exit codes {[p.exitcode for p in processes]}")
        return [
            torch.load(Path(folder) / f"result.{rank}", weights_only=False) for rank in range(world)
        ]


def _worker(
    rank: int, world: int, tensor: int, folder: str, function: Callable, args: tuple
) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    warnings.filterwarnings("ignore")  # deprecations of libraries among each other
    code = 0
    try:
        import deepspeed
        import torch.distributed as dist

        from infty.parallel import groups

        torch.set_num_threads(1)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
        )
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
        groups.initialize(tensor=tensor)
        torch.save(function(*args), Path(folder) / f"result.{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error.{rank}").write_text(traceback.format_exc())
        code = 1
    os._exit(code)  # gloo's threads can abort an ordinary interpreter exit
