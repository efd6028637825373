"""Random streams: equal on the ranks that share an activation, different on the ranks that split one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType

import torch

from infty.parallel import groups


def _deepspeed() -> ModuleType:
    """DeepSpeed's tracker of random streams, imported where it is used: what only counts a model starts without."""
    from deepspeed.runtime.activation_checkpointing import checkpointing

    return checkpointing


def seed(value: int) -> None:
    """Seed the default stream (equal within a tensor-parallel group) and the sharded one (different on each rank).

    Both differ between data-parallel ranks. Call it after `deepspeed.initialize`, which seeds for itself.
    """
    ds_checkpointing = _deepspeed()
    ds_checkpointing.configure(groups.MPU(), partition_activations=False)
    ds_checkpointing.model_parallel_cuda_manual_seed(value + 100_003 * groups.data_rank())
    torch.manual_seed(value + 100_003 * groups.data_rank())


@contextlib.contextmanager
def sharded() -> Iterator[None]:
    """Draw from this rank's own stream: for dropout inside a head or a slice of the MLP."""
    tracker = _deepspeed().get_cuda_rng_tracker()
    if groups.tensor_size() == 1 or not tracker.get_states():
        yield
        return
    with tracker.fork():
        yield


def states() -> dict[str, torch.Tensor]:
    """Every random stream of this process, by name, as byte tensors: for checkpoints."""
    out = {"cpu": torch.get_rng_state()}
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        out["accelerator"] = accelerator.get_rng_state()
    for name, state in _deepspeed().get_cuda_rng_tracker().get_states().items():
        out[f"tracker.{name}"] = state
    return {k: v.cpu().clone() for k, v in out.items()}


def restore(saved: dict[str, torch.Tensor]) -> None:
    """Put back what `states` returned."""
    torch.set_rng_state(saved["cpu"])
    if "accelerator" in saved:
        from deepspeed.accelerator import get_accelerator

        get_accelerator().set_rng_state(saved["accelerator"])
    tracked = {k.removeprefix("tracker."): v for k, v in saved.items() if k.startswith("tracker.")}
    _deepspeed().get_cuda_rng_tracker().set_states(tracked)


def recompute_context() -> tuple[
    contextlib.AbstractContextManager, contextlib.AbstractContextManager
]:
    """For `torch.utils.checkpoint(context_fn=...)`: replay the sharded stream too.

    Without it dropout inside the shards is redrawn at recompute: forwards agree, gradients are silently wrong.
    """
    tracker = _deepspeed().get_cuda_rng_tracker()
    before = dict(tracker.get_states())

    @contextlib.contextmanager
    def replay() -> Iterator[None]:
        now = dict(tracker.get_states())
        tracker.set_states(before)
        try:
            yield
        finally:
            tracker.set_states(now)

    return contextlib.nullcontext(), replay()
